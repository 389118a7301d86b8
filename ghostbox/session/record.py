# SPDX-License-Identifier: MIT
"""What is known of one VM across commands: its record on disk, its states, its lock.

                    up                          all that it makes is written into the record first
    absent ────────────────► preparing ──► starting ──► running ──────────► stopping ──► stopped
       ▲                         │             │           │  down                          │
       │      undone (new VM)    │             │           │ the guest powered off,         │ up
       └─────────────────────────┴─────────────┘           │ the host rebooted              ▼
                                                           └──────────► stopped         preparing

A ``down`` that gives up goes back to ``running``; so does one that was killed, once nobody holds the lock. A QEMU that
lives although its VM is recorded as ``stopped`` can be ended by ``down --force``.

``preparing`` and ``starting`` found with nobody holding the lock mean that an ``up`` was killed: the next command
undoes what its record names. ``made`` and ``leases`` name what may exist; they are written before it is made and
struck out after it is gone, so nothing is ever forgotten.
"""

from __future__ import annotations

import datetime
import difflib
import enum
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from ghostbox import processes
from ghostbox.donor_client import CONTROL_PORT
from ghostbox.errors import GhostboxError, NotFound, Refused
from ghostbox.known_donors import KnownDonor
from ghostbox.paths import Paths, VmPaths, login_environment, make_directory
from ghostbox.plan import PagerPlan, VmPlan, domain_name
from ghostbox.process_table import Identity, machine_id
from ghostbox.tiering import Tiering

_FORMAT = 1
THIS_HOST = "this-host"
"""In place of a donor's address: memory of the host itself (`session.host_memory`)."""

_SUPERVISOR = "supervisor"
_PATIENCE_S = 30.0


class VmState(enum.StrEnum):
    """What is recorded of a VM; three are seen and never recorded.

    ``PAUSED``; ``BROKEN``: its pager is dead; ``UNMANAGED``: its QEMU lives, or may live, and libvirt, or the record,
    does not know it.
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
    """A thing outside the state directory that an ``up`` makes and a ``down`` unmakes."""

    FILES = "files"
    BACKUP = "backup"
    PAGER = "pager"
    DOMAIN = "domain"


@dataclass(frozen=True)
class LeaseRecord:
    """A lease that was asked for; it may or may not have been made.

    ``nbd_uri`` is known when it was; that is how the pager's donors are told apart. ``donor`` is the address of its
    control API, or `THIS_HOST`. ``donor_name`` and ``donor_id`` are who made it, ``plane`` is its process that holds
    the memory and ``machine`` where that runs; ``incarnation`` is the memory that it gave. ``stranger``: who answers at
    that address now, while the donor is away.
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
        """What is the same for all leases of one donor, whatever its address is spelt like."""
        known = self.donor_id is not None and self.plane is not None
        return (self.donor_id, self.plane) if known else self.donor.lower().removesuffix(f":{CONTROL_PORT}")


