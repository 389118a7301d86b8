# SPDX-License-Identifier: MIT
"""``down`` and ``delete``: the VM ends, its memory goes back, and nothing stays but what was asked to stay."""

from __future__ import annotations

import time

from ghostbox import hypervisor
from ghostbox.errors import DeadlineExceeded, Refused
from ghostbox.hypervisor import DomainState
from ghostbox.paths import Paths, VmPaths
from ghostbox.session import cleanup, disk, observe
from ghostbox.session.progress import Progress
from ghostbox.session.record import Book, Record, VmState, locked
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
    """
    Book(paths.vm(name)).need(name, paths)
    with locked(paths.vm(name)):
        book = Book(paths.vm(name))
        if observe.heal(book) in (VmState.STOPPED, VmState.ABSENT):
            return False
        _end(book, progress, force=force, timeout_s=timeout_s)
    return True


def delete(name: str, paths: Paths, progress: Progress, *, force: bool = False) -> None:
    """Remove the VM with its disk.

    Raises:
        NotFound: no such VM.
        Refused: it runs, and not ``force``.
    """
    Book(paths.vm(name)).need(name, paths)
    with locked(paths.vm(name)):
        book = Book(paths.vm(name))
        state = observe.heal(book)
        if state is VmState.ABSENT:
            return
        if state is not VmState.STOPPED:
            if not force:
                raise Refused(
                    f"VM '{name}' is {state}", hint=f"ghostbox down {name}, or: ghostbox delete --force {name}"
                )
            _end(book, progress, force=True, timeout_s=0.0)
        cleanup.remove_state(book.files)


def _end(book: Book, progress: Progress, *, force: bool, timeout_s: float) -> None:
    record = book.record
    assert record is not None
    record = book.save(record.to(VmState.STOPPING))
    if not force:
        with progress.stage("shutdown") as stage:
            stage.say("asked the guest")
            _shut_down(record, book.files, timeout_s)
            stage.say("the guest has shut down")
    interrupts = Interrupts()
    with progress.stage("cleanup") as stage, interrupts.watched(), interrupts.shielded():
        errors = cleanup.unmake(book)
        cleanup.settle(book)
        stage.say("memory given back" if not errors else f"{len(errors)} left for later")
    cleanup.warn(errors)


def _shut_down(record: Record, files: VmPaths, timeout_s: float) -> None:
    """Press the power button until the domain is gone; a paused guest must run to hear it."""
    deadline = time.monotonic() + timeout_s
    with hypervisor.connect(record.libvirt_uri) as connection:
        if connection.state(record.domain) is DomainState.PAUSED:
            connection.resume(record.domain)
        while True:
            connection.shutdown(record.domain)
            left_s = max(0.0, deadline - time.monotonic())
            if connection.wait_absent(record.domain, timeout_s=min(_PRESS_INTERVAL_S, left_s)):
                return
            if time.monotonic() >= deadline:
                problem = disk.problem(record, files)
                raise DeadlineExceeded(
                    f"VM '{record.name}' did not shut down within {format_duration(timeout_s)}; it still runs",
                    why=None if problem is None else problem.text,
                    hint=f"ghostbox down --force {record.name}",
                )
