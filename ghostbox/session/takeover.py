# SPDX-License-Identifier: MIT
"""Start another pager for a VM whose pager died; it resumes from the page map of the first (docs/failure-model.md)."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace

from ghostbox import pager
from ghostbox.errors import DeadlineExceeded, GhostboxError, NotRunning, Refused
from ghostbox.paths import Paths
from ghostbox.session import cleanup, observe, runtime_dir
from ghostbox.session.progress import Progress
from ghostbox.session.record import Book, Record, VmState, locked
from ghostbox.system import hypervisor, pidfd, process_table, processes

_log = logging.getLogger(__name__)
_RETURN_TIMEOUT_S = 60.0
_DONORS_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Recovered:
    """Holds what ``recover`` did.

    ``action`` is ``recovered``, ``restarted``, ``restored`` (the pager ran, but its files were gone) or ``none``.
    """

    name: str
    action: str
    pager_pid: int


def recover(name: str, paths: Paths, progress: Progress, *, restart: bool = False) -> Recovered:
    """Give a VM another pager if its own died; with ``restart``, replace a pager that runs, e.g. by a newer version.

    Raises:
        NotFound: no VM has this name.
        NotRunning: the VM does not run, so it needs no pager.
        Refused: with ``restart``, the new pager could not read the page map; the old pager serves on.
        GhostboxError: there is no page map, or the new pager does not start; the guest stays frozen, nothing is lost.
    """
    Book(paths.vm(name)).need(name, paths)
    with locked(paths.vm(name)):
        book = Book(paths.vm(name))
        state = observe.heal(book)
        if state in (VmState.ABSENT, VmState.STOPPED, VmState.STARTING, VmState.PREPARING):
            raise NotRunning(f"VM '{name}' is {state}: it needs no pager", hint=f"ghostbox up {name}")
        broken = state is VmState.BROKEN
        if not broken and runtime_dir.restore(book) and not restart:
            return Recovered(name, "restored", runtime_dir.find_pager(book.record, book.files) or 0)
        if not broken and not restart:
            found = pager.status(book.files.pager_control)
            return Recovered(name, "none", 0 if found is None else found.pid)
        with progress.stage("pager") as stage:
            pid = take_over(book, paths) if broken else replace_pager(book, paths)
            stage.say(f"pid {pid} serves the guest's memory")
    return Recovered(name, "recovered" if broken else "restarted", pid)


def replace_pager(book: Book, paths: Paths) -> int:
    """Let the pager of a running VM hand over to a new pager, started as the record says now; return its process id.

    The caller holds the lock.

    Raises:
        Refused: the new pager could not read the page map; the old pager serves on.
        GhostboxError: see `take_over`; the guest is frozen until another pager takes over.
    """
    _check_new_pager(book, paths)
    pager.hand_over(cleanup.pager_files(book.files))
    return take_over(book, paths)


def _check_new_pager(book: Book, paths: Paths) -> None:
    """Check that a new pager can read the running pager's page map, before that pager is told to end."""
    name = book.files.state.name
    try:
        pager.check_resume(paths.pager_program, cleanup.pager_files(book.files))
    except GhostboxError as err:
        raise Refused(
            f"VM '{name}' keeps its pager: the new pager cannot resume from the page map",
            why=err.why or err.message,
            hint=f"to use the new one: ghostbox down {name}, then ghostbox up {name}",
        ) from err


def take_over(book: Book, paths: Paths) -> int:
    """Start a pager for a VM whose pager is gone, and wait until QEMU hands it the memory; return its process id.

    The caller holds the lock.

    Raises:
        GhostboxError: there is no page map, the pager does not start, or QEMU does not connect to it.
    """
    record = book.record
    files = cleanup.pager_files(book.files)
    if record.pager is None or not files.state.exists():
        raise GhostboxError(
            f"VM '{record.name}' cannot be recovered: its pager left no page map",
            why=f"{files.state} is not there",
            hint=f"ghostbox down --force {record.name}, then ghostbox up {record.name}; what the guest had not written"
            " to its disk is lost",
        )
    peer = hypervisor.qemu_user(record.libvirt_uri).uid
    pid = pager.resume(paths.pager_program, record.pager, files, peer_uid=peer)
    record = book.save(replace(record, pager_process=process_table.identify(pid)))
    _wait_for_qemu(record, files)
    _wait_for_donors(files)
    return pid


def _wait_for_qemu(record: Record, files: pager.PagerFiles) -> None:
    """Wait until the shim in QEMU, which looks for a pager five times a second, has found the new one."""
    qemu = hypervisor.find_qemu(record.uuid)
    if qemu is None:
        return  # QEMU has ended: the pager ends, too, and the next command cleans up
    try:
        with pidfd.Process(qemu.pid) as guest:
            processes.wait_until(
                lambda: pager.serves(files.control, qemu.pid) or guest.ended(),
                timeout_s=_RETURN_TIMEOUT_S,
                what=f"QEMU (pid {qemu.pid}) to hand its memory to the new pager",
            )
    except ProcessLookupError:
        return
    except DeadlineExceeded as err:
        raise DeadlineExceeded(err.message, why=f"the pager's log is {files.log}") from err


def _wait_for_donors(files: pager.PagerFiles) -> None:
    """Wait while a new pager connects to its donors, so that no command shows them as down meanwhile."""

    def connected() -> bool:
        found = pager.status(files.control)
        return found is None or all(donor.state != "down" for donor in found.donors)

    with contextlib.suppress(DeadlineExceeded):  # a donor that is really down is shown as down
        processes.wait_until(connected, timeout_s=_DONORS_TIMEOUT_S, what="the donors", interval_s=0.05)


def recover_if_broken(book: Book, paths: Paths, state: VmState) -> VmState:
    """Recover a VM whose pager died, or lost its files, if no other command holds the VM's lock.

    Commands that show a VM call this. Returns the VM's state afterwards; a failure is only logged.
    """
    record = book.found
    lives = state in (VmState.RUNNING, VmState.PAUSED, VmState.UNMANAGED)
    if state is not VmState.BROKEN and not (lives and record is not None and runtime_dir.lost(record, book.files)):
        return state
    try:
        with locked(book.files):
            return heal_pager(book, paths)
    except Refused as err:
        _log.debug("not recovered: %s", err.message)
    return state


def heal_pager(book: Book, paths: Paths) -> VmState:
    """Do the work of `recover_if_broken` for a caller that holds the lock; return the VM's state."""
    state = observe.heal(book)
    if state in (VmState.ABSENT, VmState.STOPPED):
        return state
    name = book.record.name
    try:
        if state is not VmState.BROKEN:
            if runtime_dir.restore(book):
                _log.warning("files in the runtime directory of VM '%s' were gone: its pager has made them anew", name)
            return state
        pid = take_over(book, paths)
    except GhostboxError as err:
        _log.warning("%s%s", err.message, f": {err.why}" if err.why else "")
        return state
    _log.warning("the pager of VM '%s' had died: another one (pid %d) serves the VM", name, pid)
    return observe.heal(book)
