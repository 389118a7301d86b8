# SPDX-License-Identifier: MIT
"""Write into the audit log which client is stopped by a limit in the data plane, which counts that.

A client that is stopped again and again has a line a minute for each limit. What happened while no control plane ran
has no line. Waits for bandwidth are no events: they are what such a limit is for, and `memserver clients` counts them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ghostbox.donors.models import Holder
from ghostbox.memserver.audit import AuditLog, Event
from ghostbox.memserver.leases import LeaseBook
from ghostbox.memserver.model import PlaneClient
from ghostbox.memserver.refusal import RequestRefused
from ghostbox.memserver.role_store import Standing
from ghostbox.system.processes import ControlError
from ghostbox.units import format_bytes

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0
LINE_EVERY_S = 60.0


@dataclass
class _Kind:
    """Holds what was counted of one limit of one client, how much of that is in the log, and since when."""

    counted: int
    said: int
    said_at: float


@dataclass
class LimitHits:
    """Compares what the data plane counts with what it has counted before."""

    log: AuditLog
    clock: Callable[[], float] = time.monotonic
    _seen: dict[tuple[str, str], _Kind] = field(default_factory=dict)
    _begun: bool = False

    def look(self, clients: Iterable[PlaneClient], standings: Mapping[str, Standing]) -> None:
        """Write what is new. Of the first look nothing is: the counters are older than this control plane."""
        for client in clients:
            counters = {"memory": client.counters.writes_refused, "connections": client.counters.connections_refused}
            for code, count in counters.items():
                self._look_at(client, code, count, standings.get(client.client))
        self._begun = True

    def _look_at(self, client: PlaneClient, code: str, count: int, standing: Standing | None) -> None:
        start = 0 if self._begun else count
        known = self._seen.setdefault((client.client, code), _Kind(start, start, self.clock() - LINE_EVERY_S))
        if count < known.counted:  # another data plane counts, or this one had forgotten the client
            known.said = 0
        known.counted = count
        new = count - known.said
        if new == 0 or self.clock() - known.said_at < LINE_EVERY_S:
            return
        known.said, known.said_at = count, self.clock()
        holder = None if standing is None else Holder(standing.host, "")
        self.log.note(
            Event.LIMIT_HIT, holder=holder, client=client.client, code=code, reason=_reason(code, new, client, standing)
        )


def _reason(code: str, new: int, client: PlaneClient, standing: Standing | None) -> str:
    limits = None if standing is None else standing.limits
    if code == "memory":
        most = None if limits is None or limits.memory_bytes is None else format_bytes(limits.memory_bytes)
        held = f"{format_bytes(client.resident_bytes)} of {most}" if most else format_bytes(client.resident_bytes)
        return f"{new} writes got ENOSPC: its leases have {held}"
    most = "all" if limits is None or limits.connections is None else str(limits.connections)
    return f"{new} connections were refused: {client.connections} of {most} are open"


async def watch(book: LeaseBook, log: AuditLog) -> None:
    """Look every two seconds."""
    hits = LimitHits(log)
    while True:
        try:
            await asyncio.to_thread(lambda: hits.look(book.use().values(), book.standings()))
        except (ControlError, RequestRefused) as err:  # the data plane is being started again; the file's disk is full
            _log.debug("limits that are hit are not looked at: %s", err)
        await asyncio.sleep(LOOK_EVERY_S)
