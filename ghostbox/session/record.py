# SPDX-License-Identifier: MIT
"""Keep what is known of one VM across commands: its record on disk, its states, its lock.

                    up                          each object is recorded before it is made
    absent ────────────────► preparing ──► starting ──► running ──────────► stopping ──► stopped
       ▲                         │             │           │  down                          │
       │      undone (new VM)    │             │           │ the guest powered off,         │ up
       └─────────────────────────┴─────────────┘           │ the host rebooted              ▼
                                                           └──────────► stopped         preparing

A ``down`` that gives up goes back to ``running``; after a ``down`` that was killed, the next command does so, once the
lock is free. If QEMU runs although its VM is recorded as ``stopped``, ``down --force`` can end it.

``preparing`` and ``starting`` with a free lock mean that an ``up`` was killed: the next command undoes what the record
names. ``made`` and ``leases`` name what may exist; an entry is written before its object is made and struck out after
the object is gone, so no object is forgotten.
"""

from __future__ import annotations

import datetime
import difflib
import enum
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from ghostbox.donors.client import CONTROL_PORT
from ghostbox.donors.known import KnownDonor
from ghostbox.errors import GhostboxError, NotFound, Refused
from ghostbox.paths import Paths, VmPaths, login_environment, make_directory
from ghostbox.plan.plan import PagerPlan, VmPlan, domain_name
from ghostbox.plan.tiering import Tiering
from ghostbox.system import documents, forms, locks, state_files
from ghostbox.system.documents import Part
from ghostbox.system.process_table import Identity, machine_id

_FORMAT = 1
_NUMBER = "format"
THIS_HOST = "this-host"
"""The value in place of a donor's address for memory of the host itself (`session.host_memory`)."""

_SUPERVISOR = "supervisor"
_PATIENCE_S = 30.0
_LOOK_AGAIN_S = 0.05


class VmState(enum.StrEnum):
    """Names the state of a VM; three states are seen and never recorded.

    ``PAUSED``; ``BROKEN``: the pager is dead; ``UNMANAGED``: QEMU runs, or may run, and libvirt does not know the VM,
    or the record says that it is stopped.
    """

    ABSENT = "absent"
    PREPARING = "preparing"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    BROKEN = "broken"
    UNMANAGED = "unmanaged"


TRANSITIONS: dict[VmState, frozenset[VmState]] = {
    VmState.ABSENT: frozenset({VmState.PREPARING}),
    VmState.PREPARING: frozenset({VmState.PREPARING, VmState.STARTING, VmState.STOPPED, VmState.ABSENT}),
    VmState.STARTING: frozenset({VmState.RUNNING, VmState.STOPPED, VmState.ABSENT}),
    VmState.RUNNING: frozenset({VmState.STOPPING, VmState.STOPPED}),
    VmState.STOPPING: frozenset({VmState.STOPPING, VmState.RUNNING, VmState.STOPPED}),
    VmState.STOPPED: frozenset({VmState.PREPARING, VmState.STOPPING, VmState.STOPPED, VmState.ABSENT}),
}


class Made(enum.StrEnum):
    """Names a thing outside the state directory that an ``up`` makes and a ``down`` removes."""

    FILES = "files"
    BACKUP = "backup"
    PAGER = "pager"
    DOMAIN = "domain"


@dataclass(frozen=True)
class LeaseRecord(Part):
    """Holds a lease that a donor was asked for; the lease may or may not have been made.

    ``donor`` is the address of the donor's control API, or `THIS_HOST`. ``nbd_uri`` is known once the lease was made;
    it identifies the donor to the pager. ``donor_name`` and ``donor_id`` are of the donor that made the lease,
    ``plane`` is the incarnation of the process there that holds the memory, ``machine`` the machine that the donor runs
    on; ``incarnation`` is the incarnation of the leased memory. ``stranger``: which donor answers at that address now,
    while the right donor is down.
    """

    donor: str
    name: str
    size_bytes: int
    nbd_uri: str | None = None
    donor_name: str | None = None
    donor_id: str | None = None
    incarnation: str | None = None
    stranger: str | None = None
    plane: str | None = None
    machine: str | None = None

    @property
    def lender(self) -> object:
        """Return a value that is the same for all leases of one donor, however its address is spelt."""
        known = self.donor_id is not None and self.plane is not None
        return (self.donor_id, self.plane) if known else self.donor.lower().removesuffix(f":{CONTROL_PORT}")


