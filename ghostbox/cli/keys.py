# SPDX-License-Identifier: MIT
"""Read keys that are pressed while a command watches something: ``q`` ends the command."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_END = frozenset(b"qQ")


@contextmanager
def pressed() -> Iterator[Callable[[float], bool]]:
    """Read single keys until the end of the block.

    Yields:
        A function that waits for a number of seconds and tells whether to go on; it returns at once when ``q`` is
        pressed. If stdin is no terminal, it only waits.
    """
    if not sys.stdin.isatty():
        yield _only_wait
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield lambda seconds: _wait(descriptor, seconds)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _only_wait(seconds: float) -> bool:
    time.sleep(seconds)
    return True


def _wait(descriptor: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            keys = os.read(descriptor, 64)
            if not keys:  # the terminal is gone
                return False
            if _END.intersection(keys):
                return False
    return True
