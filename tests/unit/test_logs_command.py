# SPDX-License-Identifier: MIT
"""`ghostbox logs` of a VM that nothing has befallen, and of a guest that sends control sequences."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest

from ghostbox import paths
from ghostbox.session import Book, logs
from helpers.ssh_server import started_vm

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def book(ghostbox_cli: Cli) -> Book:
    files = paths.find().vm("work")
    return started_vm(files.state, files.runtime, port=1)


def test_no_events_are_no_error(book: Book, ghostbox_cli: Cli) -> None:
    done = ghostbox_cli("logs", "work", "--source", "events")
    assert (done.returncode, done.stdout) == (0, "")
    assert "nothing has befallen the memory of VM 'work'" in done.stderr


def test_a_log_that_there_should_be_is_missed(book: Book, ghostbox_cli: Cli) -> None:
    done = ghostbox_cli("logs", "work", "--source", "pager")
    assert (done.returncode, "error: VM 'work' has no pager log yet\nfix: ghostbox up work" in done.stderr) == (4, True)


def test_events_are_lines_without_control_characters_whatever_a_donor_said(book: Book, ghostbox_cli: Cli) -> None:
    text = "donor said: \x1b[2J\x1b]0;x\x07[bold]no\nforged  line\r\u202e"
    event = {"time": "2026-11-29T00:00:00+00:00", "event": "donor-down", "donor": None, "text": text}
    book.files.events.write_text(json.dumps(event) + "\n")
    done = ghostbox_cli("logs", "work", "--source", "events")
    [line] = done.stdout.splitlines()
    assert r"donor said: \x1b[2J\x1b]0;x\x07[bold]no forged  line\x0d\u202e" in line


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
