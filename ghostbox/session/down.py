# SPDX-License-Identifier: MIT
"""``down`` and ``delete``: the VM ends, its memory goes back, and nothing stays but what was asked to stay."""

from __future__ import annotations

import time
from dataclasses import replace

from ghostbox.errors import DeadlineExceeded, Interrupted, Refused
from ghostbox.hypervisor import DomainState
from ghostbox.paths import Paths, VmPaths
from ghostbox.session import cleanup, disk, liveness, observe
from ghostbox.session.progress import Progress
from ghostbox.session.record import Book, LeaseRecord, Record, VmState, locked
from ghostbox.session.signals import Interrupts
from ghostbox.units import format_duration

# A guest that still boots does not hear the power button; it is pressed again.
_PRESS_INTERVAL_S = 10.0


def down(name: str, paths: Paths, progress: Progress, *, force: bool = False, timeout_s: float = 120.0) -> bool:
    """End the VM; tell whether it ran. Its disk, keys and logs stay.

    Args:
        name: of the VM.
        paths: where it lives.
        progress: is told the stages.
        force: pull the plug instead of asking the guest.
        timeout_s: how long the guest may take to shut down.

    Raises:
        NotFound: no such VM.
        DeadlineExceeded: the guest did not shut down; it still runs.
        Interrupted: Ctrl-C; it still runs, and may shut down yet.
        Refused: libvirt does not know it, so the guest cannot be asked, and not ``force``.
        HypervisorError: its QEMU could not be ended; nothing was released.
    """
    Book(paths.vm(name)).need(name, paths)
    with locked(paths.vm(name)):
        book = Book(paths.vm(name))
        state = observe.heal(book)
        if state in (VmState.STOPPED, VmState.ABSENT):
            return False
        if state is VmState.UNMANAGED and not force:
            raise _cannot_ask(book)
        _end(book, progress, force=force, timeout_s=timeout_s)
    return True


def delete(name: str, paths: Paths, progress: Progress, *, force: bool = False) -> None:
    """Remove the VM with its disk.

    Raises:
        NotFound: no such VM.
        Refused: it runs, and not ``force``.
        HypervisorError: its QEMU could not be ended; nothing was released or removed.
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
    """Remove what this machine has of a VM that was started on another one; return the leases that it may hold there.

    Nothing is ended or released: the VM may run there, with this memory.

    Raises:
        NotFound: no such VM.
        Refused: it is this machine's.
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
    record = book.need_record()
    if liveness.is_elsewhere(record, book.files):
        why = liveness.look(record, book.files).text
        return Refused(f"VM '{record.name}' is {state}", why=why, hint=liveness.how_to_forget(record))
    return Refused(
        f"VM '{record.name}' is {state}",
        hint=f"ghostbox down {record.name}, or: ghostbox delete --force {record.name}",
    )


def _end(book: Book, progress: Progress, *, force: bool, timeout_s: float) -> None:
    record = book.record
    assert record is not None
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
        _go_back(book, before)
        if isinstance(err, KeyboardInterrupt):
            raise Interrupted(
                f"interrupted: VM '{record.name}' was asked to shut down, and may do so yet",
                hint=f"ghostbox down {record.name} waits for it again",
            ) from err
        raise
    cleanup.warn(errors)


def _go_back(book: Book, before: Record) -> None:
    """The VM runs after all: nothing was unmade, so the record says what it said."""
    now = book.record
    if now is not None and now.state is VmState.STOPPING:
        book.save(replace(now, state=before.state))


def _cannot_ask(book: Book) -> Refused:
    assert book.record is not None
    problem = observe.observe(book.record, book.files).problem
    return Refused(
        f"VM '{book.record.name}' cannot be asked to shut down",
        why=None if problem is None else problem.text,
        hint=None if problem is None else problem.advice,
    )


def _ask(record: Record, files: VmPaths, progress: Progress, timeout_s: float) -> None:
    with progress.stage("shutdown") as stage:
        stage.say("asked the guest")
        _shut_down(record, files, timeout_s)
        stage.say("the guest has shut down")


def _shut_down(record: Record, files: VmPaths, timeout_s: float) -> None:
    """Press the power button until QEMU is gone; a paused guest must run to hear it."""
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
                    " pulls the plug: what the guest has not written is lost",
                )
