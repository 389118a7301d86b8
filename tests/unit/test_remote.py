# SPDX-License-Identifier: MIT
"""What ssh says when it cannot log in is told with what to do; programs that are fed stop when they like."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.errors import DeadlineExceeded, GhostboxError, ProgramError, Refused, UsageError
from ghostbox.system import processes, remote
from ghostbox.system.remote import Remote

CHANGED = """@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
Host key verification failed.
"""


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (CHANGED, Refused, "ana@tower shows another SSH host key than the one that is known"),
        ("Host key verification failed.", Refused, "the SSH host key of ana@tower is not known here"),
        ("ana@tower: Permission denied (publickey).", ProgramError, "ana@tower does not let ssh log in"),
        ("ssh: Could not resolve hostname tower", ProgramError, "ssh cannot reach ana@tower"),
        ("", ProgramError, "ssh cannot reach ana@tower"),
    ],
)
def test_logins_that_fail(said: str, kind: type[GhostboxError], text: str) -> None:
    found = remote.failure("ana@tower", said)
    assert type(found) is kind
    assert found.message == text
    assert "tower" in (found.hint or "")


@pytest.mark.parametrize("target", ["", "-oProxyCommand=true", "two words", "-"])
def test_a_target_is_no_option(target: str) -> None:
    with pytest.raises(UsageError, match=r"is not \[USER@\]HOST"):
        Remote(target)


def test_a_program_gets_its_parts_and_says_how_it_ended() -> None:
    done = processes.feed(["sh", "-c", "cat; echo no >&2; exit 3"], [b"one ", b"two"])
    assert (done.status, done.stdout, done.stderr) == (3, "one two", "no\n")


def test_a_program_that_stops_reading_gets_no_more() -> None:
    n_given = 0

    def parts() -> Iterator[bytes]:
        nonlocal n_given
        while n_given < 1000:
            n_given += 1
            yield b"x" * 100_000

    done = processes.feed(["sh", "-c", "head -c 10; exit 5"], parts())
    assert (done.status, done.stdout) == (5, "x" * 10)
    assert n_given < 1000


def test_a_program_that_takes_too_long_is_ended() -> None:
    with pytest.raises(DeadlineExceeded, match="sleep did not finish within 0 s"):
        processes.feed(["sleep", "600"], timeout_s=0.2)


def test_an_interrupted_feed_ends_its_program() -> None:
    def parts() -> Iterator[bytes]:
        yield b"1\n"
        raise KeyboardInterrupt

    before = children()
    with pytest.raises(KeyboardInterrupt):
        processes.feed(["sh", "-c", "read x; exec sleep 600"], parts())
    assert children() == before


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_a_program_that_is_not_installed() -> None:
    with pytest.raises(ProgramError, match="cannot run ghostbox-no-such-program: not found"):
        processes.feed(["ghostbox-no-such-program"])
