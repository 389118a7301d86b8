# SPDX-License-Identifier: MIT
"""Donors over TLS: pages pass encrypted, and only a server that proves to be the donor gets pages."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ghostbox.system.processes import ControlError, wait_until
from helpers import gnutls
from helpers import nbd_raw as nbd
from helpers.hanging_fs import hanging_fs
from helpers.nbd import read_export, wait_for_greeting
from helpers.pager import (
    RunningMemserver,
    RunningPager,
    installed_build,
    memory_client,
    running_memserver,
    running_pager,
)
from helpers.ports import free_port
from helpers.recording_relay import exactly, recording_relay
from helpers.takeover import pager_line

KEY_A, KEY_B, KEY_WRONG = "a1" * 32, "b2" * 32, "c3" * 32
PAGE = 4096
NO_TLS = "it offers no TLS, and nbds:// does not go on without: "
WRONG_KEY = "TLS: the other end refused: Illegal parameter (it does not know the identity, or the key is wrong)"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return gnutls.key_file(tmp_path / "keys.psk", a=KEY_A, b=KEY_B)


@pytest.fixture
def donor(keys: Path) -> Iterator[RunningMemserver]:
    """Yield a memory server that demands TLS, with the exports a and b."""
    with running_memserver(options=("--tls", "require", "--tls-psk", str(keys)), a="64M", b="64M") as server:
        yield server


def nbds(address: str, export: str, keys: Path, *, user: str | None = None) -> str:
    return f"nbds://{f'{user}@' if user else ''}{address}/{export}?tls-psk-file={keys}"


def refusal(uri: str) -> str:
    """Return the last line of a pager that does not start."""
    with pytest.raises(RuntimeError, match="the pager said ''") as caught, running_pager([uri]):
        pass
    return str(caught.value)


@contextlib.contextmanager
def nbdkit_tls(keys: Path, *options: str) -> Iterator[str]:
    """Run nbdkit's memory plugin with TLS; yield its address."""
    port = free_port()
    argv = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "--tls=require", f"--tls-psk={keys}", "memory", "64M"]
    process = subprocess.Popen([*argv, *options])
    try:
        wait_for_greeting(("127.0.0.1", port))
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def stress(pager: RunningPager, *, seconds: int) -> None:
    with memory_client("48M", pager) as client:
        answer = client.command("stress", threads=8, seconds=seconds, discards=20, seed=7, timeout_s=120)
        assert answer["words_wiped"] > 0
    donors = pager.status()["donors"]
    assert all(each["written_bytes"] > 0 and each["read_bytes"] > 0 for each in donors), donors


# --- pages pass encrypted ---


def test_no_word_is_wrong_with_a_ghostbox_memory_server_as_the_donor(donor: RunningMemserver, keys: Path) -> None:
    with running_pager([nbds(donor.address, "a", keys)], cache="4M") as pager:
        stress(pager, seconds=4)


def test_no_word_is_wrong_with_nbdkit_as_the_donor(keys: Path) -> None:
    with nbdkit_tls(keys) as address, running_pager([nbds(address, "", keys, user="b")], cache="4M") as pager:
        stress(pager, seconds=4)


def test_donors_with_and_without_tls_serve_one_memory(donor: RunningMemserver, keys: Path) -> None:
    with (
        running_memserver(open="64M") as plain,
        running_pager([nbds(donor.address, "a", keys), plain.uri("open")], cache="4M") as pager,
    ):
        stress(pager, seconds=3)


def test_long_reads_ahead_come_right(donor: RunningMemserver, keys: Path) -> None:
    with (
        running_pager([nbds(donor.address, "a", keys)], cache="8M", readahead="1M") as pager,
        memory_client("48M", pager) as client,
    ):
        client.command("fill", seed=3)
        client.command("verify", seed=3)
        assert pager.status()["donors"][0]["read_bytes"] > 40 << 20


