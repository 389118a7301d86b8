# SPDX-License-Identifier: MIT
"""How a memserver ends that still holds leases: it waits, says what for, and asks before it gives memory up.

first signal (a terminal that closes counts)   no new leases; hosts see `draining`; ends with the last lease
every minute                                   says who holds what, and what they can do
second signal                                  asks: ends N leases, once more within 10 s
    another one within that time                   ends (130), the leases are given up
--drain-timeout, if there is one               ends (124), the leases are given up
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
from ghostbox.processes import ControlError
from ghostbox.units import format_bytes, format_duration

_log = logging.getLogger(__name__)
CONFIRM_S = 10.0
"""So long after the question another signal is the answer."""
_NO_ANSWER_S = 1.0  # not so soon: a key that is hit several times answers nothing that nobody has read

WaitFor = Callable[[Callable[[], bool], float | None], Awaitable[bool]]


class Signals:
    """The signals that came: whether to end, whether to ask, whether that was answered."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked_at: float | None = None
        self._to_ask = False
        self.ending = False
        self.confirmed = False

    def note(self, number: int) -> None:
        """Take a signal. SIGHUP begins, and no more: a terminal that closes sends it to a program more than once."""
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
        """Tell whether the question is to be put."""
        return self._to_ask

    def asked(self) -> None:
        """Note that it was put: the time for its answer runs from now on."""
        self._to_ask = False
        self._asked_at = self._clock()


class Ending:
    """The wait for the last lease."""

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
        """Prepare.

        Args:
            name: of the memserver.
            book: its leases.
            signals: what came, and what comes.
            address: of the control API, as the holders may know it.
            timeout_s: after which the leases are given up; None: never.
            remind_every_s: how often it says what it waits for.
        """
        self._name = name
        self._book = book
        self._signals = signals
        self._address = address
        self._timeout_s = timeout_s
        self._remind_every_s = remind_every_s

    async def wait(self, wait_for: WaitFor) -> GhostboxError | None:
        """Wait until no lease is left, by ``wait_for``; returns what to report if some had to be given up."""
        self._book.drain(DrainCause.ENDING)
        started = time.monotonic()
        while self._book.count() and not self._signals.confirmed:
            await asyncio.to_thread(self._say_who_holds)
            left_s = None if self._timeout_s is None else started + self._timeout_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return self._given_up(self._too_late)
            pause_s = self._remind_every_s if left_s is None else min(self._remind_every_s, left_s)
            await wait_for(self._has_news, pause_s)
            if self._signals.to_ask and not self._signals.confirmed and self._book.count():
                self._ask()
        return self._given_up(self._interrupted) if self._book.count() else None

    def _has_news(self) -> bool:
        return not self._book.count() or self._signals.to_ask or self._signals.confirmed

    def _ask(self) -> None:
        n = self._book.count()
        _log.warning("ends %d leases, their memory is lost: once more within %s", n, f"{CONFIRM_S:g} s")
        self._signals.asked()

    def _given_up(self, report: Callable[[str], GhostboxError]) -> GhostboxError:
        n_leases = self._book.count()
        _log.warning("ends now: %d leases are given up", n_leases)
        self._book.give_up()
        return report(f"memserver '{self._name}' ended with {n_leases} leases held: their memory is lost")

    def _too_late(self, message: str) -> GhostboxError:
        return DeadlineExceeded(
            message, why=f"they were not released within {format_duration(self._timeout_s or 0.0)} (--drain-timeout)"
        )

    def _interrupted(self, message: str) -> GhostboxError:
        return Interrupted(message, why="signals came again after it had asked")

    def _say_who_holds(self) -> None:
        try:
            lines = [line for lease in self._book.all() for line in self._about(lease)]
        except ControlError as err:
            lines = [err.message]
        limit = "" if self._timeout_s is None else f", after {format_duration(self._timeout_s)} at the latest"
        _log.warning(
            "leases are held, new ones are not given: it ends when the last one is released%s"
            " (a second signal asks whether to end at once):\n%s",
            limit,
            "\n".join(f"  {line}" for line in lines),
        )

    def _about(self, lease: Lease) -> list[str]:
        """Return who holds it, and what they can do. Names come from outside: they are quoted."""
        holder = lease.record.holder
        if holder == records.UNKNOWN_HOLDER:
            return [str(lease)]
        vm = shlex.quote(holder.vm)
        move = f"ghostbox donor drain {self._address} --vm {vm}"
        return [
            f"{lease}, {format_bytes(lease.export.resident_bytes)} in use",
            f"  there, on {holder.host}: {move} (or --to-host), or ghostbox down {vm}",
        ]
