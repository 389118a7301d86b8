# SPDX-License-Identifier: MIT
"""Kill a process at a chosen call, to see what it leaves behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest


def killed_at(owner: Any, name: str, work: Callable[[], object]) -> None:
    """Do ``work`` in a process of its own that is killed at its first call of ``owner.name``."""
    pid = os.fork()
    if pid == 0:
        try:
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(owner, name, lambda *_args, **_words: os.kill(os.getpid(), signal.SIGKILL))
                work()
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"it never called {name}"