def test_an_observer_sees_no_page(donor: RunningMemserver, keys: Path, tmp_path: Path) -> None:
    with recording_relay(int(donor.address.rpartition(":")[2])) as relay:
        uri = nbds(f"127.0.0.1:{relay.port}", "a", keys)
        with running_pager([uri], cache="1M") as pager, memory_client("8M", pager) as client:
            client.command("fill", seed=5)
            client.command("verify", seed=5)
            held = read_export(nbds(donor.address, "a", keys, user="a"), tmp_path / "held")
        pages = [held[at : at + PAGE] for at in range(0, len(held), PAGE)]
        written = [page for page in pages if any(page)]
        assert len(written) > 1000
        seen = bytes(relay.seen)
        assert len(seen) > 2 * len(written) * PAGE
        assert not any(page[at : at + 16] in seen for page in written[:64] for at in (0, 64, 2048))
        assert b"GhostBox memory" not in seen


# --- broken connections, and takeovers ---


def test_connections_that_break_are_made_again_over_tls(donor: RunningMemserver, keys: Path) -> None:
    port = int(donor.address.rpartition(":")[2])
    with recording_relay(port) as first:
        uri = nbds(f"127.0.0.1:{first.port}", "a", keys)
        with running_pager([uri], cache="2M") as pager, memory_client("16M", pager) as client:
            client.command("fill", seed=9)
            first.hang_up()
            client.command("verify", seed=9)
            assert pager.status()["donors"][0]["reconnects"] > 0


def test_a_donor_that_was_killed_and_started_anew_is_known_to_have_lost_all(
    donor: RunningMemserver, keys: Path
) -> None:
    with running_pager([nbds(donor.address, "a", keys)], cache="2M") as pager, memory_client("16M", pager) as client:
        client.command("fill", seed=9)
        donor.process.kill()
        donor.process.wait(20)
        options = ("--tls", "require", "--tls-psk", str(keys), "--port", donor.address.rpartition(":")[2])
        with running_memserver(options=options, a="64M"):
            said = "it is back, but cannot show that it still holds our pages"
            wait_until(lambda: said in pager.log(), timeout_s=20, what="the loss in the log")


def test_a_pager_that_takes_over_goes_on_over_tls(donor: RunningMemserver, keys: Path) -> None:
    with pager_line([nbds(donor.address, "a", keys)], cache="2M") as line, memory_client("16M", line.listen) as client:
        client.command("fill", seed=11)
        for _ in range(2):
            line.kill()
            line.resume()
            line.wait_served(client)
            client.command("verify", seed=11)
        secrets = line.log() + str(line.status()) + str(line.state_file.read_bytes())
        assert "nbds://" in secrets
        assert not any(key in secrets or str(bytes.fromhex(key)) in secrets for key in (KEY_A, KEY_B))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (f"a:{KEY_WRONG}\n", WRONG_KEY),
        (f"b:{KEY_B}\n", "the key file {path} has no key for the identity 'a'"),
        (None, "the key file {path} cannot be opened: No such file or directory"),
    ],
)
def test_a_key_that_is_put_right_is_used_at_the_next_attempt(
    donor: RunningMemserver, keys: Path, content: str | None, why: str
) -> None:
    right = keys.read_text()
    with pager_line([nbds(donor.address, "a", keys)], cache="2M") as line, memory_client("16M", line.listen) as client:
        client.command("fill", seed=13)
        line.kill()
        if content is None:
            keys.unlink()
        else:
            keys.write_text(content)
        line.resume()
        expected = why.format(path=keys).lower()
        wait_until(lambda: (line.status()["donors"][0]["why"] or "").lower() == expected, timeout_s=20, what=why)
        gnutls.key_file(keys, **dict(entry.split(":") for entry in right.split()))
        client.command("verify", seed=13)
        # The pages came over one connection; the donor's others are made when their next attempt is due.
        wait_until(lambda: line.status()["donors"][0]["why"] is None, timeout_s=20, what="all connections")


