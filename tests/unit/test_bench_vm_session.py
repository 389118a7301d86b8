# SPDX-License-Identifier: MIT
"""What a killed run of ``bench --vm`` left is removed whatever signal comes, and the signal then ends the run."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from ghostbox import paths, session
from ghostbox.bench import vm_guests, vm_session
from ghostbox.demo import lenders
from ghostbox.errors import DeadlineExceeded, GuestError
from ghostbox.system.ssh import Result

LEFT = ["bench-999999999-ghostbox", "bench-999999999-swap"]


def test_ctrl_c_while_a_killed_run_is_tidied_up_ends_the_run_once_all_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    removed = []

    def delete(name: str, *_more: object, force: bool) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        removed.append((name, force))

    monkeypatch.setattr(session, "names", lambda _paths: [*LEFT, "mine"])
    monkeypatch.setattr(session, "delete", delete)
    monkeypatch.setattr(lenders, "running", lambda _paths: [])
    with pytest.raises(KeyboardInterrupt):
        vm_session.sweep(paths.find())
    assert removed == [(name, True) for name in LEFT]


class SilentSsh:
    """Be a guest that says no more while the load runs, and then hangs, or answers again."""

    def __init__(self, *, hangs: bool) -> None:
        self.hangs = hangs
        self.asked: list[str] = []

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Result:
        """Answer as GuestSsh does."""
        self.asked.append(command)
        if self.hangs:
            raise DeadlineExceeded(f"'{command}' in the guest did not end within {timeout_s:.0f} s")
        return Result(0, "", "")

    @contextlib.contextmanager
    def opened(self, command: str, *, silence_s: float) -> Iterator[SilentSsh]:
        """Answer as GuestSsh does."""
        self.silence_s = silence_s
        yield self

    def recv(self, n_bytes: int) -> bytes:
        """Fail as a channel of SSH does."""
        raise TimeoutError


@pytest.mark.parametrize("hangs", [True, False])
def test_a_load_that_says_nothing_fails_and_a_guest_that_hangs_is_not_asked_again(hangs: bool) -> None:
    ssh: Any = SilentSsh(hangs=hangs)
    guest = vm_guests.Guest("swap", ssh, silence_s=300.0)
    with pytest.raises(GuestError, match="^the load in guest 'swap' said nothing for 300 s$"):
        guest.load("memory bytes=4096 fill")
    assert (ssh.silence_s, ssh.asked) == (300.0, ["true"])
    if hangs:
        with pytest.raises(GuestError, match="^guest 'swap' hangs since 'memory bytes=4096 fill'$"):
            guest.root("sync")
        assert ssh.asked == ["true"]
    else:
        guest.root("sync")
        assert ssh.asked == ["true", "sudo sh -e"]


def test_a_command_that_takes_too_long_in_a_guest_that_hangs_is_the_last_one_there() -> None:
    ssh: Any = SilentSsh(hangs=True)
    guest = vm_guests.Guest("swap", ssh)
    with pytest.raises(DeadlineExceeded):
        guest.root("sync")
    with pytest.raises(GuestError, match="^guest 'swap' hangs since 'sudo sh -e'$"):
        guest.load("memory bytes=4096 fill")
    assert ssh.asked == ["sudo sh -e", "true"]
