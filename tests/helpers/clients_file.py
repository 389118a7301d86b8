# SPDX-License-Identifier: MIT
"""Give tests a donor's file of clients that is open, with a clock that they set. They are fixtures for modules:

clock, file, store = clients_file.clock, clients_file.file, clients_file.store
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ghostbox.memserver.clients import ClientStore, open_store
from helpers.clocks import SetClock

DONOR = "d0" * 8
"""The id of the donor whose file it is."""


@pytest.fixture
def clock() -> SetClock:
    """Return the clock by which the store keeps times."""
    return SetClock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return the file's path."""
    return tmp_path / "clients.sqlite3"


@pytest.fixture
def store(file: Path, clock: SetClock) -> Iterator[ClientStore]:
    """Yield the file, open; what is written to it does not wait for the disk."""
    with open_store(file, DONOR, clock) as opened:
        opened._connection.execute("PRAGMA synchronous = OFF")  # no test that uses it cuts the power
        yield opened


def killed(step: Callable[[Callable[[str], None]], object], after: int) -> int:
    """Run a step in a process of its own, which is killed before its statement number ``after``; return its status.

    The step gets what is to be called with each statement.
    """
    pid = os.fork()
    if pid == 0:
        left = after

        def count(_statement: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            step(count)
            os._exit(0)
        finally:
            sys.stderr.flush()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status