def test_a_key_file_that_cannot_be_read_to_its_end_holds_up_no_other_donor(
    donor: RunningMemserver, keys: Path, tmp_path: Path
) -> None:
    """Both donors hold all pages; the first cannot be used, because its key file is on a file system that hangs."""
    place = tmp_path / "far"
    place.mkdir()
    far = gnutls.key_file(place / "keys.psk", a=KEY_A)
    with running_memserver(open="64M") as plain:
        uris = [nbds(donor.address, "a", far), plain.uri("open")]
        with (
            pager_line(uris, cache="2M", replicas="2", allow_same_host="") as line,
            memory_client("16M", line.listen) as client,
        ):
            client.command("fill", seed=17)
            line.kill()
            with hanging_fs(place):
                line.resume()
                client.command("verify", seed=17)
                said = f"the key file {far} takes long to read"
                wait_until(lambda: line.status()["donors"][0]["why"] == said, timeout_s=20, what="the reason")
                client.command("fill", seed=18)
            wait_until(lambda: line.status()["donors"][0]["why"] is None, timeout_s=20, what="the donor to be back")
            client.command("verify", seed=18)


# --- refused donors and keys ---


def test_a_key_file_that_is_no_regular_file_is_refused(donor: RunningMemserver, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    assert f"cannot connect: the key file {fifo} is no regular file" in refusal(nbds(donor.address, "a", fifo))


def test_a_wrong_key_is_refused_with_the_reason(donor: RunningMemserver, tmp_path: Path) -> None:
    wrong = gnutls.key_file(tmp_path / "wrong.psk", a=KEY_WRONG, nobody=KEY_A)
    assert WRONG_KEY in refusal(nbds(donor.address, "a", wrong))
    assert WRONG_KEY in refusal(nbds(donor.address, "a", wrong, user="nobody"))


def test_the_key_of_another_export_does_not_open_it(donor: RunningMemserver, keys: Path) -> None:
    said = refusal(nbds(donor.address, "a", keys, user="b"))
    assert "it does not open the export with this key: no export of this name (NBD error 6)" in said


def test_a_donor_without_tls_is_refused(keys: Path) -> None:
    with running_memserver(a="64M") as plain:
        assert f"{NO_TLS}this server does not speak TLS: no export has a key (NBD error 1)" in refusal(
            nbds(plain.address, "a", keys)
        )


def test_a_relay_that_strips_starttls_is_refused(donor: RunningMemserver, keys: Path) -> None:
    port = int(donor.address.rpartition(":")[2])
    with recording_relay(port, strips_starttls=True) as relay:
        assert f"{NO_TLS}it gives no reason (NBD error 1)" in refusal(nbds(f"127.0.0.1:{relay.port}", "a", keys))
        assert relay.stripped == 1


def test_a_donor_that_wants_tls_is_refused_to_a_plain_uri(donor: RunningMemserver) -> None:
    assert f"donor nbd://{donor.address}/a: cannot connect: " in refusal(f"nbd://{donor.address}/a")


STARTTLS_ACK = struct.pack(">QIII", nbd.OPTION_REPLY_MAGIC, nbd.STARTTLS, nbd.ACK, 0)


def greet(sock: socket.socket) -> None:
    """Send a server's greeting, and wait for STARTTLS."""
    sock.sendall(b"NBDMAGICIHAVEOPT\0\3")
    assert exactly(sock, 4 + 16).endswith(struct.pack(">II", nbd.STARTTLS, 0))


@contextlib.contextmanager
def server_of(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Serve one connection by a function; yield the address."""

    def run() -> None:
        with contextlib.suppress(OSError, gnutls.TlsError):
            sock, _ = listener.accept()
            with sock:
                serve(sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.close()
        thread.join(20)


@pytest.mark.parametrize("priority", [gnutls.TLS_1_2, gnutls.PSK_PLAIN], ids=["TLS 1.2", "no ephemeral exchange"])
def test_a_donor_that_offers_less_than_the_pager_demands_is_refused(keys: Path, priority: str) -> None:
    def serve(sock: socket.socket) -> None:
        greet(sock)
        sock.sendall(STARTTLS_ACK)
        gnutls.Session.server(sock, keys, priority=priority)

    with server_of(serve) as address:
        assert "cannot connect: TLS: " in refusal(nbds(address, "a", keys))


def test_bytes_behind_the_answer_to_starttls_are_refused(keys: Path) -> None:
    """An attacker on the way may have inserted the bytes, so that they count as the first encrypted ones."""

    def serve(sock: socket.socket) -> None:
        greet(sock)
        sock.sendall(2 * STARTTLS_ACK)
        sock.recv(1)

    with server_of(serve) as address:
        assert "it sent bytes behind its answer to STARTTLS" in refusal(nbds(address, "a", keys))


@pytest.mark.parametrize(
    ("greeting", "why"),
    [
        (b"NBDMAGICIHAVEOPT\0\0", "it is no NBD server that can speak TLS"),
        (b"HTTP/1.1 400 Bad Request\r\n", "it is no NBD server that can speak TLS"),
        (b"NBDMAGICIHAVEOPT\0\3" + bytes(20), "it answered an option with something else"),
        (b"NBDMAGIC", "it closed the connection"),
    ],
)
def test_what_is_no_such_server_is_refused(keys: Path, greeting: bytes, why: str) -> None:
    def serve(sock: socket.socket) -> None:
        sock.sendall(greeting)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(64):
            pass

    with server_of(serve) as address:
        assert why in refusal(nbds(address, "a", keys))


def test_a_port_where_nobody_listens(keys: Path) -> None:
    assert "cannot connect: Connection refused" in refusal(nbds(f"127.0.0.1:{free_port()}", "a", keys))


def test_a_name_that_no_resolver_knows(keys: Path) -> None:
    assert "its name has no address: " in refusal(nbds("no-such-machine.invalid:10809", "a", keys))


@pytest.mark.parametrize(
    ("uri", "fault"),
    [
        (
            "nbds://h/a",
            "needs ?tls-psk-file=FILE behind the export, the file with its key, and takes nothing else there",
        ),
        ("nbds://h/a?tls-certificates=/d", "needs ?tls-psk-file=FILE behind the export"),
        ("nbds://h/a?tls-psk-file=/k&x=1", "takes nothing but tls-psk-file=FILE behind its '?'"),
        ("nbds://h/a?tls-psk-file=k", "needs the whole path of the file in tls-psk-file=FILE, from '/' on"),
        ("nbds://h/a?tls-psk-file=/%zz", "needs the whole path of the file in tls-psk-file=FILE, from '/' on"),
        ("nbds:///a?tls-psk-file=/k", "names no host"),
        ("nbds://u@/a?tls-psk-file=/k", "names no host"),
        ("nbds://h/%00?tls-psk-file=/k", "names an export whose name is too long, or written wrongly"),
        ("nbds://h/?tls-psk-file=/k", "needs an identity of 1 to 128 bytes before the '@'"),
        (f"nbds://h/{'x' * 129}?tls-psk-file=/k", "needs an identity of 1 to 128 bytes before the '@'"),
    ],
)
def test_a_uri_that_is_wrong_is_refused_where_it_is_given(
    donor: RunningMemserver, keys: Path, uri: str, fault: str
) -> None:
    argv = ["--listen", "/nowhere/p", "--control", "/nowhere/c", "--cache", "8M", "--donor", uri]
    assert f"--donor: '{uri}' {fault}" in refusal_of_argv(argv)
    with running_pager([nbds(donor.address, "a", keys)]) as pager:
        with pytest.raises(ControlError) as caught:
            pager.command("add-donor", uri=uri)
        assert caught.value.code == "invalid"
        assert f"'{uri}' {fault}" in str(caught.value)


def refusal_of_argv(argv: Sequence[str]) -> str:
    done = subprocess.run(
        [str(installed_build().pager), *argv], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    return done.stderr
