# SPDX-License-Identifier: MIT
"""Do the supervisor's rounds for a VM, one a second. Each step can be repeated and holds the VM's lock.

    the pager is gone                  another pager takes over
    the pager's sockets are gone       the pager makes them anew
    the disk could not be written      the VM, which QEMU has paused, is resumed when there is space
    on_donor_loss is pause             the VM is paused while the only copies of pages are on a donor that is down
    a donor says that it is draining   its extents move to the other donors, which lend more if need be
    a donor is drained                 its lease ends
    a donor does not drain any more    what it still holds stays there
    a donor has lost the lease         the pager is told that the donor's memory is lost, and stops waiting for it
    another donor is at its address    that is recorded for `status`; the other donor's answers are not used
    a donor has died                   the others lend the room in which the pager makes the missing copies
    qemu-nbd of the backup is gone     it is started again
    nothing serves a shared folder     a process that serves it is started
    donors, or their addresses, change the rules that keep the guest from its donors are written anew

Each change becomes an event. A failure becomes an event once, and the step is tried again every half minute.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ghostbox import pager
from ghostbox.donors.client import DonorClient, DonorStatus
from ghostbox.errors import GhostboxError, Refused, Untrusted
from ghostbox.pager import health
from ghostbox.pager.model import PagerStatus
from ghostbox.paths import Paths
from ghostbox.plan.plan import missing_bytes
from ghostbox.session import (
    backup,
    disk,
    events,
    host_memory,
    liveness,
    network,
    pool,
    runtime_dir,
    shares,
    takeover,
    unreleased,
)
from ghostbox.session.liveness import Life
from ghostbox.session.record import THIS_HOST, Book, LeaseRecord, Made, Record, VmState, locked
from ghostbox.system import process_table
from ghostbox.system.hypervisor import DomainState, FailedWrite
from ghostbox.units import PAGE_BYTES, format_bytes

_log = logging.getLogger(__name__)
_RETRY_S = 30.0
_ASK_INTERVAL_S = 2.0
_ASK_TIMEOUT_S = 2.0
_RULES_INTERVAL_S = 30.0


@dataclass(frozen=True)
class Absence:
    """Holds what is known of a donor that is down: its memory is gone, or another donor is at its address."""

    gone: bool = False
    stranger: str | None = None


class Reconciler:
    """Looks after one VM. Each step is a public method, which may also be called alone with the VM's lock held."""

    def __init__(self, name: str, paths: Paths) -> None:
        self._paths = paths
        self._book = Book(paths.vm(name))
        self._before: PagerStatus | None = None
        self._qemu: process_table.Identity | None = None
        self._page_map = runtime_dir.PageMap()
        self._failures: dict[str, tuple[str, float]] = {}
        self._clients: dict[str, DonorClient] = {}
        self._asked_at = 0.0
        self._looked_at = 0.0
        self._disk_looked_at = 0.0
        self._rules_written_at = 0.0
        self._shares_looked_at = 0.0
        self._disk_tried_at = 0.0
        self._failed_write: FailedWrite | None = None

    def close(self) -> None:
        """Close the connections to the donors and the page map."""
        self._page_map.close()
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def forget(self) -> None:
        """Try failed steps again in the next round, and ask the donors again."""
        self._failures = {what: (text, 0.0) for what, (text, _) in self._failures.items()}
        self._asked_at = 0.0

    def round(self) -> bool:
        """Look at the VM once, and do what is due; return False when the VM is over."""
        record = self._book.load()
        if record is None or record.state not in (VmState.RUNNING, VmState.STOPPING) or not self._may_run(record):
            return False
        self._page_map.watch(self._book.files)
        if runtime_dir.lost(record, self._book.files):
            self._attempt("runtime", self.restore_files)
        found = pager.status(self._book.files.pager_control)
        if found is None:
            # The pager ends with QEMU, too; then nothing is to be recovered, and the next command cleans up.
            if self._may_run(record) and runtime_dir.find_pager(record, self._book.files) is None:
                self._attempt("pager", self.recover)
            return True
        for event, text, donor in changes(self._before, found, record.donor_names()):
            events.append(self._book.files, event, text, donor=donor)
        self._before = found
        for what, wanted, step in (
            ("network", self._rules_are_due(), self.write_network_rules),
            ("shares", self._shares_are_due(record), self.serve_folders),
            ("backup", self._backup_is_gone(record), self.restart_backup),
            ("pause", self._pause_is_due(record, found), self.pause_or_resume),
            ("disk", self._disk_is_due(record, found), self.try_disk_again),
            ("drained", self._is_any_empty(record, found), self.finish_drains),
            ("memory", self._is_absence_news(record, found), self.service_absent_donors),
            ("room", self._room_is_due(record, found), self.make_room),
        ):
            if wanted:
                self._attempt(what, step)
        for address, leaves in self._drain_changes(record, found):
            self._attempt(f"drain {address}", partial(self.drain if leaves else self.keep, address))
        return True

    def recover(self) -> None:
        """Start another pager if the VM has none."""
        before = self._before
        self._page_map.put_back(self._book.record, self._book.files)
        state = takeover.heal_pager(self._book, self._paths)
        if state is VmState.BROKEN:
            raise GhostboxError("the pager died, and no other one could be started", hint="ghostbox recover")
        if state in (VmState.RUNNING, VmState.PAUSED, VmState.STOPPING, VmState.UNMANAGED):
            pid = "" if before is None else f" (pid {before.pid})"
            events.append(self._book.files, "pager-recovered", f"the pager{pid} had died: another one serves the VM")

    def restore_files(self) -> None:
        """Let the pager make the files anew that were lost with the runtime directory."""
        runtime_dir.restore(self._book)

    def restart_backup(self) -> None:
        """Start qemu-nbd for the copy on disk again."""
        record = self._book.record
        assert record.backup is not None
        if backup.ensure(self._book.files, Path(record.backup)):
            events.append(
                self._book.files, "backup-restarted", "the server of the copy on disk was gone: started again"
            )

    def pause_or_resume(self) -> None:
        """Pause the VM because of a donor, or resume a VM that was paused because of a donor."""
        record, found = self._book.record, self._before
        assert found is not None
        away = health.sole_copies_away(found)
        with liveness.connect(record) as connection:
            state = connection.state(record.domain, uuid=record.uuid)
            if away and not record.paused and state is DomainState.RUNNING:
                self._book.save(replace(record, paused=True))
                connection.suspend(record.domain, uuid=record.uuid)
                names = record.donor_names()
                missing = ", ".join(names.get(donor.uri, donor.uri) for donor in away)
                text = f"the VM is paused until {missing} is back"
                events.append(self._book.files, "paused", text, donor=away[0].uri)
            elif record.paused and not away:
                if state is DomainState.PAUSED:
                    connection.resume(record.domain, uuid=record.uuid)
                self._book.save(replace(record, paused=False))
                events.append(self._book.files, "resumed", "the VM runs again")

    def try_disk_again(self) -> None:
        """Resume a VM that QEMU has paused because its disk could not be written."""
        self._disk_tried_at = time.monotonic()
        disk.try_again(self._book.record)

    def write_network_rules(self) -> None:
        """Keep the guest also from new donors and from new addresses of donors."""
        network.write_rules(self._book.record, self._book.files)

    def serve_folders(self) -> None:
        """Start a process for each shared folder that no process serves."""
        shares.ensure(self._book, self._paths)

    def finish_drains(self) -> None:
        """End the leases of donors that are drained."""
        pool.finish_drains(self._book)

    def drain(self, address: str) -> None:
        """Begin to drain a donor that wants to leave."""
        pool.drain(self._book, address, asked=True)

    def keep(self, address: str) -> None:
        """Call off the drain of a donor that wants to stay after all."""
        pool.keep(self._book, address)

    def service_absent_donors(self) -> None:
        """Tell the pager which donors came back without the VM's memory; record which donor answers instead."""
        record, found = self._book.record, self._before
        assert found is not None
        for lease, absence in self._absent(record, found):
            assert lease.nbd_uri is not None
            if absence.gone:
                pager.lose_donor(self._book.files.pager_control, lease.nbd_uri)
                text = f"{lease.donor} runs again, without the {format_bytes(lease.size_bytes)} that it had lent"
                events.append(self._book.files, "memory-gone", text, donor=lease.nbd_uri)
            elif absence.stranger != lease.stranger:
                pool.put(self._book, replace(lease, stranger=absence.stranger))
                if absence.stranger is not None:
                    text = f"{lease.donor}: {absence.stranger}: the VM waits for the donor that has its memory"
                    events.append(self._book.files, "another-donor", text, donor=lease.nbd_uri)

    def make_room(self) -> None:
        """End leases of lost memory, and borrow room for copies that are missing."""
        pool.end_lost_leases(self._book)
        pool.make_room(self._book)

    def _attempt(self, what: str, step: Callable[[], None]) -> None:
        """Do a step with the VM's lock held; after a failure, report it and wait before the next try."""
        text, until = self._failures.get(what, ("", 0.0))
        if time.monotonic() < until:
            return
        try:
            with locked(self._book.files, supervisor=True):
                if self._book.load() is None:
                    return
                step()
            self._failures.pop(what, None)
        except Refused as err:
            if err.message.startswith("another command"):
                return
            self._report(what, text, err)
        except GhostboxError as err:
            self._report(what, text, err)

    def _report(self, what: str, before: str, err: GhostboxError) -> None:
        text = f"{err.message}: {err.why}" if err.why else err.message
        if text != before:
            _log.warning("%s", text)
            events.append(self._book.files, f"{what.partition(' ')[0]}-failed", text)
        self._failures[what] = (text, time.monotonic() + _RETRY_S)

    def _may_run(self, record: Record) -> bool:
        """Tell whether the VM's QEMU runs, or may run."""
        if self._qemu is None or not process_table.is_alive(self._qemu):
            sight = liveness.look(record, self._book.files)
            self._qemu = None if sight.pid is None else process_table.identify(sight.pid)
            return sight.life is not Life.GONE
        return True

    def _shares_are_due(self, record: Record) -> bool:
        now = time.monotonic()
        if not record.shares or now - self._shares_looked_at < _ASK_INTERVAL_S:
            return False
        self._shares_looked_at = now
        return bool(shares.missing(record, self._book.files))

    def _rules_are_due(self) -> bool:
        now = time.monotonic()
        if now - self._rules_written_at < _RULES_INTERVAL_S:
            return False
        self._rules_written_at = now
        return True

    def _backup_is_gone(self, record: Record) -> bool:
        wanted = record.backup is not None and Made.BACKUP in record.made
        return wanted and not (backup.find(self._book.files) and self._book.files.backup_socket.exists())

    def _pause_is_due(self, record: Record, found: PagerStatus) -> bool:
        if record.pager is None or record.pager.on_donor_loss != "pause":
            return record.paused
        return bool(health.sole_copies_away(found)) != record.paused

    def _disk_is_due(self, record: Record, found: PagerStatus) -> bool:
        """Tell whether to repeat a failed write of the disk: not while the VM waits for a donor."""
        now = time.monotonic()
        if now - self._disk_looked_at < _ASK_INTERVAL_S:
            return False
        self._disk_looked_at = now
        before, self._failed_write = self._failed_write, disk.trouble(record)
        if self._failed_write is None:
            if before is not None:
                events.append(self._book.files, "disk-resumed", "the VM's disk can be written again: the VM runs again")
            return False
        if before is None:
            kind = f"disk-{self._failed_write.trouble}"
            events.append(self._book.files, kind, disk.explain(self._book.files, self._failed_write).text)
        if record.paused or (record.pager and record.pager.on_donor_loss == "pause" and health.sole_copies_away(found)):
            return False
        return disk.has_room(self._book.files, self._failed_write) or now - self._disk_tried_at > disk.RETRY_S

    def _is_any_empty(self, record: Record, found: PagerStatus) -> bool:
        """Tell whether a donor is empty that can go; a removed donor counts as long as it has a lease."""
        uris = {lease.nbd_uri for lease in record.leases}
        empty = [donor for donor in found.donors if pool.is_empty(donor)]
        return any(donor.state != "removed" or donor.uri in uris for donor in empty)

    def _room_is_due(self, record: Record, found: PagerStatus) -> bool:
        """Tell whether room has to be borrowed for copies that were on a donor that is gone.

        While the only copy of an extent is on a donor that is down, no other copy can be made. But for a donor whose
        memory is lost, later writes need room elsewhere.
        """
        plan = record.pager
        if plan is None:
            return False
        single = plan.replicas < 2 and record.backup is None
        limit_s = math.inf if single else plan.rebuild_after_s
        gone = [each for each in found.donors if each.state in ("lost", "down") and not each.backup]
        if not any(each.state == "lost" or (each.down_s or 0) > limit_s for each in gone):
            return False
        return missing_bytes(plan, pool.held(record, found)) > 0

    def _is_absence_news(self, record: Record, found: PagerStatus) -> bool:
        """Tell whether there is news of a donor that the pager waits for; its control API is asked every 2 s."""
        now = time.monotonic()
        if now - self._looked_at < _ASK_INTERVAL_S:
            return False
        self._looked_at = now
        return any(absence.gone or absence.stranger != lease.stranger for lease, absence in self._absent(record, found))

    def _absent(self, record: Record, found: PagerStatus) -> list[tuple[LeaseRecord, Absence]]:
        by_uri = pool.states(found)
        return [
            (lease, self._absence(lease)) if by_uri[lease.nbd_uri].state == "down" else (lease, Absence())
            for lease in record.leases
            if lease.nbd_uri is not None and lease.nbd_uri in by_uri
        ]

    def _absence(self, lease: LeaseRecord) -> Absence:
        """Ask a donor's control API about a lease. Only the donor with the lease's id can say that memory is gone."""
        if lease.donor == THIS_HOST:
            return Absence(gone=not host_memory.lives(self._book.files, lease))
        try:
            with self._asked(lease.donor) as client:
                seen, there = client.look_for(lease.name), client.status()
        except Untrusted as err:
            return Absence(stranger=err.message)
        except GhostboxError:
            return Absence(stranger=lease.stranger)
        if lease.donor_id is None or (seen.donor_id == lease.donor_id and not self._is_clone(lease, there)):
            return Absence(gone=lease.donor_id is not None and seen.incarnation != lease.incarnation)
        found = f"'{there.name}' (id {seen.donor_id or 'unknown'})"
        expected = f"'{lease.donor_name}' (id {lease.donor_id})"
        return Absence(stranger=f"another memserver answers at that address: {found} instead of {expected}")

    def _is_clone(self, lease: LeaseRecord, there: DonorStatus) -> bool:
        """Tell whether another donor of the VM, a clone with the same id, answers at the address of this one."""
        others = [each for each in self._book.record.leases if each.donor != lease.donor]
        return any((each.donor_id, each.plane) == (there.id, there.incarnation) for each in others)

    def _drain_changes(self, record: Record, found: PagerStatus) -> list[tuple[str, bool]]:
        """Return the donors that have begun a drain (True) or called it off (False) since the last look."""
        now = time.monotonic()
        if now - self._asked_at < _ASK_INTERVAL_S:
            return []
        self._asked_at = now
        by_uri = pool.states(found)
        states: dict[str, set[str]] = {}
        for lease in record.leases:
            if lease.donor != THIS_HOST and lease.nbd_uri in by_uri:
                states.setdefault(lease.donor, set()).add(by_uri[lease.nbd_uri].state)
        used = {address for address, found_states in states.items() if found_states & pool.USABLE}
        asked_to = {each for each in record.asked_to if states.get(each, set()) & pool.LEAVING}
        for address in self._clients.keys() - states.keys():
            self._clients.pop(address).close()
        lenders = {lease.donor: lease for lease in record.leases if lease.donor_id is not None}
        draining = {address: self._drains(address, lenders.get(address)) for address in sorted(used | asked_to)}
        leaving = [(address, True) for address in used if draining[address]]
        return leaving + [(address, False) for address in asked_to if draining[address] is False]

    def _drains(self, address: str, lease: LeaseRecord | None) -> bool | None:
        """Ask a donor whether it is draining; None if it does not answer, or another donor answers."""
        with suppress(GhostboxError), self._asked(address) as client:
            found = client.status()
            ours = lease is None or (lease.donor_id == found.id and lease.plane in (None, found.incarnation))
            return found.draining if ours else None
        return None

    @contextmanager
    def _asked(self, address: str) -> Iterator[DonorClient]:
        """Yield the client of a donor, which is kept; after an error a new one is made, for the pairing may be another.

        Raises:
            Untrusted: this host may not talk to the donor.
        """
        if address not in self._clients:
            self._clients[address] = DonorClient(address, timeout_s=_ASK_TIMEOUT_S, connect_timeout_s=_ASK_TIMEOUT_S)
        try:
            yield self._clients[address]
        except GhostboxError:
            self._clients.pop(address).close()
            raise


