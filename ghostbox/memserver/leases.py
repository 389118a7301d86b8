# SPDX-License-Identifier: MIT
"""Who has how much of this donor's memory: the lease records, kept in step with the data plane's exports.

One lease is one export of the same name. Every change is written to the records before the data plane is told, so that
a control plane killed at any point leaves nothing that the next one cannot put right:

    record without incarnation, no export      the lease was never made: forgotten
    record without incarnation, export         it was made, nobody was told: completed, the holder is known
    record, export of another incarnation      the memory was lost: so is the lease
    record, no export                          the same
    export, no record                          memory that may be in use: kept, its holder unknown, said so

All methods may be called from any thread; one lock orders them.
"""

from __future__ import annotations

import enum
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ghostbox.errors import DonorError, hint_for
from ghostbox.memserver import records
from ghostbox.memserver.data_plane import DataPlane, Export, PlaneStatus
from ghostbox.memserver.records import Holder, LeaseRecord, Records
from ghostbox.processes import ControlError
from ghostbox.units import format_bytes

_log = logging.getLogger(__name__)


class LeaseRefused(DonorError):
    """A request that the donor refuses; ``code`` is the word that the HTTP API uses for it."""

    def __init__(self, message: str, *, code: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.code = code


class DrainCause(enum.StrEnum):
    """Why no new leases are given; each comes and goes on its own account."""

    ASKED = "asked"  # `ghostbox memserver drain`
    ENDING = "ending"  # SIGTERM or SIGINT
    PRESSURE = "pressure"  # the machine is short of memory


_REFUSAL = {
    DrainCause.ENDING: "is being shut down",
    DrainCause.ASKED: "is being drained",
    DrainCause.PRESSURE: "is short of memory",
}


@dataclass(frozen=True)
class Lease:
    """A lease and its export as they are now."""

    record: LeaseRecord
    export: Export

    def __str__(self) -> str:
        return (
            f"{self.record.name}: {format_bytes(self.record.size_bytes)}, held by {self.record.holder},"
            f" {self.export.connections} connections"
        )


@dataclass(frozen=True)
class BookStatus:
    """What ``GET /v1/status`` tells beside the memserver's name."""

    plane: PlaneStatus
    incarnation: str
    n_leases: int
    drain_causes: tuple[DrainCause, ...]
    memory_pressure: float | None


class LeaseBook:
    """The leases of one donor. ``on_change`` is called (in any thread) after a lease was made or released."""

    def __init__(self, plane: DataPlane, path: Path, kept: Records, on_change: Callable[[], None]) -> None:
        self._lock = threading.Lock()
        self._plane = plane
        self._path = path
        self._records = kept
        self._on_change = on_change
        self._causes: set[DrainCause] = {DrainCause.ASKED} if kept.drain_asked else set()
        self.memory_pressure: float | None = None
        """Share of the last 10 s in which something waited for memory, in percent; None where nobody looks."""

    def reconcile(self) -> None:
        """Bring the records in step with what an adopted (or a new, empty) data plane holds."""
        with self._lock:
            if self._plane.record != self._records.plane:  # what was drained is gone
                self._causes.discard(DrainCause.ASKED)
                self._records = replace(self._records, drain_asked=False)
            elif self._causes:
                _log.warning("draining, as it was asked to earlier (ghostbox memserver drain --undo takes that back)")
            exports = self._plane.status().exports
            kept = replace(self._records, plane=self._plane.record)
            for lease in self._records.leases.values():
                kept = _reconciled(kept, lease, exports.get(lease.name))
            for name in exports.keys() - self._records.leases.keys():
                export = exports[name]
                _log.warning("export %s has no lease record: kept, its holder is unknown", name)
                made_at = records.now()
                kept = kept.with_lease(
                    LeaseRecord(name, export.size_bytes, records.UNKNOWN_HOLDER, made_at, export.incarnation)
                )
            self._save(kept)

    def replace_plane(self, make_plane: Callable[[], DataPlane]) -> int:
        """Put a new, empty data plane in the place of one that died, and make its leases again.

        Each is of a new incarnation. Requests wait meanwhile. Returns how many leases lost their memory.

        Raises:
            ControlError: the new data plane died as well.
            GhostboxError: ``make_plane`` could not start one.
        """
        with self._lock:
            old, self._plane = self._plane, make_plane()
            old.close()
            kept = replace(self._records, plane=self._plane.record)
            for lease in self._records.leases.values():
                if lease.incarnation is None:  # whoever asked for it was told that it failed
                    kept = kept.without_lease(lease.name)
                    continue
                export = self._plane.add_export(lease.name, lease.size_bytes)
                _log.error("the memory of lease %s (held by %s) was lost", lease.name, lease.holder)
                kept = kept.with_lease(replace(lease, incarnation=export.incarnation))
            self._save_or_say(kept)
            return len(kept.leases)

    @property
    def plane(self) -> DataPlane:
        """The data plane of now."""
        return self._plane

    def control(self) -> tuple[tuple[str, int], ...]:
        """Return the addresses of the control API that holders of leases may know."""
        with self._lock:
            return self._records.control

    def note_control(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Keep where the control API is, for the next control plane."""
        with self._lock:
            if self._records.control != tuple(addresses):
                self._save_or_say(replace(self._records, control=tuple(addresses)))

    def count(self) -> int:
        """Return how many leases there are, without asking the data plane."""
        with self._lock:
            return len(self._records.leases)

    def drain(self, cause: DrainCause) -> None:
        """From now on refuse new leases; that it was asked for is kept for the next control plane.

        Raises:
            LeaseRefused: the records cannot be written; nothing has changed.
        """
        with self._lock:
            if cause is DrainCause.ASKED:
                self._save(replace(self._records, drain_asked=True))
            self._causes.add(cause)

    def stop_draining(self, cause: DrainCause) -> None:
        """Take one cause back; without any left, leases are given again.

        Raises:
            LeaseRefused: the records cannot be written; nothing has changed.
        """
        with self._lock:
            if cause is DrainCause.ASKED:
                self._save(replace(self._records, drain_asked=False))
            self._causes.discard(cause)

    def stop_plane(self) -> None:
        """End the data plane, and all memory with it."""
        with self._lock:
            self._plane.stop()

    def give_up(self) -> None:
        """Note that all leases lose their memory now, because this donor ends with leases held."""
        with self._lock:
            kept = self._records
            for lease in self._records.leases.values():
                kept = kept.with_lost(lease)
            self._save_or_say(kept)

    def status(self) -> BookStatus:
        """Return sizes and counts."""
        with self._lock:
            plane = self._plane.status()
            causes = tuple(sorted(self._causes))
            incarnation = self._plane.record.incarnation
            return BookStatus(plane, incarnation, len(self._records.leases), causes, self.memory_pressure)

    def all(self) -> list[Lease]:
        """Return all leases by name."""
        with self._lock:
            exports = self._plane.status().exports
            leases = self._records.leases
            return [Lease(leases[name], exports[name]) for name in sorted(leases.keys() & exports.keys())]

    def get(self, name: str) -> Lease:
        """Return one lease.

        Raises:
            LeaseRefused: ``not-found``; the message tells a lease that was lost from one that never was.
        """
        with self._lock:
            record = self._find(name)
            export = self._plane.status().exports.get(name)
            if export is None:
                raise _lost(record)
            return Lease(record, export)

    def create(self, name: str, size_bytes: int, holder: Holder) -> Lease:
        """Make a lease.

        Raises:
            LeaseRefused: ``exists`` or ``draining``.
            ControlError: the data plane refuses: ``too-small``, ``invalid``, ``gone``.
        """
        with self._lock:
            self._check_new(name)
            before = self._records
            record = LeaseRecord(name, size_bytes, holder, records.now(), None)
            self._save(before.with_lease(record))
            try:
                export = self._plane.add_export(name, size_bytes)
            except ControlError as err:
                if err.code != "gone":  # otherwise it may have been made: reconcile and replace_plane settle it
                    self._save(before)
                raise
            record = replace(record, incarnation=export.incarnation)
            self._save(self._records.with_lease(record))
        _log.info("lease %s: %s for %s", name, format_bytes(size_bytes), holder)
        self._on_change()
        return Lease(record, export)

    def release(self, name: str, *, force: bool) -> None:
        """End a lease and give its memory back.

        Raises:
            LeaseRefused: ``not-found``.
            ControlError: ``busy`` (connections are open and not ``force``), or ``gone``.
        """
        with self._lock:
            self._find(name)
            try:
                self._plane.remove_export(name, force=force)
            except ControlError as err:
                if err.code != "not-found":
                    raise
            self._save(self._records.without_lease(name))
        _log.info("lease %s: released", name)
        self._on_change()

    def _check_new(self, name: str) -> None:
        for cause, what in _REFUSAL.items():
            if cause in self._causes:
                raise LeaseRefused(
                    f"this donor {what} and gives no new leases", code="draining", hint="use another donor"
                )
        found = self._records.leases.get(name)
        if found is not None:
            raise LeaseRefused(
                f"a lease named '{name}' exists: {format_bytes(found.size_bytes)}, held by {found.holder}",
                code="exists",
                hint="choose another name, or release it first",
            )

    def _find(self, name: str) -> LeaseRecord:
        if name in self._records.leases:
            return self._records.leases[name]
        if name in self._records.lost:
            raise _lost(self._records.lost[name])
        raise LeaseRefused(f"no lease named '{name}'", code="not-found")

    def _save_or_say(self, kept: Records) -> None:
        """Note what has happened and cannot be undone; the next change writes it, too, if it cannot be written now."""
        try:
            self._save(kept)
        except LeaseRefused as err:
            _log.error("%s (%s)", err, err.hint)
            self._records = kept

    def _save(self, kept: Records) -> None:
        try:
            records.save(self._path, kept)
        except OSError as err:
            raise LeaseRefused(
                f"cannot write the lease records {self._path}: {err.strerror}",
                code="internal",
                hint=hint_for(err, "see that it can be written"),
            ) from err
        self._records = kept


def _lost(record: LeaseRecord) -> LeaseRefused:
    return LeaseRefused(
        f"no lease named '{record.name}': its memory ({format_bytes(record.size_bytes)}, held by {record.holder})"
        " was lost",
        code="not-found",
        hint="make a new lease; what the old one held is gone",
    )


def _reconciled(kept: Records, lease: LeaseRecord, export: Export | None) -> Records:
    """Return the records after one lease was held against its export."""
    if export is None and lease.incarnation is None:
        return kept.without_lease(lease.name)
    if export is not None and lease.incarnation in (None, export.incarnation):
        return kept.with_lease(replace(lease, incarnation=export.incarnation))
    _log.error(
        "lease %s (%s, held by %s) is gone: its memory was lost",
        lease.name,
        format_bytes(lease.size_bytes),
        lease.holder,
    )
    return kept.with_lost(lease)
