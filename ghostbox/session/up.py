# SPDX-License-Identifier: MIT
"""Bring up a VM, from its configuration to a login, in stages (``up``).

image, donors, leases, pager, domain     with the VM's lock held; any failure or signal undoes all of them
boot, ssh, cloud-init                    the VM runs, the lock is free; after a failure the VM runs on
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from ghostbox import donors, pager
from ghostbox.config import Config
from ghostbox.donors import Assignment
from ghostbox.donors.client import host_name
from ghostbox.donors.models import Holder
from ghostbox.errors import DonorTooSmall, GhostboxError, HypervisorError, Interrupted, QemuCrashed
from ghostbox.paths import Paths
from ghostbox.plan import domain_xml
from ghostbox.plan.plan import Virt, VmPlan, shares_of
from ghostbox.session import (
    backup,
    cleanup,
    confinement,
    definition,
    events,
    guest_files,
    images,
    lease_keys,
    live,
    local_memory,
    login,
    network,
    observe,
    planning,
    pool,
    readiness,
    shares,
    supervisor,
    takeover,
    unreleased,
)
from ghostbox.session.definition import Defined
from ghostbox.session.live import Applied, When
from ghostbox.session.progress import Progress
from ghostbox.session.record import Book, LeaseRecord, Made, VmState, lease_name, locked, now_utc, prepared
from ghostbox.session.signals import Interrupts
from ghostbox.system import consent, hypervisor, process_table
from ghostbox.units import format_bytes

_log = logging.getLogger(__name__)
_SHARES_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class UpResult:
    """Holds what ``up`` did."""

    name: str
    state: VmState
    already_running: bool
    virt: str
    ssh_command: str
    ssh_port: int
    user: str
    changes: tuple[Applied, ...] = ()


def up(
    config: Config,
    paths: Paths,
    progress: Progress,
    *,
    wait: bool = True,
    heal_pager: bool = True,
    timeout_s: float | None = None,
    overcommit: bool = False,
) -> UpResult:
    """Start a VM as its definition and the command line say; make a VM that does not exist as ``config`` says.

    A VM that is frozen because its pager died gets another pager. An emulated VM whose QEMU crashes while its guest
    boots is started again, once.

    Args:
        config: the configuration of the command; its `given` keys change an existing VM.
        paths: where VMs live.
        progress: receives the stages.
        wait: wait until the guest takes a login.
        heal_pager: give a frozen VM another pager.
        timeout_s: how long to wait; None takes the VM's own ``vm.boot_timeout``.
        overcommit: start the VM also if this machine has too little memory for it.

    Raises:
        GhostboxError: a stage failed. Up to ``domain`` all is undone, the definition's changes too; after it, the VM
            runs on and the message says so.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP, with the same two outcomes.
    """
    book = Book(paths.vm(config.vm.name))
    interrupts = Interrupts()
    begin = partial(_begin, config, paths, book, progress, interrupts, heal_pager=heal_pager, overcommit=overcommit)
    with interrupts.watched():
        begun, plan = begin()
        if wait and plan is not None:
            limit_s = plan.boot_timeout_s if timeout_s is None else timeout_s
            try:
                _wait(book, progress, limit_s)
            except QemuCrashed:
                if plan.virt is not Virt.TCG:
                    raise
                _note_crash(book, progress)
                begin()
                _wait(book, progress, limit_s)
    return begun


def _begin(
    config: Config,
    paths: Paths,
    book: Book,
    progress: Progress,
    interrupts: Interrupts,
    *,
    heal_pager: bool,
    overcommit: bool,
) -> tuple[UpResult, VmPlan | None]:
    """Start the VM, without waiting for its guest; return the plan that it was started by, None if it ran."""
    with _no_empty_directory(book), locked(book.files):
        state = observe.heal(book)
        if state is VmState.BROKEN and heal_pager:
            state = takeover.heal_pager(book, paths)
        defined = definition.settle(book, config)
        _note_changes(defined, progress)
        if state not in (VmState.ABSENT, VmState.STOPPED):
            supervisor.ensure(book, paths)
            return _already_there(book, paths, state, defined, progress), None
        if defined.config.pool.insecure:
            consent.give()
        if config.origin("pool.donors") == "flag":
            pool.use_again(book, planning.donors_of(config, paths))
        plan = _planned(defined.config, paths, book)
        if not overcommit:
            local_memory.check(plan, paths)
        _warn(plan, progress)
        plan = _start(plan, paths, book, progress, interrupts, defined)
    changes = tuple(Applied(each.key, each.before, each.after, When.NOW) for each in defined.changes)
    return _result(book, already_running=False, changes=changes), plan


def _note_crash(book: Book, progress: Progress) -> None:
    text = "QEMU crashed while the guest booted, as happens now and then without KVM: the VM is started again"
    progress.note(text)
    events.append(book.files, "qemu-crashed", text)


def _planned(config: Config, paths: Paths, book: Book) -> VmPlan:
    """Make the plan; if the donors have too little, first release what earlier commands could not, then try again."""
    try:
        return planning.make_plan(config, paths, book.found)
    except DonorTooSmall:
        owed = len(unreleased.load(paths.state))
        if owed == 0 or unreleased.settle(paths) >= owed:
            raise
    return planning.make_plan(config, paths, book.found)


def _note_changes(defined: Defined, progress: Progress) -> None:
    for line in (*defined.ignored, *map(str, defined.changes)):
        progress.note(line)


def _wait(book: Book, progress: Progress, timeout_s: float) -> None:
    try:
        readiness.wait_ready(book, progress, timeout_s=timeout_s)
        _wait_shares(book, progress)
    except KeyboardInterrupt as err:
        raise readiness.kept(book.record, "the guest", err) from err


def _wait_shares(book: Book, progress: Progress) -> None:
    """Wait for the shared folders, which the supervisor serves; a missing folder is only a warning."""
    record = book.record
    if not record.shares:
        return
    with readiness.guest(record, book.files) as ssh, progress.stage("shares") as stage:
        problems = shares.wait_mounted(book, ssh, timeout_s=_SHARES_TIMEOUT_S)
        stage.say(", ".join(map(shares.place, shares.folders(record))) if not problems else "not all are there")
    for problem in problems:
        progress.note(f"warning: {problem}")


@contextmanager
def _no_empty_directory(book: Book) -> Iterator[None]:
    """Remove the directory that holds the lock if the block leaves no VM in it."""
    try:
        yield
    finally:
        if book.found is None and not book.files.record.exists():
            cleanup.remove_state(book.files)


def _already_there(book: Book, paths: Paths, state: VmState, defined: Defined, progress: Progress) -> UpResult:
    """Return the result for a running VM: it takes what it can now, and the rest at its next start."""
    name = book.record.name
    if state is VmState.BROKEN:
        raise GhostboxError(
            f"VM '{name}' is broken: its pager is gone, so the guest is frozen",
            why=f"the pager's log is {book.files.pager_log}",
            hint=f"ghostbox recover {name}",
        )
    if book.record.state not in (VmState.RUNNING, VmState.STOPPING):
        what = f"it is recorded as {book.record.state}, and its QEMU lives, or may live"
        raise observe.refused(book, f"VM '{name}' cannot be started: {what}")
    applied = live.apply(book, paths, state, defined, progress) if defined.changes else ()
    for each in applied:
        progress.note(f"{each.key}: {each.applies}")
    return _result(book, already_running=True, changes=applied)


def _result(book: Book, *, already_running: bool, changes: tuple[Applied, ...] = ()) -> UpResult:
    record = book.record
    return UpResult(
        name=record.name,
        state=record.state,
        already_running=already_running,
        virt=record.virt,
        ssh_command=login.command(book),
        ssh_port=record.ssh_port,
        user=record.user,
        changes=changes,
    )


def _warn(plan: VmPlan, progress: Progress) -> None:
    if plan.virt is Virt.TCG:
        progress.note(f"warning: no KVM, so the VM is emulated and slow: {plan.virt_reason}")
        hint = hypervisor.problem_hint(plan.virt_reason)
        if hint is not None:
            progress.note(f"         to mend it: {hint}")
        if not plan.guest.tiering.on:
            progress.note(f"         tiering is {plan.guest.tiering}")
    for line in (
        *images.notes(plan.image),
        *backup.notes(plan.backup, plan.pager.pool_bytes),
        *network.notes(plan.network),
        *guest_files.notes(plan),
    ):
        progress.note(line)


def _start(
    plan: VmPlan, paths: Paths, book: Book, progress: Progress, interrupts: Interrupts, defined: Defined
) -> VmPlan:
    """Run the stages up to ``domain``; undo all of them if one fails."""
    try:
        insecure = defined.config.pool.insecure
        book.save(dataclasses.replace(prepared(plan, book.found), insecure=insecure))
        plan = _image_stage(plan, paths, progress)
        plan = _donors_stage(plan, progress)
        uris = _leases_stage(plan, book, progress)
        _pager_stage(plan, paths, book, progress, uris)
        _domain_stage(plan, paths, book, progress, defined)
    except BaseException as err:
        with interrupts.shielded():
            if book.found is not None and book.found.state is VmState.RUNNING:
                raise readiness.kept(book.record, "boot", err) from err
            _undo(book)
        raise _explained(err, plan.name) from err
    return plan


def _undo(book: Book) -> None:
    if book.found is None:
        return
    try:
        cleanup.warn(cleanup.unmake(book, end=True))
    except HypervisorError as err:  # QEMU may run, so the record stays: the next command tries again
        cleanup.warn([err])
    else:
        cleanup.settle(book)


def _explained(err: BaseException, name: str) -> BaseException:
    if isinstance(err, KeyboardInterrupt):
        return Interrupted(f"interrupted: VM '{name}' was not started, what was made for it is undone")
    if isinstance(err, OSError):
        where = f" {err.filename}" if err.filename else ""
        return GhostboxError(
            f"cannot make the files of VM '{name}':{where}: {err.strerror}",
            hint="free some space, or set GHOSTBOX_STATE_DIR and GHOSTBOX_RUNTIME_DIR to directories that have it",
        )
    return err


def _image_stage(plan: VmPlan, paths: Paths, progress: Progress) -> VmPlan:
    with progress.stage("image") as stage:
        image = images.ready(plan, paths, stage.say)
        guest_files.prepare(plan, image, paths, paths.shim_library)
        stage.say(f"{image.name}, disk {format_bytes(plan.disk_bytes)}")
    return dataclasses.replace(plan, image=images.describe(image))


def _donors_stage(plan: VmPlan, progress: Progress) -> VmPlan:
    """Ask the donors again: building an image takes minutes, and other VMs borrow meanwhile."""
    with progress.stage("donors") as stage:
        offers = planning.offers(plan.donors, again=True)
        shares = shares_of(plan.pager, offers)
        stage.say(", ".join(f"{share.address} {format_bytes(share.size_bytes)}" for share in shares))
    return dataclasses.replace(plan, shares=shares)


def _leases_stage(plan: VmPlan, book: Book, progress: Progress) -> list[str]:
    """Make the leases; return their NBD URIs."""
    with progress.stage("leases") as stage:
        holder = Holder(host_name(), plan.name)
        assignments = [
            Assignment(share.address, lease_name(plan.name), share.size_bytes, holder) for share in plan.shares
        ]
        planned = tuple(LeaseRecord(each.donor_address, each.lease_name, each.size_bytes) for each in assignments)
        book.save(dataclasses.replace(book.record, leases=(*book.record.leases, *planned)))
        leases = donors.acquire(assignments)
        lease_keys.add(book.files, leases)
        keys = book.files.lease_keys
        known = tuple(pool.as_made(each, lease, keys) for each, lease in zip(planned, leases, strict=True))
        others = tuple(each for each in book.record.leases if each not in planned)
        book.save(dataclasses.replace(book.record, leases=(*others, *known)))
        stage.say(f"{len(leases)} lease{'s' if len(leases) > 1 else ''}")
    return [str(lease.nbd_uri) for lease in known]


def _pager_stage(plan: VmPlan, paths: Paths, book: Book, progress: Progress, uris: Sequence[str]) -> None:
    with progress.stage("pager") as stage:
        book.save(book.record.with_made(Made.PAGER))
        peer = hypervisor.qemu_user(plan.libvirt_uri).uid
        files = cleanup.pager_files(plan.files)
        copy = _start_backup(plan, book)
        pid = pager.start(paths.pager_program, plan.pager, files, uris, peer_uid=peer, backup=copy)
        book.save(dataclasses.replace(book.record, pager_process=process_table.identify(pid)))
        stage.say(f"pid {pid}, cache {format_bytes(plan.pager.cache_bytes)}")


def _start_backup(plan: VmPlan, book: Book) -> str | None:
    if plan.backup is None:
        return None
    backup.check(plan.backup)
    book.save(book.record.with_made(Made.BACKUP))
    backup.create(plan.backup, plan.pager.pool_bytes)
    backup.ensure(plan.files, plan.backup)
    return backup.uri(plan.files)


def _domain_stage(plan: VmPlan, paths: Paths, book: Book, progress: Progress, defined: Defined) -> None:
    with progress.stage("domain") as stage, hypervisor.connect(plan.libvirt_uri) as connection:
        _check_name_is_free(connection, plan)
        xml = domain_xml.build(plan)
        domain_xml.check(xml)
        record = book.save(book.record.with_made(Made.DOMAIN).to(VmState.STARTING))
        network.write_rules(record, book.files)
        network.write_filter(record, book.files)
        guest_files.begin_console_log(book.files.console_log)
        connection.create_paused(xml)
        pid = _check_memory_is_served(plan)
        record = book.save(dataclasses.replace(record, qemu=process_table.identify(pid)))
        definition.keep(book.files, defined.text)
        connection.resume(plan.domain)
        book.save(record.to(VmState.RUNNING, new=False, started_at=now_utc()))
        stage.say(f"{plan.domain}, {plan.virt.upper()}, pid {pid}")
    supervisor.ensure(book, paths)


def _check_name_is_free(connection: hypervisor.Hypervisor, plan: VmPlan) -> None:
    taken = connection.name_taken_by(plan.domain)
    if taken is None:
        return
    kind = "it runs" if taken.runs else "it is shut off, but defined there"
    if taken.info is not None and taken.info.state_dir != str(plan.files.state):
        kind += (
            f"; it belongs to VM '{taken.info.vm}' of another installation, whose state is in {taken.info.state_dir}"
        )
    hint = "choose another name for the VM"
    if taken.defined and not taken.runs:
        hint += f", or give the other one another: virsh -c {plan.libvirt_uri} domrename {plan.domain} NEW-NAME"
    raise HypervisorError(
        f"libvirt has a domain named {plan.domain} already, and it is not this VM's", why=kind, hint=hint
    )


def _check_memory_is_served(plan: VmPlan) -> int:
    """Check, before QEMU's CPUs run, that its memory is the pager's; return its process id."""
    qemu = hypervisor.find_qemu(plan.uuid)
    if qemu is None:
        raise HypervisorError(
            "QEMU ended right after its start", hint=f"its log: {hypervisor.qemu_log(plan.libvirt_uri, plan.domain)}"
        )
    if qemu.maps(plan.shim) is False:  # None: another user's process, which only the pager can judge (below)
        account, log = hypervisor.qemu_user(plan.libvirt_uri), hypervisor.qemu_log(plan.libvirt_uri, plan.domain)
        raise confinement.explain(confinement.look(qemu, plan.shim, account, log), qemu.pid, plan.shim)
    if not pager.serves(plan.files.pager_control, qemu.pid):
        raise HypervisorError(
            f"the pager does not serve the memory of QEMU (pid {qemu.pid})",
            why=f"the pager's log is {plan.files.pager_log}",
        )
    return qemu.pid