def changes(
    before: PagerStatus | None, after: PagerStatus, names: Mapping[str, str]
) -> list[tuple[str, str, str | None]]:
    """Return what has changed between two states: a word, a sentence, and the donor's URI if there is one."""
    if before is None:
        return []
    old = {donor.uri: donor for donor in before.donors}
    found: list[tuple[str, str, str | None]] = []
    for donor in after.donors:
        uri, now = donor.uri, donor.state
        was = old.get(uri, donor).state
        name = "the copy on disk" if donor.backup else f"donor {names.get(uri, uri)}"
        if now not in (was, "draining", "drained", "removed"):
            why = f": {donor.why}" if now == "down" and donor.why else ""
            found.append((f"donor-{now}", f"{name} was {was} and is {now}{why}", uri))
        refused, refuses = (each.refuses_s is not None for each in (old.get(uri, donor), donor))
        if refuses != refused:
            what = "refuses writes: it has no room" if refuses else "refuses no writes any more"
            found.append((f"donor-{'full' if refuses else 'has-room'}", f"{name} {what}", uri))
        lost = donor.lost_pages - old.get(uri, donor).lost_pages
        if lost > 0:
            found.append(("memory-lost", f"{format_bytes(lost * PAGE_BYTES)} were on {name} ({uri}) alone", uri))
    rebuilt, rebuilds = before.pool.rebuild.active, after.pool.rebuild.active
    if rebuilds and not rebuilt:
        left = after.pool.rebuild.extents_left * after.pool.extent_bytes
        found.append(("copying-begun", f"copies of {format_bytes(left)} are being made", None))
    if rebuilt and not rebuilds:
        found.append(("copying-ended", "no copy is being made any more", None))
    if health.level(before) is not health.level(after):
        found.append(("health", f"the VM's memory was {health.level(before)} and is {health.level(after)}", None))
    return found


def look_after(name: str, paths: Paths, *, interval_s: float = 1.0) -> None:
    """Run as the supervisor: do rounds until the VM is over."""
    reconciler = Reconciler(name, paths)
    try:
        while _do_round(reconciler):
            unreleased.try_in_background(paths)
            time.sleep(interval_s)
    finally:
        reconciler.close()


def _do_round(reconciler: Reconciler) -> bool:
    """Do one round; return False when the VM is over. An error (libvirt restarts, the disk is full) is only logged."""
    try:
        return reconciler.round()
    except GhostboxError as err:
        _log.warning("%s%s", err.message, f": {err.why}" if err.why else "")
    except OSError as err:
        _log.warning("%s", err)
    return True
