# SPDX-License-Identifier: MIT
"""End a VM (``down``), or end and remove it (``delete``); the memory of its donors goes back."""

from __future__ import annotations

import time
from dataclasses import replace

from ghostbox.errors import DeadlineExceeded, Interrupted, Refused
from ghostbox.paths import Paths, VmPaths
from ghostbox.session import cleanup, disk, liveness, observe
from ghostbox.session.progress import Progress
from ghostbox.session.record import Book, LeaseRecord, Record, VmState, locked
from ghostbox.session.signals import Interrupts
from ghostbox.system.hypervisor import DomainState
from ghostbox.units import format_duration

# A guest that still boots ignores the power button, so it is pressed again.
_PRESS_INTERVAL_S = 10.0


def down(name: str, paths: Paths, progress: Progress, *, force: bool = False, timeout_s: float = 120.0) -> bool:
    """End the VM; return whether it ran. Its disk, keys and logs stay.

    Args:
        name: of the VM.
        paths: where the VM lives.
        progress: receives the stages.
        force: end QEMU at once instead of asking the guest.
        timeout_s: how long the guest may take to shut down.

    Raises:
        NotFound: no VM has this name.
        DeadlineExceeded: the guest did not shut down; the VM still runs.
        Interrupted: Ctrl-C; the VM still runs, and may yet shut down.
        Refused: libvirt does not know the VM, so the guest cannot be asked; not with ``force``.
        HypervisorError: QEMU could not be ended; nothing was released.
    """
    Book(paths.vm(name)).need(name, paths)
    with locked(paths.vm(name)):
        book = Book(paths.vm(name))
        state = observe.heal(book)
        if state in (VmState.STOPPED, VmState.ABSENT):
            return False
        if state is VmState.UNMANAGED and not force:
            raise observe.refused(book, f"VM '{book.record.name}' cannot be asked to shut down")
        _end(book, progress, force=force, timeout_s=timeout_s)
    return True


def delete(name: str, paths: Paths, progress: Progress, *, force: bool = False) -> None:
    """Remove the VM with its disk.

    Raises:
        NotFound: no VM has this name.
        Refused: the VM runs; not with ``force``.
        HypervisorError: QEMU could not be ended; nothing was released or removed.
    """
    Book(paths.vm(name)).need(name, paths)
    with locked(paths.vm(name)):
        book = Book(paths.vm(name))
        state = observe.heal(book)
        if state is VmState.ABSENT:
            return
        if state is not VmState.STOPPED:
            if not force:
                raise _not_stopped(book, state)
            _end(book, progress, force=True, timeout_s=0.0)
        cleanup.remove_state(book.files)


def forget(name: str, paths: Paths) -> tuple[LeaseRecord, ...]:
    """Remove this machine's files of a VM that was started on another machine; return the leases in its record.

    Nothing is ended or released: the VM may run on the other machine, with this memory.

    Raises:
        NotFound: no VM has this name.
        Refused: the VM was not started on another machine.
    """
    Book(paths.vm(name)).need(name, paths)
    with locked(paths.vm(name)):
        book = Book(paths.vm(name))
        record = book.need(name, paths)
        if not liveness.is_elsewhere(record, book.files):
            raise Refused(
                f"VM '{name}' is not one that was started on another machine",
                why=liveness.look(record, book.files).text,
                hint=f"ghostbox delete {name}",
            )
        cleanup.remove_state(book.files)
    return record.leases


def _not_stopped(book: Book, state: VmState) -> Refused:
    record = book.record
    if liveness.is_elsewhere(record, book.files):
        why = liveness.look(record, book.files).text
        return Refused(f"VM '{record.name}' is {state}", why=why, hint=liveness.how_to_forget(record))
    return Refused(
        f"VM '{record.name}' is {state}",
        hint=f"ghostbox down {record.name}, or: ghostbox delete --force {record.name}",
    )


def _end(book: Book, progress: Progress, *, force: bool, timeout_s: float) -> None:
    record = book.record
    before = record
    if record.state in (VmState.RUNNING, VmState.STOPPED):
        record = book.save(record.to(VmState.STOPPING))
    interrupts = Interrupts()
    try:
        with interrupts.watched():
            if not force:
                _ask(record, book.files, progress, timeout_s)
            with progress.stage("cleanup") as stage, interrupts.shielded():
                errors = cleanup.unmake(book, end=True)
                cleanup.settle(book)
                stage.say("memory given back" if not errors else f"{len(errors)} left for later")
    except BaseException as err:
        _restore_state(book, before)
        if isinstance(err, KeyboardInterrupt):
            raise Interrupted(
                f"interrupted: VM '{record.name}' was asked to shut down, and may do so yet",
                hint=f"ghostbox down {record.name} waits for it again",
            ) from err
        raise
    cleanup.warn(errors)


def _restore_state(book: Book, before: Record) -> None:
    """Restore the recorded state of a VM that could not be ended: nothing of it was removed."""
    now = book.found
    if now is not None and now.state is VmState.STOPPING:
        book.save(replace(now, state=before.state))


def _ask(record: Record, files: VmPaths, progress: Progress, timeout_s: float) -> None:
    with progress.stage("shutdown") as stage:
        stage.say("asked the guest")
        _shut_down(record, files, timeout_s)
        stage.say("the guest has shut down")


def _shut_down(record: Record, files: VmPaths, timeout_s: float) -> None:
    """Press the power button until QEMU is gone. A paused guest is resumed first, or it would not notice."""
    deadline = time.monotonic() + timeout_s
    with liveness.connect(record) as connection:
        if connection.state(record.domain, uuid=record.uuid) is DomainState.PAUSED:
            connection.resume(record.domain, uuid=record.uuid)
        while True:
            connection.shutdown(record.domain, uuid=record.uuid)
            left_s = min(_PRESS_INTERVAL_S, max(0.0, deadline - time.monotonic()))
            if connection.wait_absent(record.domain, timeout_s=left_s, uuid=record.uuid):
                return
            if time.monotonic() >= deadline:
                problem = disk.problem(record, files)
                raise DeadlineExceeded(
                    f"VM '{record.name}' did not shut down within {format_duration(timeout_s)}; it still runs",
                    why=None if problem is None else problem.text,
                    hint=f"ghostbox down {record.name} --timeout 10m waits longer; ghostbox down --force {record.name}"
                    " ends it at once: what the guest has not written is lost",
                )
