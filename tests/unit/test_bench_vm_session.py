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
from ghostbox.errors import GuestError

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
    """Be a guest that hangs while the load runs."""

    @contextlib.contextmanager
    def opened(self, command: str, *, silence_s: float) -> Iterator[SilentSsh]:
        """Answer as GuestSsh does."""
        self.silence_s = silence_s
        yield self

    def recv(self, n_bytes: int) -> bytes:
        """Fail as a channel of SSH does."""
        raise TimeoutError


def test_a_load_in_a_guest_that_hangs_fails_after_the_longest_silence() -> None:
    ssh: Any = SilentSsh()
    with pytest.raises(GuestError, match="^the load in guest 'swap' said nothing for 300 s$"):
        vm_guests.Guest("swap", ssh, silence_s=300.0).load("memory bytes=4096 fill")
    assert ssh.silence_s == 300.0
