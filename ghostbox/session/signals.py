# SPDX-License-Identifier: MIT
"""Let Ctrl-C, SIGTERM and SIGHUP interrupt the making of a VM, but not the undoing after it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns the signals into KeyboardInterrupt, except inside `shielded`, which only sets ``pending``."""

    def __init__(self) -> None:
        self.pending = False
        self._shields = 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Handle the signals until the end of the block. Only the main thread can; in others this does nothing."""
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
        """Run the block to its end, whatever signals come."""
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
