# SPDX-License-Identifier: MIT
"""Users log in with the system's ssh: here to a server in the guest's place, from directories of every kind."""

from __future__ import annotations

import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.cli.options import split_words
from ghostbox.errors import GuestError, ProgramError
from ghostbox.session import Book, login
from ghostbox.system import ssh_keys
from helpers.ports import free_port
from helpers.ssh_server import GuestServer, guest_server, started_vm

ODD = "a b%hc:d'e\"f$g;h#i\\j[k]*{l}~ü"


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[tuple[Book, GuestServer]]:
    """Yield a VM in a directory with odd characters in its name, and a server at the VM's port."""
    home, state = tmp_path / "home", tmp_path / ODD / "work"
    home.mkdir()
    files = started_vm(state, tmp_path / "run", port=1).files
    user_key = ssh_keys.read_key(files.client_key).public
    with guest_server(home, files.host_key, user_key) as server:
        yield started_vm(state, tmp_path / "run", server.port), server


def test_a_command_is_run_and_its_status_is_returned(
    guest: tuple[Book, GuestServer], capfd: pytest.CaptureFixture[str]
) -> None:
    book, _ = guest
    assert login.shell(book, ["echo out; echo err >&2; exit 42"]) == 42
    assert capfd.readouterr() == ("out\n", "err\n")


def test_of_several_words_each_is_one_argument(
    guest: tuple[Book, GuestServer], capfd: pytest.CaptureFixture[str]
) -> None:
    book, _ = guest
    assert login.shell(book, ["printf", "[%s]", "a  b", "$HOME", "-h", "it's"]) == 0
    assert capfd.readouterr().out == "[a  b][$HOME][-h][it's]"


def test_255_of_the_command_is_the_commands(guest: tuple[Book, GuestServer]) -> None:
    assert login.shell(guest[0], ["exit 255"]) == 255


def test_255_of_ssh_is_an_error_that_says_what_happened(guest: tuple[Book, GuestServer]) -> None:
    book, server = guest
    server.break_after_login = True
    with pytest.raises(GuestError, match="the SSH connection to VM 'work' broke") as caught:
        login.shell(book, ["true"])
    assert "ghostbox status work" in str(caught.value.hint)


def test_a_key_that_the_guest_does_not_know_is_an_error_with_what_to_wait_for(
    guest: tuple[Book, GuestServer], tmp_path: Path
) -> None:
    book, _ = guest
    book.files.client_key.unlink()
    ssh_keys.write_key(ssh_keys.generate_key("other"), book.files.client_key)
    with pytest.raises(GuestError, match="VM 'work' does not accept the login by SSH") as caught:
        login.shell(book, ["true"])
    assert "Permission denied" in str(caught.value.why)
    assert "ghostbox wait work" in str(caught.value.hint)


def test_another_host_key_is_an_error(guest: tuple[Book, GuestServer]) -> None:
    book, _ = guest
    text = book.files.known_hosts.read_text()
    other = ssh_keys.generate_key("x").public.split()[1]
    book.files.known_hosts.write_text(re.sub(r"\S+$", other, text.strip()) + "\n")
    with pytest.raises(GuestError, match="VM 'work' shows another SSH host key than GhostBox gave to it"):
        login.shell(book, ["true"])


def test_a_guest_that_boots_is_not_asked_by_ssh_and_the_error_says_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # QEMU does the same: it accepts connections and closes them

        def refuse() -> None:
            silent.settimeout(10)
            silent.accept()[0].close()

        threading.Thread(target=refuse, daemon=True).start()
        book = started_vm(tmp_path / "s", tmp_path / "r", silent.getsockname()[1])
        book.files.console_log.write_text("[    1.0] Booting\x1b[31m paravirtualized kernel\n")
        with pytest.raises(GuestError, match="VM 'work' still boots: its SSH server does not answer yet") as caught:
            login.shell(book, ["true"])
    assert caught.value.why == "the guest's console ends with: [    1.0] Booting paravirtualized kernel"
    assert caught.value.hint == "ghostbox wait work, or: ghostbox shell --wait work"


def test_a_guest_that_answered_before_is_asked_directly_and_its_end_is_told(guest: tuple[Book, GuestServer]) -> None:
    book, server = guest
    assert login.shell(book, ["true"]) == 0
    server.close()
    with pytest.raises(GuestError, match="VM 'work' does not answer by SSH") as caught:
        login.shell(book, ["true"])
    assert "onnection" in str(caught.value.why)
    started = book.record
    book.found = type(started)(**{**vars(started), "started_at": "2026-11-29T09:00:00+00:00"})
    with pytest.raises(GuestError, match="still boots"):
        login.shell(book, ["true"])


def test_nothing_that_listens_is_a_guest_that_boots(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="still boots") as caught:
        login.shell(started_vm(tmp_path / "s", tmp_path / "r", free_port()), ["true"])
    assert caught.value.why == "the guest's console is empty"


def test_an_agent_with_many_keys_locks_nobody_out(
    guest: tuple[Book, GuestServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, server = guest
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", tmp_path / "agent"], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        while not (tmp_path / "agent").exists():
            assert agent.poll() is None
        for number in range(8):
            ssh_keys.write_key(ssh_keys.generate_key(str(number)), tmp_path / f"k{number}")
            subprocess.run(["ssh-add", "-q", tmp_path / f"k{number}"], check=True)
        assert login.shell(book, ["true"]) == 0
    finally:
        agent.terminate()
        agent.wait(10)
    assert set(server.tries) == {ssh_keys.read_key(book.files.client_key).public.split()[1]}


@pytest.mark.parametrize(
    ("words", "name", "command"),
    [
        ((), None, ()),
        (("work",), "work", ()),
        (("work", "free", "-h"), "work", ("free", "-h")),
        (("work", "--", "free", "-h"), "work", ("free", "-h")),
        (("--", "free", "-h"), None, ("free", "-h")),
        (("--", "--", "-h"), None, ("--", "-h")),
        (("work", "git", "checkout", "--", "file"), "work", ("git", "checkout", "--", "file")),
        (("work", "--"), "work", ()),
    ],
)
def test_the_first_word_is_the_name_and_the_rest_is_the_command(
    words: tuple[str, ...], name: str | None, command: tuple[str, ...]
) -> None:
    assert split_words(words) == (name, command)


def test_the_configuration_is_what_ssh_takes_it_for(guest: tuple[Book, GuestServer]) -> None:
    told = subprocess.check_output(["ssh", "-F", guest[0].files.ssh_config, "-G", "ghostbox-work"], text=True)
    assert {"identitiesonly yes", "serveraliveinterval 15", "serveralivecountmax 40"} <= set(told.splitlines())
    assert guest[0].files.client_key.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("program", ["ssh", "scp"])
def test_a_client_that_is_not_installed_is_named(
    guest: tuple[Book, GuestServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    book, _ = guest
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramError, match=f"{program} is not installed") as caught:
        if program == "ssh":
            login.shell(book, ["true"])
        else:
            login.scp(book, [], ["x", "work:"])
    assert caught.value.hint == "install openssh-client"


def test_the_ssh_command_for_a_login_without_ghostbox_can_be_pasted(
    guest: tuple[Book, GuestServer], capfd: pytest.CaptureFixture[str]
) -> None:
    assert subprocess.run(["sh", "-c", f"{login.command(guest[0])} echo pasted"], check=False).returncode == 0
    assert capfd.readouterr().out == "pasted\n"
