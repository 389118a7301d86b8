# SPDX-License-Identifier: MIT
"""Find out a VM's real state, and clean up after a crash, a reboot or the guest's own power-off."""

from __future__ import annotations

from dataclasses import dataclass

from ghostbox.errors import HypervisorError, Refused
from ghostbox.pager.health import Problem
from ghostbox.paths import VmPaths
from ghostbox.session import cleanup, liveness, runtime_dir
from ghostbox.session.liveness import Life
from ghostbox.session.record import Book, Record, VmState, lock_is_free, locked
from ghostbox.system.hypervisor import DomainState

_UNKNOWN_TO_LIBVIRT = (DomainState.ABSENT, DomainState.CRASHED)
_UP = (VmState.RUNNING, VmState.STOPPING)


@dataclass(frozen=True)
class Seen:
    """Holds the state to show to the user, and the problem, if GhostBox has lost control of a part of the VM."""

    state: VmState
    problem: Problem | None = None


def observe(record: Record, files: VmPaths) -> Seen:
    """Return a VM's real state. This changes nothing."""
    if record.state in (VmState.PREPARING, VmState.STARTING):
        return Seen(record.state)
    sight = liveness.look(record, files)
    if record.state not in _UP:
        return _stopped(record, files, sight)
    if sight.life is Life.GONE:
        return Seen(VmState.STOPPED)
    if sight.life is Life.ALIVE and runtime_dir.find_pager(record, files) is None:
        return Seen(VmState.BROKEN)
    known = liveness.ask(record)
    if known.state in _UNKNOWN_TO_LIBVIRT:
        return Seen(VmState.UNMANAGED, _unmanaged(record, files, sight.text, known.problem))
    problem = _lost_files(record, files)
    if known.state is DomainState.PAUSED:
        return Seen(VmState.PAUSED, problem)
    # A `down` that was killed leaves the state STOPPING behind; a `down` at work holds the lock.
    return Seen(VmState.RUNNING if lock_is_free(files) else record.state, problem)


def refused(book: Book, message: str) -> Refused:
    """Return an error about a VM that adds the VM's present problem, if there is one, and the advice for it."""
    problem = observe(book.record, book.files).problem
    return Refused(message) if problem is None else Refused(message, why=problem.text, hint=problem.advice)


def _lost_files(record: Record, files: VmPaths) -> Problem | None:
    missing = runtime_dir.lost(record, files)
    if not missing:
        return None
    names = ", ".join(file.name for file in missing)
    return Problem(
        f"the VM runs, but files of its pager in {files.runtime} are gone: {names}",
        f"ghostbox recover {record.name}",
    )


def _stopped(record: Record, files: VmPaths, sight: liveness.Sight) -> Seen:
    """Return the state of a VM that is recorded as stopped: a QEMU that runs all the same makes it unmanaged."""
    if sight.life is Life.GONE or (sight.life is Life.UNSEEN and not (record.made or record.leases)):
        return Seen(record.state)
    text = f"it is recorded as stopped, but {sight.text}"
    if not record.leases:
        text += "; its remote memory was given back, so what lay there is lost"
    advice: str | None = f"save what matters (ghostbox shell {record.name}), then ghostbox down --force {record.name}"
    if sight.life is Life.UNSEEN:
        advice = liveness.how_to_forget(record) if liveness.is_elsewhere(record, files) else None
    return Seen(VmState.UNMANAGED, Problem(text, advice))


def _unmanaged(record: Record, files: VmPaths, found: str, why: str | None) -> Problem:
    if liveness.is_elsewhere(record, files):
        return Problem(f"{found}: nothing of it is released", liveness.how_to_forget(record))
    denial = f"libvirt at {record.libvirt_uri} does not know the VM" if why is None else why
    return Problem(
        f"{denial}, but {found}: nothing of it is released",
        f"shut it down from inside (ghostbox shell {record.name} -- sudo poweroff)",
    )


def heal(book: Book) -> VmState:
    """Undo what an interrupted ``up`` made, clean up after a guest that ended; return the VM's state then.

    The caller holds the lock.
    """
    record = book.load()
    if record is None:
        return VmState.ABSENT
    if _needs_repair(record, book.files):
        return _state_after_cleanup(book, record)
    if record.state is VmState.STOPPING:
        record = book.save(record.to(VmState.RUNNING))
    return observe(record, book.files).state


def _state_after_cleanup(book: Book, record: Record) -> VmState:
    try:
        errors = cleanup.unmake(book, end=record.state in (VmState.PREPARING, VmState.STARTING))
    except HypervisorError as err:  # QEMU runs, or may run: the next command tries again
        cleanup.warn([err])
        return record.state
    cleanup.warn(errors)
    settled = cleanup.settle(book)
    return VmState.ABSENT if settled is None else settled.state


def heal_if_idle(book: Book) -> Seen:
    """Heal the VM if no other command holds its lock; return its state (for commands that only show)."""
    record = book.load()
    if record is None:
        return Seen(VmState.ABSENT)
    if lock_is_free(book.files) and _needs_repair(record, book.files):
        with locked(book.files):
            heal(book)
        record = book.load()
    return Seen(VmState.ABSENT) if record is None else observe(record, book.files)


def _needs_repair(record: Record, files: VmPaths) -> bool:
    if record.state in (VmState.PREPARING, VmState.STARTING):
        return True
    if record.state is VmState.STOPPED and not (record.made or record.leases):
        return False
    return liveness.is_over(record, files)
