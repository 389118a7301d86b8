# SPDX-License-Identifier: MIT
"""Keys are made and checked, and a silent guest is reported. (Logins themselves: tests/vm/test_image_boot.py.)"""

from __future__ import annotations

import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.errors import ConfigError, GuestError
from ghostbox.plan import cloudinit
from ghostbox.system import ssh, ssh_keys
from helpers.killed import killed_at
from helpers.ports import free_port


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Yield a port that accepts connections and never answers, as QEMU's user network does while the guest boots."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield int(server.getsockname()[1])


def client(directory: Path, port: int, console: str = "") -> ssh.GuestSsh:
    ssh_keys.write_key(ssh_keys.generate_key("test"), directory / "key")
    pinned = cloudinit.render_known_hosts("127.0.0.1", port, ssh_keys.generate_key("guest").public)
    (directory / "known_hosts").write_text(pinned)
    return ssh.GuestSsh("127.0.0.1", port, "ana", directory / "key", directory / "known_hosts", console=lambda: console)


def test_generated_key_is_one_that_openssh_reads(tmp_path: Path) -> None:
    pair = ssh_keys.generate_key("a comment")
    ssh_keys.write_key(pair, tmp_path / "key")
    derived = subprocess.check_output(["ssh-keygen", "-y", "-f", tmp_path / "key"], text=True)
    assert derived.split()[:2] == pair.public.split()[:2]
    assert pair.public.endswith(" a comment")
    assert ssh_keys.read_key(tmp_path / "key") == pair
    assert ssh_keys.generate_key("x").private != pair.private


def test_private_key_is_closed_to_others_even_if_the_file_was_open(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("")
    (tmp_path / "key").chmod(0o644)
    ssh_keys.write_key(ssh_keys.generate_key(""), tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_key_that_a_killed_command_left_is_whole_or_not_there(tmp_path: Path, owner: object, name: str) -> None:
    killed_at(owner, name, lambda: ssh_keys.write_key(ssh_keys.generate_key("x"), tmp_path / "key"))
    assert not (tmp_path / "key").exists()
    (tmp_path / "key.pub").write_text("of another key")
    pair = ssh_keys.generate_key("y")
    ssh_keys.write_key(pair, tmp_path / "key")
    assert ssh_keys.read_key(tmp_path / "key") == pair


def test_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=r"cannot read the key .*/none: No such file"):
        ssh_keys.read_key(tmp_path / "none")


def test_all_public_keys_of_the_user_are_found(tmp_path: Path) -> None:
    directory = tmp_path / ".ssh"
    directory.mkdir()
    (directory / "id_ed25519.pub").write_text("ssh-ed25519 AAAA ana\n")
    (directory / "id_ecdsa.pub").write_text("# mine\necdsa-sha2-nistp256 BBBB ana\n")
    (directory / "id_broken.pub").write_text("nothing\n")
    (directory / "id_ed25519").write_text("private")
    (directory / "known_hosts.pub").write_text("ssh-ed25519 CCCC other\n")
    assert ssh_keys.user_public_keys(tmp_path) == ("ecdsa-sha2-nistp256 BBBB ana", "ssh-ed25519 AAAA ana")
    assert ssh_keys.user_public_keys(tmp_path / "nobody") == ()


def test_private_key_given_as_public_one_is_refused_with_the_right_name(tmp_path: Path) -> None:
    ssh_keys.write_key(ssh_keys.generate_key("x"), tmp_path / "id")
    with pytest.raises(ConfigError, match="/id holds no SSH public key") as caught:
        ssh_keys.read_public_key(tmp_path / "id")
    assert caught.value.hint == f"the public key is usually in {tmp_path}/id.pub"
    with pytest.raises(ConfigError, match="cannot read the SSH key .*: No such file"):
        ssh_keys.read_public_key(tmp_path / "none")


def test_guest_that_never_answers_is_reported_with_its_console(tmp_path: Path, silent_port: int) -> None:
    said: list[str] = []
    guest = client(tmp_path, silent_port, "one\nKernel panic - not syncing\n")
    with pytest.raises(GuestError, match=rf"gave no SSH login at 127\.0\.0\.1:{silent_port} within 1 s") as caught:
        guest.wait_ready(1, said.append)
    assert said == ["nothing answers as SSH yet"]
    assert caught.value.why is not None
    assert caught.value.why.endswith("the guest's console ends with:\none\nKernel panic - not syncing")


def test_closed_port_is_reported_as_such(tmp_path: Path) -> None:
    with pytest.raises(GuestError) as caught:
        client(tmp_path, free_port()).wait_ready(0.1)
    assert "no connection" in str(caught.value.why)


def test_vm_that_ends_while_booting_ends_the_wait_at_once(tmp_path: Path, silent_port: int) -> None:
    with pytest.raises(GuestError, match="the VM ended while it booted"):
        client(tmp_path, silent_port).wait_ready(3600, alive=lambda: False)


def test_command_without_a_connection_fails_clearly(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(GuestError, match=rf"no SSH connection to the guest at 127\.0\.0\.1:{port}"):
        client(tmp_path, port).run("true", 5)


def test_missing_pin_is_an_error_and_never_trust(tmp_path: Path, silent_port: int) -> None:
    guest = client(tmp_path, silent_port)
    (tmp_path / "known_hosts").unlink()
    with pytest.raises(GuestError, match=r"cannot read the pinned host key .*known_hosts"):
        guest.wait_ready(5)


def test_something_else_on_the_port_is_no_ssh(tmp_path: Path) -> None:
    def serve(server: socket.socket) -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        with pytest.raises(GuestError) as caught:
            client(tmp_path, server.getsockname()[1]).wait_ready(0.5)
        server.shutdown(socket.SHUT_RDWR)
    assert "nothing answers as SSH yet" in str(caught.value.why)
