# SPDX-License-Identifier: MIT
"""A VM whose pager died gets another one, which goes on with the page map that the first one left. See ARCHITECTURE."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace

from ghostbox import hypervisor, pager, process_table, processes
from ghostbox.errors import DeadlineExceeded, GhostboxError, NotRunning, Refused
from ghostbox.paths import Paths
from ghostbox.session import cleanup, observe, runtime_dir
from ghostbox.session.progress import Progress
from ghostbox.session.record import Book, Record, VmState, locked

_log = logging.getLogger(__name__)
_RETURN_TIMEOUT_S = 60.0
_DONORS_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Recovered:
    """What ``recover`` did.

    ``action`` is ``recovered``, ``restarted``, ``restored`` (the pager was well, its files were gone) or ``none``.
    """

    name: str
    action: str
    pager_pid: int


def recover(name: str, paths: Paths, progress: Progress, *, restart: bool = False) -> Recovered:
    """Give a VM another pager if its own died, or in any case with ``restart``: the way to a newer version of it.

    Raises:
        NotFound: no such VM.
        NotRunning: it does not run, so it needs no pager.
        Refused: with ``restart``, the new pager could not go on with the page map; the old one serves on.
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
            return Recovered(name, "restored", runtime_dir.find_pager(book.need_record(), book.files) or 0)
        if not broken and not restart:
            found = pager.status(book.files.pager_control)
            return Recovered(name, "none", 0 if found is None else int(found["pid"]))
        with progress.stage("pager") as stage:
            pid = take_over(book, paths) if broken else replace_pager(book, paths)
            stage.say(f"pid {pid} serves the guest's memory")
    return Recovered(name, "recovered" if broken else "restarted", pid)


def replace_pager(book: Book, paths: Paths) -> int:
    """Have the pager of a VM that runs hand over to a new one, started as the record says now; return its process id.

    Call it with the lock held.

    Raises:
        Refused: the new pager could not go on with the page map; the old one serves on.
        GhostboxError: see `take_over`; the guest is frozen until another pager takes over.
    """
    _check_new_pager(book, paths)
    pager.hand_over(cleanup.pager_files(book.files))
    return take_over(book, paths)


def _check_new_pager(book: Book, paths: Paths) -> None:
    """Before the pager that runs is asked to end: the next one must be able to read what it leaves."""
    name = book.files.state.name
    try:
        pager.check_resume(paths.pager_program, cleanup.pager_files(book.files))
    except GhostboxError as err:
        raise Refused(
            f"VM '{name}' keeps its pager: the new one could not go on in its place",
            why=err.why or err.message,
            hint=f"to use the new one: ghostbox down {name}, then ghostbox up {name}",
        ) from err


def take_over(book: Book, paths: Paths) -> int:
    """Start a pager behind one that is gone, and wait until QEMU's memory is its own; return its process id.

    Call it with the lock held.

    Raises:
        GhostboxError: there is no page map, or the pager does not start, or QEMU does not come back to it.
    """
    record = book.record
    assert record is not None
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
    """The shim in QEMU looks for a pager five times a second."""
    qemu = hypervisor.find_qemu(record.uuid)
    if qemu is None:
        return  # it ended meanwhile: the pager notices, and so does the next command
    try:
        processes.wait_until(
            lambda: pager.serves(files.control, qemu.pid) or not processes.pid_alive(qemu.pid),
            timeout_s=_RETURN_TIMEOUT_S,
            what=f"QEMU (pid {qemu.pid}) to hand its memory to the new pager",
        )
    except DeadlineExceeded as err:
        raise DeadlineExceeded(err.message, why=f"the pager's log is {files.log}") from err


def _wait_for_donors(files: pager.PagerFiles) -> None:
    """A new pager connects one donor after the other: for that moment none of them is to be called away."""

    def connected() -> bool:
        found = pager.status(files.control)
        return found is None or all(donor["state"] != "down" for donor in found["donors"])

    with contextlib.suppress(DeadlineExceeded):  # one that is away indeed: the status says so
        processes.wait_until(connected, timeout_s=_DONORS_TIMEOUT_S, what="the donors", interval_s=0.05)


def recover_if_broken(book: Book, paths: Paths, state: VmState) -> VmState:
    """For commands that come by: recover a VM whose pager died, if nobody else is at work on it.

    The same for one whose pager lost its files. Returns what the VM is then; why it could not be recovered is logged.
    """
    record = book.record
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
    """With the lock held: the same for a VM that is broken, or was a moment ago."""
    state = observe.heal(book)
    if state in (VmState.ABSENT, VmState.STOPPED):
        return state
    name = book.need_record().name
    try:
        if state is not VmState.BROKEN:
            if runtime_dir.restore(book):
                _log.warning("files in the runtime directory of VM '%s' were gone: its pager has made them anew", name)
            return state
        pid = take_over(book, paths)
    except GhostboxError as err:
        _log.warning("%s%s", err.message, f": {err.why}" if err.why else "")
        return state
    _log.warning("the pager of VM '%s' had died: another one (pid %d) goes on in its place", name, pid)
    return observe.heal(book)
