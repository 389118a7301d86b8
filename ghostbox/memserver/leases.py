# SPDX-License-Identifier: MIT
"""Keep the leases of a donor: its lease records, in step with the data plane's exports.

A lease has one export of the same name. Every change is written to the records before the data plane is told, so that
the next control plane can finish whatever a killed one has begun:

    record without incarnation, no export      the lease was never made: its record goes
    record without incarnation, export         the export was made, the host got no answer: the record is completed
    record, export of another incarnation      the memory was lost: so is the lease
    record, no export                          the same
    export, no record                          memory that may be in use: kept with an unknown holder, and logged

On a secure donor each lease has a random key, which its client is told and which is in the records. A client (None: the
donor's owner) sees and ends its own leases only: of another's it learns no more than that the name is taken. What the
owner does to a client, its limits too, is first in the clients' file and then done to its leases, by this book, or by
the next one. A client's limits are in the data plane before its first export is.

All methods may be called from any thread; one lock orders them. It is held while a data plane starts (`replace_plane`),
which takes seconds, so the event loop calls only those that do not wait for it: `count` and `control` read the records,
which are never changed but replaced.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ghostbox.donors.models import Holder
from ghostbox.errors import hint_for
from ghostbox.memserver import audit_gaps, limits, records
from ghostbox.memserver.audit import AuditLog, Event
from ghostbox.memserver.clients import Client, State
from ghostbox.memserver.data_plane import DataPlane
from ghostbox.memserver.limits import Held
from ghostbox.memserver.model import Export, PlaneClient, PlaneStatus
from ghostbox.memserver.records import LeaseRecord, Records
from ghostbox.memserver.refusal import RequestRefused
from ghostbox.memserver.role_store import Standing
from ghostbox.memserver.roles import Limits
from ghostbox.system.answers import MISFIT
from ghostbox.system.processes import ControlError
from ghostbox.units import format_bytes

_log = logging.getLogger(__name__)


class LeaseRefused(RequestRefused):
    """Is raised for a request about leases that the donor refuses."""


class DrainCause(enum.StrEnum):
    """Names a reason for giving no new leases; each begins and ends by itself."""

    ASKED = "asked"  # `ghostbox memserver drain`
    ENDING = "ending"  # SIGTERM or SIGINT
    PRESSURE = "pressure"  # the machine is short of memory


_KEY_BYTES = 32
_REFUSAL = {
    DrainCause.ENDING: "is being shut down",
    DrainCause.ASKED: "is being drained",
    DrainCause.PRESSURE: "is short of memory",
}


@dataclass(frozen=True)
class Lease:
    """Holds a lease's record and its export's present state."""

    record: LeaseRecord
    export: Export

    def __str__(self) -> str:
        return (
            f"{self.record.name}: {format_bytes(self.record.size_bytes)}, held by {self.record.holder},"
            f" {self.export.connections} connections"
        )


@dataclass(frozen=True)
class BookStatus:
    """Holds what ``GET /v1/status`` says beside the memserver's identity."""

    plane: PlaneStatus
    incarnation: str
    n_leases: int
    drain_causes: tuple[DrainCause, ...]
    memory_pressure: float | None