@dataclass(frozen=True)
class Record:
    """Holds what is known of one VM: sizes in bytes, times in UTC (ISO 8601). ``new``: no ``up`` reached ``running``.

    ``donors`` are those that the VM may borrow from, ``backup`` is the file of the copy on disk, ``paused``: GhostBox
    has paused the VM because of a donor. ``asked_to`` are the donors that are drained since they have asked for it, and
    may take that back. ``drained`` are the donors that the user has drained: nothing is borrowed from them until the
    user names them again. ``tiering`` is None of a VM that an earlier version started. ``ssh_key``: the key that the
    user's ssh offers besides GhostBox's key. ``cloned``: the disk is a copy of another VM's, so the guest gets a
    machine id of its own from GhostBox. ``network`` is the choice as people write it; if it is not ``user``,
    ``address`` is the guest's address and ``filter`` libvirt's filter, if there is one. ``disks`` are the sizes of the
    further disks; ``shares`` are as people write them. ``insecure``: it was started with ``pool.insecure``.

    ``environment`` is the login environment that the VM was started in (`paths.login_environment`), ``runtime`` its
    runtime directory: later commands may run in another login. ``machine``, ``qemu`` and ``pager_process`` are the
    machine and the processes that run it. All are None of a VM that an earlier version started.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    state: VmState
    uuid: str
    mac: str
    ssh_port: int
    created_at: str
    domain: str
    libvirt_uri: str
    image: str
    user: str
    virt: str
    cpus: int
    memory_bytes: int
    remote_memory_bytes: int
    cache_bytes: int
    disk_bytes: int
    forwards: tuple[tuple[int, int], ...] = ()
    started_at: str | None = None
    new: bool = True
    made: frozenset[Made] = frozenset()
    leases: tuple[LeaseRecord, ...] = ()
    pager: PagerPlan | None = None
    donors: tuple[str, ...] = ()
    backup: str | None = None
    paused: bool = False
    asked_to: tuple[str, ...] = ()
    tiering: Tiering | None = None
    environment: dict[str, str] | None = None
    runtime: str | None = None
    machine: str | None = None
    qemu: Identity | None = None
    pager_process: Identity | None = None
    drained: tuple[KnownDonor, ...] = ()
    cloned: bool = False
    ssh_key: str | None = None
    network: str = "user"
    address: str | None = None
    filter: str | None = None
    disks: tuple[int, ...] = ()
    shares: tuple[str, ...] = ()
    insecure: bool = False

    def to(self, state: VmState, **changes: Any) -> Record:
        """Return the record in another state. A transition that is not in `TRANSITIONS` is a programming error."""
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        return replace(self, state=state, **changes)

    def with_made(self, thing: Made) -> Record:
        """Return the record with ``thing`` among the objects that may exist."""
        return replace(self, made=self.made | {thing})

    def without_made(self, thing: Made) -> Record:
        """Return the record without ``thing``."""
        return replace(self, made=self.made - {thing})

    def donor_names(self) -> dict[str, str]:
        """Return the names of the pager's donors (the addresses of their control APIs), by their NBD URIs.

        The donor of several leases has one name: the address in its first lease.
        """
        names: dict[object, str] = {}
        for lease in self.leases:
            names.setdefault(lease.lender, lease.donor)
        return {lease.nbd_uri: names[lease.lender] for lease in self.leases if lease.nbd_uri is not None}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Record:
        """Return the record that `to_json` wrote, in this version or an earlier one.

        Raises:
            ValueError: the data makes no sense, or has fields that only a later version knows.
        """
        fields = {key: value for key, value in data.items() if key != _NUMBER}
        record = forms.read(_form(), fields)
        if (place := next(documents.strangers(record), None)) is not None:
            raise ValueError(f"{place}: Unexpected keyword argument")
        return record

    @staticmethod
    def from_document(document: object, file: Path) -> Record:
        """Return the record in a file, unless a newer version wrote it.

        Raises:
            Refused: the format is newer than this version's.
            ValueError: see `from_json`.
        """
        return Record.from_json(documents.check(document, file, _FORMAT, number=_NUMBER))

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data for JSON."""
        return {_NUMBER: _FORMAT, **documents.plain(self)}


@cache
def _form() -> TypeAdapter[Record]:
    """Return the reader of records; it is made once, since making it takes long."""
    return TypeAdapter(Record)


