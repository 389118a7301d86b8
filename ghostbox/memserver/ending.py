# SPDX-License-Identifier: MIT
"""End a memserver that still holds leases: it waits, names the holders, and asks before it gives memory up.

first signal (a terminal that closes counts)   no new leases; hosts see `draining`; ends with the last lease
every minute                                   names each holder, and what to do on its host
second signal                                  asks: ends N leases, once more within 10 s
    another signal within that time            ends (130), the leases are given up
--drain-timeout, if it is set                  ends (124), the leases are given up
"""

from __future__ import annotations

import asyncio
import logging
import shlex
import signal
import time
from collections.abc import Awaitable, Callable

from ghostbox.errors import DeadlineExceeded, GhostboxError, Interrupted
from ghostbox.memserver import records
from ghostbox.memserver.leases import DrainCause, Lease, LeaseBook
from ghostbox.system.processes import ControlError
from ghostbox.units import format_bytes, format_duration

_log = logging.getLogger(__name__)
CONFIRM_S = 10.0
"""A signal within this time after the question confirms it."""
_NO_ANSWER_S = 1.0  # a key that comes sooner was pressed before the question was read

WaitFor = Callable[[Callable[[], bool], float | None], Awaitable[bool]]


class Signals:
    """Keeps what the signals so far ask for: whether to end, whether to ask, whether the user has confirmed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked_at: float | None = None
        self._to_ask = False
        self.ending = False
        self.confirmed = False

    def note(self, number: int) -> None:
        """Take a signal. SIGHUP only begins the end: a closing terminal sends it to a program more than once."""
        if not self.ending:
            self.ending = True
        elif number == signal.SIGHUP:
            return
        elif self._asked_at is None or self._clock() - self._asked_at > CONFIRM_S:
            self._to_ask = True
        elif self._clock() - self._asked_at >= _NO_ANSWER_S:
            self.confirmed = True

    @property
    def to_ask(self) -> bool:
        """Tell whether to ask the question."""
        return self._to_ask

    def asked(self) -> None:
        """Note that the question was asked: the time for the answer begins."""
        self._to_ask = False
        self._asked_at = self._clock()


class Ending:
    """Waits for the last lease."""

    def __init__(
        self,
        name: str,
        book: LeaseBook,
        signals: Signals,
        *,
        address: str,
        timeout_s: float | None,
        remind_every_s: float,
    ) -> None:
        """Prepare the wait.

        Args:
            name: of the memserver.
            book: its leases.
            signals: the signals so far, and later ones.
            address: of the control API, as the holders may know it.
            timeout_s: the time after which the leases are given up; None waits without limit.
            remind_every_s: the time between two logs of what is waited for.
        """
        self._name = name
        self._book = book
        self._signals = signals
        self._address = address
        self._timeout_s = timeout_s
        self._remind_every_s = remind_every_s

    async def wait(self, wait_for: WaitFor) -> GhostboxError | None:
        """Wait, by ``wait_for``, until no lease is left; return the error to report if leases had to be given up.

        What takes the lock of the lease book runs in threads: the lock is held while a data plane starts.
        """
        await asyncio.to_thread(self._book.drain, DrainCause.ENDING)
        started = time.monotonic()
        while self._book.count() and not self._signals.confirmed:
            await asyncio.to_thread(self._log_holders)
            left_s = None if self._timeout_s is None else started + self._timeout_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return await asyncio.to_thread(self._give_up, self._too_late)
            pause_s = self._remind_every_s if left_s is None else min(self._remind_every_s, left_s)
            await wait_for(self._must_react, pause_s)
            if self._signals.to_ask and not self._signals.confirmed and self._book.count():
                self._ask()
        return await asyncio.to_thread(self._give_up, self._interrupted) if self._book.count() else None

    def _must_react(self) -> bool:
        return not self._book.count() or self._signals.to_ask or self._signals.confirmed

    def _ask(self) -> None:
        n = self._book.count()
        _log.warning("ends %d leases, their memory is lost: once more within %s", n, f"{CONFIRM_S:g} s")
        self._signals.asked()

    def _give_up(self, report: Callable[[str], GhostboxError]) -> GhostboxError:
        n_leases = self._book.count()
        _log.warning("ends now: %d leases are given up", n_leases)
        self._book.give_up()
        return report(f"memserver '{self._name}' ended with {n_leases} leases held: their memory is lost")

    def _too_late(self, message: str) -> GhostboxError:
        return DeadlineExceeded(
            message, why=f"they were not released within {format_duration(self._timeout_s or 0.0)} (--drain-timeout)"
        )

    def _interrupted(self, message: str) -> GhostboxError:
        return Interrupted(message, why="another signal confirmed the question")

    def _log_holders(self) -> None:
        try:
            lines = [line for lease in self._book.all() for line in self._holder_lines(lease)]
        except ControlError as err:
            lines = [err.message]
        limit = "" if self._timeout_s is None else f", after {format_duration(self._timeout_s)} at the latest"
        _log.warning(
            "leases are held, and no new ones are given: the memserver ends when the last lease is released%s"
            " (a second signal asks whether to end at once):\n%s",
            limit,
            "\n".join(f"  {line}" for line in lines),
        )

    def _holder_lines(self, lease: Lease) -> list[str]:
        """Return the holder of a lease, and what to do on its host. Names come from outside, so they are quoted."""
        holder = lease.record.holder
        if holder == records.UNKNOWN_HOLDER:
            return [str(lease)]
        vm = shlex.quote(holder.vm)
        move = f"ghostbox donor drain {self._address} --vm {vm}"
        return [
            f"{lease}, {format_bytes(lease.export.resident_bytes)} in use",
            f"  there, on {holder.host}: {move} (or --to-host), or ghostbox down {vm}",
        ]