class LeaseBook:
    """Keeps the leases of one donor. ``on_change`` is called (in any thread) after a lease was made or released.

    Changes and refusals go to the audit log; ``address`` is where the request for one came from. ``standings`` returns
    the state and the limits of each client of a secure donor, which lends so many bytes, and whose leases have keys. It
    is None where there is no pairing.
    """

    def __init__(
        self,
        plane: DataPlane,
        path: Path,
        kept: Records,
        on_change: Callable[[], None],
        audit: AuditLog,
        *,
        standings: Callable[[int], Mapping[str, Standing]] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._plane = plane
        self._path = path
        self._records = kept
        self._on_change = on_change
        self._audit = audit
        self._keyed = standings is not None
        self._standings = standings
        self._causes: set[DrainCause] = {DrainCause.ASKED} if kept.drain_asked else set()
        self.memory_pressure: float | None = None
        """The share of the last 10 s in which a task waited for memory, in percent; None if it is not read."""

    def reconcile(self) -> None:
        """Bring the records in step with the exports of an adopted, or a new and empty, data plane."""
        with self._lock:
            if self._plane.record != self._records.plane:  # the drain was for the former data plane's memory
                self._causes.discard(DrainCause.ASKED)
                self._records = replace(self._records, drain_asked=False)
            elif self._causes:
                _log.warning("still draining, as asked earlier (ghostbox memserver drain --undo takes that back)")
            exports = self._plane.status().by_name
            before = self._records
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
            self._follow_states()
            for lease in before.leases.values():
                if lease.name not in kept.leases and lease.incarnation is not None:
                    self._note_lost(lease, "the data plane that held it is gone")
            audit_gaps.fill(self._audit, kept)

    def replace_plane(self, make_plane: Callable[[], DataPlane]) -> int:
        """Put a new, empty data plane in the place of one that died, and make its leases again.

        Each lease gets a new incarnation. Requests wait meanwhile. Returns how many leases lost their memory.

        Raises:
            ControlError: the new data plane died as well.
            GhostboxError: ``make_plane`` could not start a data plane.
        """
        with self._lock:
            old, self._plane = self._plane, make_plane()
            old.close()
            self._follow_states()  # before there is an export that a client could open
            kept = replace(self._records, plane=self._plane.record)
            for lease in self._records.leases.values():
                if lease.incarnation is None:  # the host that asked for this lease got an error
                    kept = kept.without_lease(lease.name)
                    continue
                _log.error("the memory of lease %s (held by %s) was lost", lease.name, lease.holder)
                self._note_lost(lease, "the data plane died")
                if self._keyed and lease.tls_psk is None:  # its record was lost, and its key with it
                    kept = kept.with_lost(lease)
                    continue
                export = self._plane.add_export(
                    lease.name, lease.size_bytes, tls_psk=lease.tls_psk, client=lease.client
                )
                kept = kept.with_lease(replace(lease, incarnation=export.incarnation))
            self._save_or_log(kept)
            return len(kept.leases)

    @property
    def plane(self) -> DataPlane:
        """Return the present data plane."""
        return self._plane

    @property
    def lent_bytes(self) -> int:
        """Return the memory that this donor lends in all."""
        return self._plane.settings.size_bytes

    def standings(self) -> Mapping[str, Standing]:
        """Return the state and the limits of each client, by its id.

        Raises:
            RequestRefused: the file of the clients cannot be read.
        """
        return {} if self._standings is None else self._standings(self.lent_bytes)

    def control(self) -> tuple[tuple[str, int], ...]:
        """Return the addresses of the control API that holders of leases may know, without waiting for the lock."""
        return self._records.control

    def note_control(self, addresses: Sequence[tuple[str, int]]) -> None:
        """Record the control API's addresses for the next control plane."""
        with self._lock:
            if self._records.control != tuple(addresses):
                self._save_or_log(replace(self._records, control=tuple(addresses)))

    def count(self) -> int:
        """Return how many leases there are, without asking the data plane or waiting for the lock."""
        return len(self._records.leases)

    def drain(self, cause: DrainCause, *, address: str | None = None) -> None:
        """Refuse new leases from now on; the cause `ASKED` is recorded for the next control plane.

        Raises:
            LeaseRefused: the records cannot be written; nothing has changed.
        """
        with self._lock:
            if cause is DrainCause.ASKED:
                self._save(replace(self._records, drain_asked=True))
            if cause not in self._causes:
                self._audit.note(Event.DRAIN_BEGUN, address=address, reason=cause)
            self._causes.add(cause)

    def stop_draining(self, cause: DrainCause, *, address: str | None = None) -> None:
        """Take one cause back; when no cause is left, leases are given again.

        Raises:
            LeaseRefused: the records cannot be written; nothing has changed.
        """
        with self._lock:
            if cause is DrainCause.ASKED:
                self._save(replace(self._records, drain_asked=False))
            if cause in self._causes:
                self._audit.note(Event.DRAIN_ENDED, address=address, reason=cause)
            self._causes.discard(cause)

    def stop_plane(self) -> None:
        """End the data plane, which frees all lent memory."""
        with self._lock:
            self._plane.stop()

    def give_up(self) -> None:
        """Record that all leases lose their memory, because this donor ends while they are held."""
        with self._lock:
            kept = self._records
            for lease in self._records.leases.values():
                kept = kept.with_lost(lease)
                self._note_lost(lease, "this donor ended")
            self._save_or_log(kept)

    def status(self) -> BookStatus:
        """Return the status of the data plane and of the leases."""
        with self._lock:
            plane = self._plane.status()
            causes = tuple(sorted(self._causes))
            incarnation = self._plane.record.incarnation
            return BookStatus(plane, incarnation, len(self._records.leases), causes, self.memory_pressure)

    def use(self) -> dict[str, PlaneClient]:
        """Return what the data plane says of each client that it knows, by its id.

        Raises:
            ControlError: the data plane is gone.
        """
        with self._lock:
            return {each.client: each for each in self._plane.status().clients}

    def held(self, client: str, use: PlaneClient | None = None) -> Held:
        """Return what a client has; ``use`` is what the data plane says of it."""
        with self._lock:
            return self._held(client, use)

    def let_go(self, client: Client, strike_out: Callable[[], None]) -> None:
        """Call ``strike_out`` for a client that holds no lease; it makes none meanwhile.

        Raises:
            LeaseRefused: ``busy``.
        """
        with self._lock:
            held = self._held(client.id).leases
            if held:
                hint = "end the VMs that use them, or drain them away"
                raise LeaseRefused(f"this host holds {held} leases here", code="busy", hint=hint)
            strike_out()
            with contextlib.suppress(ControlError):  # limits of nobody do no harm
                self._plane.let_in(client.id, Limits())

    def follow(self, client: Client, *, address: str | None = None) -> int:
        """Do to a client's leases what its state and its limits in the file say; return how many of them were ended.

        A suspended client's connections end and do not come back until it is active; a revoked client's leases end.

        Raises:
            ControlError: the data plane is gone; the next one follows. Or it is of an older version.
        """
        with self._lock:
            standing = self.standings().get(client.id)  # another request may have changed it since
            state = client.state if standing is None else standing.state
            if state is State.SUSPENDED:
                self._plane.shut_out(client.id)
                return 0
            ended = self._end_leases(client.id, address) if state is State.REVOKED else 0
            # A client that has neither leases nor limits is forgotten.
            allowed = Limits() if standing is None or state is State.REVOKED else standing.limits
            self._plane.let_in(client.id, allowed)
            return ended

    def follow_limits(self) -> None:
        """Have the data plane follow the limits of all clients that hold leases, after a role has changed.

        Raises:
            ControlError: the data plane is gone; the next one follows.
        """
        with self._lock:
            self._follow_states()

    def _follow_states(self) -> None:
        """Do to all leases what their clients' states and limits say, on a data plane that the book just got, too."""
        standings = self.standings()
        holders = {lease.client for lease in self._records.leases.values() if lease.client is not None}
        for client in sorted(holders):
            standing = standings.get(client)
            if standing is None:  # the file of the clients was lost; their leases are kept
                self._plane.let_in(client, Limits())
            elif standing.state is State.REVOKED:
                self._end_leases(client, None)
            elif standing.state is State.SUSPENDED:
                try:
                    self._plane.shut_out(client)
                except ControlError as err:
                    if err.code != "unknown-command":
                        raise
                    _log.error("client %s is suspended, and the data plane is too old to shut it out", client)
            else:
                self._plane.let_in(client, standing.limits)

    def _end_leases(self, client: str, address: str | None) -> int:
        """End a revoked client's leases; return how many there were."""
        gone = [lease for lease in self._records.leases.values() if lease.client == client]
        for lease in gone:
            try:
                self._plane.remove_export(lease.name, force=True)
            except ControlError as err:
                if err.code != "not-found":
                    raise
            self._save_or_log(self._records.without_lease(lease.name))
            self._note_end(lease, address, "its client was revoked")
        if gone:
            self._on_change()
        return len(gone)

    def _note_end(self, lease: LeaseRecord, address: str | None, reason: str | None) -> None:
        self._audit.note(
            Event.LEASE_ENDED,
            address=address,
            holder=lease.holder,
            client=lease.client,
            lease=lease.name,
            size_bytes=lease.size_bytes,
            reason=reason,
        )
        _log.info("lease %s: released%s", lease.name, f", {reason}" if reason else "")

    def all(self, client: Client | None = None) -> list[Lease]:
        """Return all leases that the client sees, sorted by name."""
        with self._lock:
            exports = self._plane.status().by_name
            leases = {name: lease for name, lease in self._records.leases.items() if _sees(client, lease)}
            return [Lease(leases[name], exports[name]) for name in sorted(leases.keys() & exports.keys())]

    def get(self, name: str, client: Client | None = None) -> Lease:
        """Return one lease.

        Raises:
            LeaseRefused: ``not-found``; the message tells a lease whose memory was lost from one that was never made.
        """
        with self._lock:
            record = self._find(name, client)
            export = self._plane.status().by_name.get(name)
            if export is None:
                raise _lost(record)
            return Lease(record, export)

    def create(
        self, name: str, size_bytes: int, holder: Holder, *, address: str | None = None, client: Client | None = None
    ) -> Lease:
        """Make a lease.

        Raises:
            LeaseRefused: ``exists``, ``draining``, ``over-limit``, or ``internal`` if the records cannot be written.
            ControlError: the data plane refuses: ``too-small``, ``invalid``, ``gone``; or ``misfit``.
        """
        number = None if client is None else client.id
        try:
            lease = self._make(name, size_bytes, holder, client)
        except (LeaseRefused, ControlError) as err:
            self._audit.note(
                Event.LEASE_REFUSED,
                address=address,
                holder=holder,
                client=number,
                lease=name,
                size_bytes=size_bytes,
                code=err.code,
                reason=err.message,
            )
            raise
        self._audit.note(
            Event.LEASE_MADE, address=address, holder=holder, client=number, lease=name, size_bytes=size_bytes
        )
        _log.info("lease %s: %s for %s", name, format_bytes(size_bytes), holder)
        self._on_change()
        return lease

    def _make(self, name: str, size_bytes: int, holder: Holder, client: Client | None) -> Lease:
        with self._lock:
            standing = self._check_new(name, size_bytes, client)
            if client is not None and standing is not None:
                self._plane.let_in(client.id, standing.limits)
            before = self._records
            key = secrets.token_hex(_KEY_BYTES) if self._keyed else None
            record = LeaseRecord(
                name, size_bytes, holder, records.now(), None, None if client is None else client.id, key
            )
            self._save(before.with_lease(record))
            try:
                export = self._plane.add_export(name, size_bytes, tls_psk=key, client=record.client)
            except ControlError as err:
                if err.code not in (
                    "gone",
                    MISFIT,
                ):  # after these the export may exist: reconcile and replace_plane find out
                    self._save(before)
                raise
            record = replace(record, incarnation=export.incarnation)
            self._save(self._records.with_lease(record))
            return Lease(record, export)

    def release(self, name: str, *, force: bool, address: str | None = None, client: Client | None = None) -> None:
        """End a lease and free its memory.

        Raises:
            LeaseRefused: ``not-found``, or ``internal`` if the records cannot be written.
            ControlError: ``busy`` (connections are open and not ``force``), or ``gone``.
        """
        with self._lock:
            record = self._find(name, client)
            try:
                self._plane.remove_export(name, force=force)
            except ControlError as err:
                if err.code != "not-found":
                    raise
            self._save(self._records.without_lease(name))
        self._note_end(record, address, "by force" if force else None)
        self._on_change()

    def _note_lost(self, lease: LeaseRecord, reason: str) -> None:
        self._audit.note(
            Event.LEASE_LOST,
            holder=lease.holder,
            client=lease.client,
            lease=lease.name,
            size_bytes=lease.size_bytes,
            reason=reason,
        )

    def _held(self, client: str, use: PlaneClient | None = None) -> Held:
        sizes = [lease.size_bytes for lease in self._records.leases.values() if lease.client == client]
        return Held(len(sizes), sum(sizes), use)

    def _check_new(self, name: str, size_bytes: int, client: Client | None) -> Standing | None:
        """See that a lease may be made; return the standing of its client."""
        for cause, what in _REFUSAL.items():
            if cause in self._causes:
                raise LeaseRefused(
                    f"this donor {what} and gives no new leases", code="draining", hint="use another donor"
                )
        found = self._records.leases.get(name)
        if found is not None and _sees(client, found):
            raise LeaseRefused(
                f"a lease named '{name}' exists: {format_bytes(found.size_bytes)}, held by {found.holder}",
                code="exists",
                hint="choose another name, or release it first",
            )
        if found is not None:
            raise LeaseRefused(f"a lease named '{name}' exists", code="exists", hint="choose another name")
        return None if client is None else self._check_limits(name, size_bytes, client)

    def _check_limits(self, name: str, size_bytes: int, client: Client) -> Standing:
        standing = self.standings().get(client.id)
        if standing is None or standing.state is not State.ACTIVE:  # it was, when its request came
            raise LeaseRefused("this host may not lease here any more", code="revoked")
        over = limits.exceeded(name, size_bytes, standing, self._held(client.id))
        if over is not None:
            raise LeaseRefused(over.message, code="over-limit", hint=over.hint)
        return standing

    def _find(self, name: str, client: Client | None) -> LeaseRecord:
        held, lost = self._records.leases.get(name), self._records.lost.get(name)
        if held is not None and _sees(client, held):
            return held
        if lost is not None and held is None and _sees(client, lost):
            raise _lost(lost)
        raise LeaseRefused(f"no lease named '{name}'", code="not-found")

    def _save_or_log(self, kept: Records) -> None:
        """Record what has happened and cannot be undone; if writing fails, log that, and the next change writes it."""
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


def _sees(client: Client | None, lease: LeaseRecord) -> bool:
    """Tell whether a lease is the client's business; all are the owner's."""
    return client is None or client.id == lease.client


def _lost(record: LeaseRecord) -> LeaseRefused:
    return LeaseRefused(
        f"no lease named '{record.name}': its memory ({format_bytes(record.size_bytes)}, held by {record.holder})"
        " was lost",
        code="not-found",
        hint="make a new lease; the old lease's content is lost",
    )


def _reconciled(kept: Records, lease: LeaseRecord, export: Export | None) -> Records:
    """Return the records after one lease was compared with its export."""
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
