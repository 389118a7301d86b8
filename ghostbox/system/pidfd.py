# SPDX-License-Identifier: MIT
"""Hold processes by a descriptor, pidfd_open(2), while they are watched and ended.

A process id may belong to another process a moment after it was found. A descriptor stays with its process: a signal
that is sent through it reaches that process or none, and it becomes readable when the process has ended, whichever
process its parent is.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from ghostbox.errors import ProgramError
from ghostbox.system.closing import Closing

_KILL_S = 5.0


class Process(Closing):
    """Is a held process, and a context manager. ``descriptor`` becomes readable when the process has ended."""

    def __init__(self, pid: int) -> None:
        """Open a descriptor of the process.

        Raises:
            ProcessLookupError: there is no process with that id.
        """
        self.pid = pid
        self.descriptor = os.pidfd_open(pid)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; return False if the process is gone.

        Raises:
            PermissionError: the process belongs to another user.
        """
        try:
            signal.pidfd_send_signal(self.descriptor, number)
        except ProcessLookupError:
            return False
        return True

    def ended(self, timeout_s: float = 0.0) -> bool:
        """Tell whether the process has ended, or does within ``timeout_s``."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def end(self, *, timeout_s: float = 10.0) -> None:
        """End the process: SIGTERM, then SIGKILL after ``timeout_s``. A process that is gone is no error.

        Raises:
            ProgramError: the process does not end.
        """
        for number, wait_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, _KILL_S)):
            if not self.send(number) or self.ended(wait_s):
                return
        raise ProgramError(f"process {self.pid} does not end")


@contextmanager
def held(find: Callable[[], Iterable[int]]) -> Iterator[list[Process]]:
    """Hold the processes that ``find`` finds, and still finds once they are held, until the end of the block."""
    with ExitStack() as stack:
        caught = []
        for pid in find():
            try:
                caught.append(stack.enter_context(Process(pid)))
            except ProcessLookupError:
                continue
        still = set(find()) if caught else set()
        yield [process for process in caught if process.pid in still]


def end_all(find: Callable[[], Iterable[int]], *, timeout_s: float = 10.0) -> None:
    """End the processes that ``find`` finds, except this one.

    Raises:
        ProgramError: a process does not end.
    """
    with held(find) as found:
        for process in found:
            if process.pid != os.getpid():
                process.end(timeout_s=timeout_s)
