# SPDX-License-Identifier: MIT
"""Ctrl-C, SIGTERM and SIGHUP while a VM is being made: they interrupt the work, never its undoing."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns the signals into KeyboardInterrupt, except inside `shielded`, where they are only remembered."""

    def __init__(self) -> None:
        self.pending = False
        self._shields = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Handle the signals until the end of the block (in the main thread; elsewhere nothing can be handled)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Finish the block whatever comes."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._shields:
            self.pending = True
            return
        raise KeyboardInterrupt