def now_utc() -> str:
    """Return the present time in the format of records."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def prepared(plan: VmPlan, before: Record | None) -> Record:
    """Return the record of a VM in preparation; ``before`` is the VM's earlier record, if it has one."""
    return Record(
        name=plan.name,
        state=VmState.PREPARING,
        uuid=plan.uuid,
        mac=plan.network.mac,
        ssh_port=plan.network.ssh_port,
        created_at=before.created_at if before else now_utc(),
        domain=plan.domain,
        libvirt_uri=plan.libvirt_uri,
        image=plan.image.name,
        user=plan.guest.user,
        virt=str(plan.virt),
        cpus=plan.cpus,
        memory_bytes=plan.memory_bytes,
        remote_memory_bytes=plan.remote_memory_bytes,
        cache_bytes=plan.pager.cache_bytes,
        disk_bytes=plan.disk_bytes,
        forwards=tuple((forward.host, forward.guest) for forward in plan.network.forwards),
        new=before.new if before else True,
        made=frozenset({Made.FILES}),
        leases=before.leases if before else (),
        pager=plan.pager,
        donors=plan.donors,
        backup=None if plan.backup is None else str(plan.backup),
        tiering=plan.guest.tiering,
        environment=login_environment(),
        runtime=str(plan.files.runtime),
        machine=machine_id(),
        drained=before.drained if before else (),
        cloned=before.cloned if before else False,
        ssh_key=None if plan.guest.ssh_key is None else str(plan.guest.ssh_key.absolute()),
        network=str(plan.network.choice),
        address=before.address if before else None,
        filter=plan.network.filter,
        disks=tuple(disk.size_bytes for disk in plan.disks),
        shares=tuple(map(str, plan.folders)),
    )


@dataclass
class Book:
    """Keeps the record of one VM on disk: every change is written before it is acted on.

    ``files`` has the runtime directory that the record names, once the record was read or written. ``found`` is the
    record as it was last read or written, None if there is none.
    """

    files: VmPaths
    found: Record | None = None

    @property
    def record(self) -> Record:
        """Return the record that was last read or written. Reading this when there is none is a programming error."""
        assert self.found is not None, f"no record of VM '{self.files.state.name}' was read or written"
        return self.found

    def _keep(self, record: Record) -> None:
        self.found = record
        if record.runtime is not None:
            self.files = replace(self.files, runtime=Path(record.runtime))

    def save(self, record: Record) -> Record:
        """Write ``record`` in one step, durably."""
        make_directory(self.files.state)
        state_files.write(self.files.record, record.to_json())
        self._keep(record)
        return record

    def load(self) -> Record | None:
        """Read the record; None if the VM does not exist.

        Raises:
            GhostboxError: the file cannot be read or makes no sense.
        """
        try:
            self._keep(Record.from_document(json.loads(self.files.record.read_text()), self.files.record))
        except FileNotFoundError:
            self.found = None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
            raise GhostboxError(
                f"cannot read {self.files.record}: {err}",
                why=f"the VM may run nevertheless; {self.files.disk} is its disk",
                hint="run this as the user who made the VM, or mend the file: it is JSON",
            ) from err
        if self.found is not None and self.found.name != self.files.state.name:
            # A rename was interrupted after the directory got its name: the directory's name counts.
            name = self.files.state.name
            self.found = replace(self.found, name=name, domain=domain_name(name))
        return self.found

    def need(self, name: str, paths: Paths) -> Record:
        """Return the record.

        Raises:
            NotFound: there is no such VM.
        """
        record = self.load()
        if record is None:
            there = names(paths)
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            hint += f"there are: {', '.join(there)}" if there else "ghostbox up"
            raise NotFound(f"no VM named '{name}'", hint=hint)
        return record


def lease_name(vm: str) -> str:
    """Return a lease name that no other VM, of this host or another host, can have."""
    return f"{machine_id()}-{vm}-{secrets.token_hex(4)}"


def names(paths: Paths) -> list[str]:
    """Return the names of all VMs that have a record, sorted."""
    return sorted(file.parent.name for file in (paths.state / "vms").glob("*/vm.json"))


@contextmanager
def locked(files: VmPaths, *, supervisor: bool = False) -> Iterator[None]:
    """Hold the VM's lock, which ends with this process. A supervisor's hold, which is short, is waited for.

    Raises:
        Refused: another command holds the lock.
    """
    descriptor = _take_lock(files)
    holder = f"{_SUPERVISOR if supervisor else ''} {os.getpid()}"
    try:
        locks.write(descriptor, f"{holder.strip()}\n")
        yield
    finally:
        os.close(descriptor)


def _take_lock(files: VmPaths) -> int:
    """Take the VM's lock; return its descriptor.

    A holder writes its name a moment after it took the lock, so a name counts when it was read twice.
    """
    deadline, seen = time.monotonic() + _PATIENCE_S, ""
    while True:
        make_directory(files.state)
        try:
            return locks.take(files.lock)
        except FileNotFoundError:  # the VM, and its directory, were deleted between these two calls
            continue
        except locks.Held as err:
            holder = err.said or "unknown"
            if holder == seen and not (holder.startswith(_SUPERVISOR) and time.monotonic() < deadline):
                raise Refused(
                    f"another command is at work on VM '{files.state.name}' (pid {holder})",
                    hint="wait until it is done, or end it",
                ) from err
            seen = holder
            time.sleep(_LOOK_AGAIN_S)


def lock_is_free(files: VmPaths) -> bool:
    """Tell whether no command holds the VM's lock."""
    return locks.is_free(files.lock)
