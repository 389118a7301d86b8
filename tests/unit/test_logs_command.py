# SPDX-License-Identifier: MIT
"""`ghostbox logs` shows a VM without events, and a guest that sends control sequences."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ghostbox import paths
from ghostbox.errors import GhostboxError
from ghostbox.session import Book, guest_files, logs
from ghostbox.system.hypervisor import domain_log, qemu_log
from helpers.other_user import NOBODY, as_user
from helpers.ssh_server import started_vm

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def book(quick_cli: Cli) -> Book:
    files = paths.find().vm("work")
    return started_vm(files.state, files.runtime, port=1)


def test_no_events_are_no_error(book: Book, quick_cli: Cli) -> None:
    done = quick_cli("logs", "work", "--source", "events")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing has happened to the memory of VM 'work'" in done.stderr


def test_a_log_that_there_should_be_is_missed(book: Book, quick_cli: Cli) -> None:
    done = quick_cli("logs", "work", "--source", "pager")
    assert (done.returncode, "error: VM 'work' has no pager log yet\nfix: ghostbox up work" in done.stderr) == (4, True)


def test_events_are_lines_without_control_characters_whatever_a_donor_said(book: Book, quick_cli: Cli) -> None:
    text = "donor said: \x1b[2J\x1b]0;x\x07[bold]no\nforged  line\r\u202e"
    event = {"time": "2026-11-29T00:00:00+00:00", "event": "donor-down", "donor": None, "text": text}
    book.files.events.write_text(json.dumps(event) + "\n")
    done = quick_cli("logs", "work", "--source", "events")
    [line] = done.stdout.splitlines()
    assert r"donor said: \x1b[2J\x1b]0;x\x07[bold]no forged  line\x0d\u202e" in line


@pytest.mark.parametrize("chosen", [True, False])
def test_the_log_of_qemu_under_a_session_libvirt_is_in_that_logins_cache(
    book: Book, quick_cli: Cli, tmp_path: Path, chosen: bool
) -> None:
    home, cache = tmp_path / "home", tmp_path / "my cache"
    environment = {"HOME": str(home)} | ({"XDG_CACHE_HOME": str(cache)} if chosen else {})
    record = book.record
    book.save(replace(record, libvirt_uri="qemu:///session", environment=environment))
    done = quick_cli("logs", "work", "--source", "qemu")
    assert (done.returncode, "VM 'work' has no qemu log yet" in done.stderr) == (4, True)

    log = (cache if chosen else home / ".cache") / f"libvirt/qemu/log/{record.domain}.log"
    log.parent.mkdir(parents=True)
    log.write_text("char device redirected to /dev/pts/1\n")
    done = quick_cli("logs", "work", "--source", "qemu")
    assert (done.returncode, done.stdout) == (0, "char device redirected to /dev/pts/1\n")


def test_a_session_libvirt_that_was_started_without_the_logins_cache_writes_to_the_usual_one(
    book: Book, tmp_path: Path
) -> None:
    environment = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "other")}
    file = tmp_path / ".cache/libvirt/qemu/log/ghostbox-work.log"
    assert qemu_log("qemu:///session", "ghostbox-work", environment).is_relative_to(tmp_path / "other")
    file.parent.mkdir(parents=True)
    file.touch()
    assert qemu_log("qemu:///session", "ghostbox-work", environment) == file


@pytest.mark.skipif(os.geteuid() != 0, reason="cannot run here: needs root to become another user")
@pytest.mark.parametrize("closed", ["file", "directory"])
def test_a_log_that_libvirt_wrote_for_root_alone_says_how_to_read_it(
    book: Book, closed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's libvirt writes so for an ordinary user's VM, too."""
    with tempfile.TemporaryDirectory(prefix="gbt-", dir="/tmp") as name:
        place = Path(name)
        place.chmod(0o755)
        shutil.copytree(book.files.state, place / "vms/work")
        (place / "logs").mkdir(mode=0o700 if closed == "directory" else 0o755)
        (log := place / f"logs/{book.record.domain}.log").touch(mode=0o600)
        monkeypatch.setattr(domain_log, "_SYSTEM", log.parent)
        monkeypatch.setenv("GHOSTBOX_STATE_DIR", name)
        found = paths.find()
        (place / "vms/work/vm.json").chmod(0o644)

        def error() -> GhostboxError | None:
            try:
                logs.find("work", logs.Source.QEMU, found)
            except GhostboxError as err:
                return err
            return None

        seen = as_user(error)
    assert seen is not None
    assert seen.message == f"the qemu log of VM 'work' cannot be read: {log}"
    assert (seen.why, seen.hint) == ("libvirt wrote it for root alone", f"sudo cat {log}")


@pytest.mark.parametrize("owner", [os.geteuid(), NOBODY])
def test_the_console_log_is_an_empty_one_of_the_users_before_libvirts_logger_opens_it(
    tmp_path: Path, owner: int
) -> None:
    (log := tmp_path / "console.log").write_text("the last boot's, or an earlier version's for root alone\n")
    if owner != os.geteuid() and os.geteuid() != 0:
        pytest.skip("cannot run here: needs root to give files away")
    os.chown(log, owner, -1)
    guest_files.begin_console_log(log)
    status = log.stat()
    assert (status.st_uid, status.st_mode & 0o777, status.st_size) == (os.geteuid(), 0o600, 0)


@pytest.mark.parametrize(
    "raw",
    ["\x1b[31mred\x1b[0m", "\x9b31mred", "\x1b]0;title\x07red", "\x1b]0;title\x1b\\red", "\x1bMr\x07ed\x85", "r\x00ed"],
)
def test_a_guests_console_is_shown_without_control_sequences(raw: str) -> None:
    assert logs.clean(raw) == "red"


def test_following_a_log_that_is_not_there_begins_when_it_is(book: Book) -> None:
    looks = 0

    def ended() -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:
            book.files.events.write_text("first\n")
        return looks > 2

    assert "".join(logs.follow([book.files.events], ended)) == "first\n"