@dataclass(frozen=True)
class Record:
    """One VM. Sizes in bytes, times UTC in ISO 8601; ``new`` means that no ``up`` of it ever came to ``running``.

    ``donors`` are those it may borrow from, ``backup`` is the file of its copy on disk, ``paused`` says that we paused
    it because of a donor (and not somebody else). ``asked_to`` are the donors that are drained because they asked for
    it, and may take that back; what the user drains is not among them: those are ``drained``, and nothing is borrowed
    from them until the user says so. ``tiering`` is None of a VM that an earlier version started. ``ssh_key``: what
    the user's ssh offers besides our own key. ``cloned``: its disk
    is a copy of another VM's, so the guest is told who it is. ``network`` is the choice as people write it; on one that
    is not ``user``, ``address`` is the guest's own and ``filter`` libvirt's filter, if there is one. ``disks`` are the
    sizes of the further ones, ``shares`` are as people write them.

    ``environment`` is the login that it was started in (`paths.login_environment`), ``runtime`` its runtime directory:
    later commands may run in another login. ``machine``, ``qemu`` and ``pager_process`` say where and as what it runs.
    All are None of a VM that an earlier version started.
    """

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

    def to(self, state: VmState, **changes: Any) -> Record:
        """Return the record in another state; a transition that the drawing above lacks is our own mistake."""
        assert state in TRANSITIONS[self.state], f"{self.state} -> {state}"
        return replace(self, state=state, **changes)

    def with_made(self, thing: Made) -> Record:
        """Return the record with ``thing`` among what may exist."""
        return replace(self, made=self.made | {thing})

    def without_made(self, thing: Made) -> Record:
        """Return the record without ``thing``."""
        return replace(self, made=self.made - {thing})

    def donor_names(self) -> dict[str, str]:
        """Return what people call the pager's donors (the addresses of their control APIs), by their NBD URIs.

        A donor has one name: the one of its first lease.
        """
        names: dict[object, str] = {}
        for lease in self.leases:
            names.setdefault(lease.lender, lease.donor)
        return {lease.nbd_uri: names[lease.lender] for lease in self.leases if lease.nbd_uri is not None}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the record that `to_json` wrote."""
        fields = {key: value for key, value in data.items() if key != "format"}
        fields["state"] = VmState(fields["state"])
        fields["made"] = frozenset(Made(word) for word in fields["made"])
        fields["leases"] = tuple(LeaseRecord(**lease) for lease in fields["leases"])
        fields["pager"] = None if fields.get("pager") is None else PagerPlan(**fields["pager"])
        fields["tiering"] = None if fields.get("tiering") is None else Tiering.from_json(fields["tiering"])
        fields["donors"] = tuple(fields.get("donors", ()))
        fields["disks"] = tuple(fields.get("disks", ()))
        fields["shares"] = tuple(fields.get("shares", ()))
        fields["asked_to"] = tuple(fields.get("asked_to", ()))
        for key in ("qemu", "pager_process"):
            fields[key] = None if fields.get(key) is None else Identity(**fields[key])
        fields["drained"] = tuple(KnownDonor(**each) for each in fields.get("drained", ()))
        fields["forwards"] = tuple((host, guest) for host, guest in fields["forwards"])
        return cls(**fields)

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {"format": _FORMAT, **asdict(self), "made": sorted(self.made)}


def now_utc() -> str:
    """Return the present time as records have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def prepared(plan: VmPlan, before: Record | None) -> Record:
    """Return the record of a VM in preparation; ``before`` is what there was of it."""
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
    """The record of one VM on disk: every change is written before it is acted on.

    ``files`` has the runtime directory that the record names, once it was read or written.
    """

    files: VmPaths
    record: Record | None = field(default=None)

    def _keep(self, record: Record | None) -> Record | None:
        self.record = record
        if record is not None and record.runtime is not None:
            self.files = replace(self.files, runtime=Path(record.runtime))
        return record

    def save(self, record: Record) -> Record:
        """Write ``record``, in one step, durably."""
        make_directory(self.files.state)
        draft = self.files.record.with_suffix(".new")
        with draft.open("w") as stream:
            json.dump(record.to_json(), stream, indent=2)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(self.files.record)
        self._keep(record)
        return record

    def load(self) -> Record | None:
        """Read the record; None if the VM does not exist.

        Raises:
            GhostboxError: the file cannot be read or makes no sense.
        """
        try:
            self._keep(Record.from_json(json.loads(self.files.record.read_text())))
        except FileNotFoundError:
            self.record = None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
            raise GhostboxError(
                f"cannot read {self.files.record}: {err}",
                why=f"the VM may run nevertheless; {self.files.disk} is its disk",
                hint="run this as the user who made the VM, or mend the file: it is JSON",
            ) from err
        if self.record is not None and self.record.name != self.files.state.name:
            # A rename was interrupted between the directory and the record: the directory counts.
            name = self.files.state.name
            self.record = replace(self.record, name=name, domain=domain_name(name))
        return self.record

    def need_record(self) -> Record:
        """Return the record that was read or written last; that there is none is our own mistake."""
        assert self.record is not None
        return self.record

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
    """Return a name that no other VM, of this host or another one, can have."""
    return f"{machine_id()}-{vm}-{secrets.token_hex(4)}"


def names(paths: Paths) -> list[str]:
    """Return the names of all VMs that have a record, sorted."""
    return sorted(file.parent.name for file in (paths.state / "vms").glob("*/vm.json"))


@contextmanager
def locked(files: VmPaths, *, supervisor: bool = False) -> Iterator[None]:
    """Hold the VM's lock; the kernel drops it when we die. The VM's supervisor holds it for moments: it is waited for.

    Raises:
        Refused: another command holds it.
    """
    descriptor = _lock_descriptor(files)
    holder = f"{_SUPERVISOR if supervisor else ''} {os.getpid()}"
    try:
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{holder.strip()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _lock_descriptor(files: VmPaths) -> int:
    """Open and lock the file; again if its last holder removed it (with the VM) between the two.

    Who holds the lock writes its name a moment after it took it: a name is believed when it was read twice.
    """
    deadline, seen = time.monotonic() + _PATIENCE_S, ""
    while True:
        make_directory(files.state)
        descriptor = os.open(files.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if files.lock.exists() and files.lock.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BlockingIOError as err:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            if holder != seen or (holder.startswith(_SUPERVISOR) and time.monotonic() < deadline):
                seen = holder
                time.sleep(0.05)
                continue
            raise Refused(
                f"another command is at work on VM '{files.state.name}' (pid {holder})",
                hint="wait until it is done, or end it",
            ) from err
        os.close(descriptor)


def lock_is_free(files: VmPaths) -> bool:
    """Tell whether no command is at work on the VM."""
    return processes.is_unlocked(files.lock)
