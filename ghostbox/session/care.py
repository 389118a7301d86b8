# SPDX-License-Identifier: MIT
"""What the supervisor does for a VM, once a second. Each step is small, can be repeated, and holds the VM's lock.

    the pager is gone                  another one takes over
    its sockets are gone               the pager makes them anew
    its disk could not be written      the VM, which QEMU has paused, goes on when there is room
    on_donor_loss is pause             the VM is paused while what only a silent donor has is out of reach
    a donor says that it is draining   its extents move to the others, which lend more if need be
    a donor is drained                 its lease ends
    a donor does not drain any more    what it still has stays there
    a donor has our lease no more      the pager is told not to wait for it: its memory is lost
    another donor is at its address    that is noted for `status`, and believed in nothing
    a donor has died                   the others lend the room in which the pager copies anew what was on it
    the server of the copy on disk     is started again
    nothing serves a shared folder     a process is started that does
    its donors, or their addresses     are written down for the guest's network, which keeps it from them

What happened becomes an event. What cannot be done is said once, and tried again now and then.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ghostbox import health, pager, process_table
from ghostbox.donor_client import DonorClient, DonorStatus
from ghostbox.errors import GhostboxError, Refused
from ghostbox.hypervisor import DomainState, FailedWrite
from ghostbox.paths import Paths
from ghostbox.plan import missing_bytes
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
from ghostbox.units import PAGE_BYTES, format_bytes

_log = logging.getLogger(__name__)
_RETRY_S = 30.0
_ASK_INTERVAL_S = 2.0
_ASK_TIMEOUT_S = 2.0
_RULES_INTERVAL_S = 30.0
Status = Mapping[str, Any]


@dataclass(frozen=True)
class Absence:
    """What is known of a donor that the pager waits for: its memory is gone, or somebody else is at its address."""

    gone: bool = False
    stranger: str | None = None


class Care:
    """Looks after one VM. ``pause``, ``drains`` and so on may each be called alone, with the VM's lock held."""

    def __init__(self, name: str, paths: Paths) -> None:
        self._paths = paths
        self._book = Book(paths.vm(name))
        self._before: Status | None = None
        self._qemu: process_table.Identity | None = None
        self._page_map = runtime_dir.PageMap()
        self._said: dict[str, tuple[str, float]] = {}
        self._clients: dict[str, DonorClient] = {}
        self._asked_at = 0.0
        self._looked_at = 0.0
        self._disk_looked_at = 0.0
        self._rules_written_at = 0.0
        self._shares_looked_at = 0.0
        self._disk_tried_at = 0.0
        self._failed_write: FailedWrite | None = None

    def close(self) -> None:
        """Close the connections to the donors, and let go of the page map."""
        self._page_map.close()
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def forget(self) -> None:
        """Try at once what could not be done, and ask the donors again."""
        self._said = {what: (text, 0.0) for what, (text, _) in self._said.items()}
        self._asked_at = 0.0

    def round(self) -> bool:
        """Look once, and do what is to be done; False when the VM is over."""
        record = self._book.load()
        if record is None or record.state not in (VmState.RUNNING, VmState.STOPPING) or not self._lives(record):
            return False
        self._page_map.watch(self._book.files)
        if runtime_dir.lost(record, self._book.files):
            self._tried("runtime", self.restore_files)
        found = pager.status(self._book.files.pager_control)
        if found is None:
            # It ends with QEMU, too; cleaning up behind a VM that is over is the next command's.
            if self._lives(record) and runtime_dir.find_pager(record, self._book.files) is None:
                self._tried("pager", self.recover)
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
            ("memory", self._is_absence_news(record, found), self.mind_absent),
            ("room", self._room_is_due(record, found), self.make_room),
        ):
            if wanted:
                self._tried(what, step)
        for address, leaves in self._minds(record, found):
            self._tried(f"drain {address}", partial(self.drain if leaves else self.keep, address))
        return True

    def recover(self) -> None:
        """Give the VM another pager if it has none."""
        before = self._before
        self._page_map.put_back(self._book.need_record(), self._book.files)
        state = takeover.heal_pager(self._book, self._paths)
        if state is VmState.BROKEN:
            raise GhostboxError("the pager died, and no other one could be started", hint="ghostbox recover")
        if state in (VmState.RUNNING, VmState.PAUSED, VmState.STOPPING, VmState.UNMANAGED):
            pid = "" if before is None else f" (pid {before['pid']})"
            events.append(self._book.files, "pager-recovered", f"the pager{pid} had died: another one goes on")

    def restore_files(self) -> None:
        """Have the pager make the files anew that were lost with the runtime directory."""
        runtime_dir.restore(self._book)

    def restart_backup(self) -> None:
        """Start the server of the copy on disk again."""
        record = self._book.record
        assert record is not None and record.backup is not None
        if backup.ensure(self._book.files, Path(record.backup)):
            events.append(
                self._book.files, "backup-restarted", "the server of the copy on disk was gone: started again"
            )

    def pause_or_resume(self) -> None:
        """Pause the VM because of a donor, or let one go on that we paused."""
        record, found = self._book.record, self._before
        assert record is not None and found is not None
        away = health.sole_copies_away(found)
        with liveness.connect(record) as connection:
            state = connection.state(record.domain, uuid=record.uuid)
            if away and not record.paused and state is DomainState.RUNNING:
                self._book.save(replace(record, paused=True))
                connection.suspend(record.domain, uuid=record.uuid)
                names = record.donor_names()
                missing = ", ".join(names.get(str(donor["uri"]), str(donor["uri"])) for donor in away)
                text = f"the VM is paused until {missing} is back"
                events.append(self._book.files, "paused", text, donor=str(away[0]["uri"]))
            elif record.paused and not away:
                if state is DomainState.PAUSED:
                    connection.resume(record.domain, uuid=record.uuid)
                self._book.save(replace(record, paused=False))
                events.append(self._book.files, "resumed", "the VM goes on")

    def try_disk_again(self) -> None:
        """Let a VM go on that is paused because its disk could not be written."""
        assert self._book.record is not None
        self._disk_tried_at = time.monotonic()
        disk.try_again(self._book.record)

    def write_network_rules(self) -> None:
        """Keep the guest from donors that it borrows from since, or that have another address."""
        assert self._book.record is not None
        network.write_rules(self._book.record, self._book.files)

    def serve_folders(self) -> None:
        """Serve the shared folders that nothing serves."""
        shares.ensure(self._book, self._paths)

    def finish_drains(self) -> None:
        """End the leases of donors that are empty."""
        pool.finish_drains(self._book)

    def drain(self, address: str) -> None:
        """Begin to drain a donor that wants to leave."""
        pool.drain(self._book, address, asked=True)

    def keep(self, address: str) -> None:
        """Call off the drain of a donor that wants to stay after all."""
        pool.keep(self._book, address)

    def mind_absent(self) -> None:
        """Tell the pager of donors that run without the VM's memory; note who is in the place of one that is away."""
        record, found = self._book.record, self._before
        assert record is not None and found is not None
        for lease, absence in self._absent(record, found):
            assert lease.nbd_uri is not None
            if absence.gone:
                pager.lose_donor(self._book.files.pager_control, lease.nbd_uri)
                text = f"{lease.donor} runs again, without the {format_bytes(lease.size_bytes)} that it had lent"
                events.append(self._book.files, "memory-gone", text, donor=lease.nbd_uri)
            elif absence.stranger != lease.stranger:
                pool.put(self._book, replace(lease, stranger=absence.stranger))
                if absence.stranger is not None:
                    text = f"{lease.donor}: {absence.stranger}: what ours holds is waited for"
                    events.append(self._book.files, "another-donor", text, donor=lease.nbd_uri)

    def make_room(self) -> None:
        """Borrow more where copies are missing and have no place."""
        pool.end_lost_leases(self._book)
        pool.make_room(self._book)

    def _tried(self, what: str, step: Callable[[], None]) -> None:
        """Take a step with the VM's lock held; a failure is said once, and tried again after a while."""
        text, until = self._said.get(what, ("", 0.0))
        if time.monotonic() < until:
            return
        try:
            with locked(self._book.files, supervisor=True):
                if self._book.load() is None:
                    return
                step()
            self._said.pop(what, None)
        except Refused as err:
            if err.message.startswith("another command"):
                return
            self._complain(what, text, err)
        except GhostboxError as err:
            self._complain(what, text, err)

    def _complain(self, what: str, before: str, err: GhostboxError) -> None:
        text = f"{err.message}: {err.why}" if err.why else err.message
        if text != before:
            _log.warning("%s", text)
            events.append(self._book.files, f"{what.partition(' ')[0]}-failed", text)
        self._said[what] = (text, time.monotonic() + _RETRY_S)

    def _lives(self, record: Record) -> bool:
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

    def _pause_is_due(self, record: Record, found: Status) -> bool:
        if record.pager is None or record.pager.on_donor_loss != "pause":
            return record.paused
        return bool(health.sole_copies_away(found)) != record.paused

    def _disk_is_due(self, record: Record, found: Status) -> bool:
        """Look at the disk, and tell whether its write is to be tried again: not while a donor has to be waited for."""
        now = time.monotonic()
        if now - self._disk_looked_at < _ASK_INTERVAL_S:
            return False
        self._disk_looked_at = now
        before, self._failed_write = self._failed_write, disk.trouble(record)
        if self._failed_write is None:
            if before is not None:
                events.append(self._book.files, "disk-resumed", "its disk can be written again: the VM goes on")
            return False
        if before is None:
            kind = f"disk-{self._failed_write.trouble}"
            events.append(self._book.files, kind, disk.explain(self._book.files, self._failed_write).text)
        if record.paused or (record.pager and record.pager.on_donor_loss == "pause" and health.sole_copies_away(found)):
            return False
        return disk.has_room(self._book.files, self._failed_write) or now - self._disk_tried_at > disk.RETRY_S

    def _is_any_empty(self, record: Record, found: Status) -> bool:
        """Tell whether a donor is to be let go of; one that was is of interest while its lease is there."""
        uris = {lease.nbd_uri for lease in record.leases}
        empty = [donor for donor in found["donors"] if pool.is_empty(donor)]
        return any(donor["state"] != "removed" or donor["uri"] in uris for donor in empty)

    def _room_is_due(self, record: Record, found: Status) -> bool:
        """Tell whether what was on a donor that died has nowhere to go.

        Of a sole copy that is away no other one can be made; but where it is lost, what comes after it needs a place.
        """
        plan = record.pager
        if plan is None:
            return False
        single = plan.replicas < 2 and record.backup is None
        limit_s = math.inf if single else plan.rebuild_after_s
        gone = [each for each in found["donors"] if each["state"] in ("lost", "down") and not each.get("backup")]
        if not any(each["state"] == "lost" or (each.get("down_s") or 0) > limit_s for each in gone):
            return False
        return missing_bytes(plan, pool.held(record, dict(found))) > 0

    def _is_absence_news(self, record: Record, found: Status) -> bool:
        """Tell whether the control API of a donor that the pager waits for says something new; asks now and then."""
        now = time.monotonic()
        if now - self._looked_at < _ASK_INTERVAL_S:
            return False
        self._looked_at = now
        return any(absence.gone or absence.stranger != lease.stranger for lease, absence in self._absent(record, found))

    def _absent(self, record: Record, found: Status) -> list[tuple[LeaseRecord, Absence]]:
        by_uri = pool.states(dict(found))
        return [
            (lease, self._absence(lease)) if by_uri[lease.nbd_uri]["state"] == "down" else (lease, Absence())
            for lease in record.leases
            if lease.nbd_uri is not None and lease.nbd_uri in by_uri
        ]

    def _absence(self, lease: LeaseRecord) -> Absence:
        """Ask the control API. Only the donor that lent the memory can say that it is gone: its id must be the same."""
        if lease.donor == THIS_HOST:
            return Absence(gone=not host_memory.lives(self._book.files, lease))
        try:
            seen = self._client(lease.donor).look_for(lease.name)
            there = self._client(lease.donor).status()
        except GhostboxError:
            return Absence(stranger=lease.stranger)
        if lease.donor_id is None or (seen.donor_id == lease.donor_id and not self._is_clone(lease, there)):
            return Absence(gone=lease.donor_id is not None and seen.incarnation != lease.incarnation)
        who = f"'{there.name}' (id {seen.donor_id or 'unknown'})"
        expected = f"'{lease.donor_name}' (id {lease.donor_id})"
        return Absence(stranger=f"another memserver answers at that address: {who} instead of {expected}")

    def _is_clone(self, lease: LeaseRecord, there: DonorStatus) -> bool:
        """Tell whether it is another of our donors that answers: one of the same id, cloned, at this one's address."""
        assert self._book.record is not None
        others = [each for each in self._book.record.leases if each.donor != lease.donor]
        return any((each.donor_id, each.plane) == (there.id, there.incarnation) for each in others)

    def _minds(self, record: Record, found: Status) -> list[tuple[str, bool]]:
        """Return the donors that have made up their minds: to leave (True), or to stay after all."""
        now = time.monotonic()
        if now - self._asked_at < _ASK_INTERVAL_S:
            return []
        self._asked_at = now
        by_uri = pool.states(dict(found))
        states: dict[str, set[str]] = {}
        for lease in record.leases:
            if lease.donor != THIS_HOST and lease.nbd_uri in by_uri:
                states.setdefault(lease.donor, set()).add(str(by_uri[lease.nbd_uri]["state"]))
        used = {address for address, found_states in states.items() if found_states & pool.USABLE}
        asked_to = {each for each in record.asked_to if states.get(each, set()) & pool.LEAVING}
        for address in self._clients.keys() - states.keys():
            self._clients.pop(address).close()
        lenders = {lease.donor: lease for lease in record.leases if lease.donor_id is not None}
        minds = {address: self._drains(address, lenders.get(address)) for address in sorted(used | asked_to)}
        leaving = [(address, True) for address in used if minds[address]]
        return leaving + [(address, False) for address in asked_to if minds[address] is False]

    def _drains(self, address: str, lease: LeaseRecord | None) -> bool | None:
        """Ask a donor whether it is draining; None if it does not say, or another one answers."""
        with suppress(GhostboxError):
            found = self._client(address).status()
            ours = lease is None or (lease.donor_id == found.id and lease.plane in (None, found.incarnation))
            return found.draining if ours else None
        return None

    def _client(self, address: str) -> DonorClient:
        if address not in self._clients:
            self._clients[address] = DonorClient(address, timeout_s=_ASK_TIMEOUT_S, connect_timeout_s=_ASK_TIMEOUT_S)
        return self._clients[address]


