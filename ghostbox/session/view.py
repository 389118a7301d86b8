# SPDX-License-Identifier: MIT
"""Collect what ``list``, ``info`` and ``status`` show. They repair what a crash left, and change nothing else."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ghostbox import pager
from ghostbox.donors import trust
from ghostbox.errors import GhostboxError
from ghostbox.pager import health, page_map
from ghostbox.pager.health import Health, Level, Problem
from ghostbox.pager.model import PagerDonor, PagerStatus
from ghostbox.paths import Paths
from ghostbox.plan.tiering import Tiering
from ghostbox.session import disk, leaving, login, observe, supervisor, takeover, unreleased
from ghostbox.session.observe import Seen
from ghostbox.session.record import Book, LeaseRecord, Record, VmState, names
from ghostbox.system import hypervisor
from ghostbox.system.processes import ControlError
from ghostbox.units import PAGE_BYTES

_log = logging.getLogger(__name__)
_ALIVE = (VmState.RUNNING, VmState.PAUSED, VmState.BROKEN, VmState.STOPPING, VmState.UNMANAGED)


@dataclass(frozen=True)
class VmSummary:
    """Holds a line of ``list``.

    ``health`` is None if the pager does not answer, ``disk_problem`` says why the VM is paused, ``problem`` what part
    of the VM GhostBox has lost control of.
    """

    name: str
    state: VmState
    virt: str
    cpus: int
    memory_bytes: int
    remote_memory_bytes: int
    ssh_port: int | None
    image: str
    health: Level | None
    disk_problem: Problem | None = None
    problem: Problem | None = None


@dataclass(frozen=True)
class VmInfo:
    """Holds what ``info`` shows: what a VM is made of."""

    name: str
    state: VmState
    uuid: str
    domain: str
    libvirt_uri: str
    virt: str
    cpus: int
    memory_bytes: int
    remote_memory_bytes: int
    cache_bytes: int
    disk_bytes: int
    image: str
    user: str
    ssh_command: str
    ssh_config: str
    ssh_port: int
    forwards: tuple[str, ...]
    mac: str
    created_at: str
    started_at: str | None
    leases: tuple[LeaseRecord, ...]
    files: dict[str, str]
    replicas: int
    backup: str | None
    on_donor_loss: str
    health: Health | None
    tiering: Tiering | None
    disk_problem: Problem | None = None
    problem: Problem | None = None
    network: str = "user"
    address: str | None = None
    disks: tuple[int, ...] = ()
    shares: tuple[str, ...] = ()


@dataclass(frozen=True)
class VmStatus:
    """Holds what ``status`` shows. ``pager`` is the pager's status (docs/reference/pager.md), None without an answer.

    In it each donor has also a ``name``, by which people know the donor, if the record has one. ``in_use_bytes``: how
    much of the remote memory the guest has written to and not given back, None if the pager does not say.

    ``paused_for_donor``: the supervisor has paused the VM, and will resume it. ``disk_problem``: QEMU has paused the VM
    since a write to its disk failed; the supervisor resumes it when there is space. ``problem``: what part of the VM
    GhostBox has lost control of, e.g. libvirt does not know the VM.
    """

    name: str
    state: VmState
    virt: str
    uptime_s: float | None
    qemu_pid: int | None
    ssh_command: str
    pager: PagerStatus | None
    health: Health | None = None
    paused_for_donor: bool = False
    disk_problem: Problem | None = None
    problem: Problem | None = None
    in_use_bytes: int | None = None


def summaries(paths: Paths) -> list[VmSummary]:
    """Return a summary of each VM; a VM that cannot be read is logged and left out."""
    unreleased.try_in_background(paths)
    found = []
    for name in names(paths):
        book = Book(paths.vm(name))
        try:
            summary = _summarize(book, paths)
        except GhostboxError as err:  # the other VMs are shown all the same
            _log.warning("VM '%s': %s%s", name, err.message, f" ({err.hint})" if err.hint else "")
        else:
            found += [summary] if summary is not None else []
    return found


def _summarize(book: Book, paths: Paths) -> VmSummary | None:
    seen = observe.heal_if_idle(book)
    record = book.load()
    if record is None:
        return None
    supervisor.ensure(book, paths)
    answer = leaving.noted(record, pager.status(book.files.pager_control)) if seen.state in _ALIVE else None
    summary = _summary(record, seen.state, None if answer is None else health.level(answer))
    return replace(summary, disk_problem=_disk_problem(record, book, seen.state), problem=seen.problem)


def info(name: str, paths: Paths) -> VmInfo:
    """Return what a VM is made of.

    Raises:
        NotFound: no VM has this name.
    """
    book, record, seen = _look(name, paths)
    state = seen.state
    supervisor.ensure(book, paths)
    files = book.files
    found = with_names(record, leaving.noted(record, pager.status(files.pager_control)) if state in _ALIVE else None)
    return VmInfo(
        name=record.name,
        state=state,
        uuid=record.uuid,
        domain=record.domain,
        libvirt_uri=record.libvirt_uri,
        virt=record.virt,
        cpus=record.cpus,
        memory_bytes=record.memory_bytes,
        remote_memory_bytes=record.remote_memory_bytes,
        cache_bytes=record.cache_bytes,
        disk_bytes=record.disk_bytes,
        image=record.image,
        user=record.user,
        ssh_command=login.command(book),
        ssh_config=str(files.ssh_config),
        ssh_port=record.ssh_port,
        forwards=tuple(f"127.0.0.1:{host} -> {guest}" for host, guest in record.forwards),
        mac=record.mac,
        created_at=record.created_at,
        started_at=record.started_at,
        leases=record.leases,
        files={
            "disk": str(files.disk),
            "console_log": str(files.console_log),
            "pager_log": str(files.pager_log),
            "known_hosts": str(files.known_hosts),
            "events": str(files.events),
            **{f"disk{number}": str(files.more_disk(number)) for number in range(2, 2 + len(record.disks))},
        },
        replicas=1 if record.pager is None else record.pager.replicas,
        backup=record.backup,
        on_donor_loss="wait" if record.pager is None else record.pager.on_donor_loss,
        health=_health(record, found),
        tiering=record.tiering,
        disk_problem=_disk_problem(record, book, state),
        problem=seen.problem,
        network=record.network,
        address=record.address,
        disks=record.disks,
        shares=record.shares,
    )


def status(name: str, paths: Paths, *, heal_pager: bool = True) -> VmStatus:
    """Return a VM's status; if its pager died, first start another one; start a supervisor if there is none.

    Raises:
        NotFound: no VM has this name.
    """
    book, record, seen = _look(name, paths)
    if heal_pager:
        takeover.recover_if_broken(book, paths, seen.state)
        record = book.need(name, paths)
        seen = observe.observe(record, book.files)
        supervisor.ensure(book, paths)
    state = seen.state
    running = state in _ALIVE
    found = with_names(record, leaving.noted(record, pager.status(book.files.pager_control)) if running else None)
    qemu = hypervisor.find_qemu(record.uuid) if running else None
    return VmStatus(
        name=record.name,
        state=state,
        virt=record.virt,
        uptime_s=_seconds_since(record.started_at) if running else None,
        qemu_pid=None if qemu is None else qemu.pid,
        ssh_command=login.command(book),
        pager=found,
        health=_health(record, found),
        paused_for_donor=record.paused and state is VmState.PAUSED,
        disk_problem=_disk_problem(record, book, state),
        problem=seen.problem,
        in_use_bytes=None if found is None else _in_use_bytes(book),
    )


def _in_use_bytes(book: Book) -> int | None:
    """Return how many bytes of the remote memory hold data; in the page map each page counts once."""
    try:
        found = page_map.ask(book.files.pager_control, n_cells=1)
    except ControlError as err:
        if err.code != "gone":
            raise
        return None
    if found is None:
        return None
    return found.length_bytes - sum(found.absent) * PAGE_BYTES


def _disk_problem(record: Record, book: Book, state: VmState) -> Problem | None:
    return disk.problem(record, book.files) if state is VmState.PAUSED else None


def _health(record: Record, found: PagerStatus | None) -> Health | None:
    if found is None:
        return None
    return health.assess(record.name, found, record.donor_names())


def with_names(record: Record, found: PagerStatus | None) -> PagerStatus | None:
    """Add to the pager's status what only the record knows of donors: names, and who answers in their place."""
    if found is None:
        return None
    leases = {lease.nbd_uri: lease for lease in record.leases}
    names = record.donor_names()
    named = tuple(_with_name(each, leases.get(each.uri), names) for each in found.donors)
    return found.model_copy(update={"donors": named})


def _with_name(donor: PagerDonor, lease: LeaseRecord | None, names: Mapping[str, str]) -> PagerDonor:
    if lease is None:
        return donor
    channel = str(trust.means_of_uri(donor.uri))
    why = {"why": lease.stranger} if lease.stranger is not None and donor.state == "down" else {}
    return donor.model_copy(update={"name": names.get(donor.uri, lease.donor), "channel": channel, **why})


def _look(name: str, paths: Paths) -> tuple[Book, Record, Seen]:
    unreleased.try_in_background(paths)
    book = Book(paths.vm(name))
    book.need(name, paths)
    seen = observe.heal_if_idle(book)
    return book, book.need(name, paths), seen


def _summary(record: Record, state: VmState, level: Level | None) -> VmSummary:
    return VmSummary(
        name=record.name,
        state=state,
        virt=record.virt,
        cpus=record.cpus,
        memory_bytes=record.memory_bytes,
        remote_memory_bytes=record.remote_memory_bytes,
        ssh_port=record.ssh_port if state is not VmState.STOPPED and record.network == "user" else None,
        image=record.image,
        health=level,
    )


def _seconds_since(started_at: str | None) -> float | None:
    if started_at is None:
        return None
    return (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(started_at)).total_seconds()