def changes(before: Status | None, after: Status, names: Mapping[str, str]) -> list[tuple[str, str, str | None]]:
    """Return what happened between two looks: a word, a sentence, the donor's URI if it is about one."""
    if before is None:
        return []
    old = {str(donor["uri"]): donor for donor in before["donors"]}
    found: list[tuple[str, str, str | None]] = []
    for donor in after["donors"]:
        uri = str(donor["uri"])
        was, now = old.get(uri, donor)["state"], str(donor["state"])
        name = "the copy on disk" if donor.get("backup") else f"donor {names.get(uri, uri)}"
        if now not in (was, "draining", "drained", "removed"):
            why = f": {donor['why']}" if now == "down" and donor.get("why") else ""
            found.append((f"donor-{now}", f"{name} was {was} and is {now}{why}", uri))
        lost = int(donor.get("lost_pages", 0)) - int(old.get(uri, donor).get("lost_pages", 0))
        if lost > 0:
            found.append(("memory-lost", f"{format_bytes(lost * PAGE_BYTES)} were on {name} ({uri}) alone", uri))
    rebuilt, rebuilds = (bool(each.get("pool", {}).get("rebuild", {}).get("active")) for each in (before, after))
    if rebuilds and not rebuilt:
        left = int(after["pool"]["rebuild"]["extents_left"]) * int(after["pool"]["extent_bytes"])
        found.append(("copying-begun", f"copies of {format_bytes(left)} are being made", None))
    if rebuilt and not rebuilds:
        found.append(("copying-ended", "no copy is being made any more", None))
    if health.level(before) is not health.level(after):
        found.append(("health", f"the VM's memory was {health.level(before)} and is {health.level(after)}", None))
    return found


def look_after(name: str, paths: Paths, *, interval_s: float = 1.0) -> None:
    """Be the supervisor: rounds until the VM is over."""
    care = Care(name, paths)
    try:
        while _went_on(care):
            unreleased.try_in_background(paths)
            time.sleep(interval_s)
    finally:
        care.close()


def _went_on(care: Care) -> bool:
    """Do a round; one that fails (libvirt restarts, the disk is full) is followed by the next."""
    try:
        return care.round()
    except GhostboxError as err:
        _log.warning("%s%s", err.message, f": {err.why}" if err.why else "")
    except OSError as err:
        _log.warning("%s", err)
    return True
