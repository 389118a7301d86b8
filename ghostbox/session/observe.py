# SPDX-License-Identifier: MIT
"""What a VM really is now, and healing what a crash, a reboot or the guest's own power-off left."""

from __future__ import annotations

from ghostbox import hypervisor, pager
from ghostbox.hypervisor import DomainState
from ghostbox.paths import VmPaths
from ghostbox.session import cleanup
from ghostbox.session.record import Book, Record, VmState, lock_is_free, locked

_GONE = (DomainState.ABSENT, DomainState.CRASHED)


def domain_state(record: Record) -> DomainState:
    """Ask libvirt for the VM's domain."""
    with hypervisor.connect(record.libvirt_uri) as connection:
        return connection.state(record.domain)


def observe(record: Record, files: VmPaths) -> VmState:
    """Return the state a user should see. Changes nothing."""
    if record.state not in (VmState.RUNNING, VmState.STOPPING):
        return record.state
    domain = domain_state(record)
    if domain in _GONE:
        return VmState.STOPPED
    if pager.status(files.pager_control) is None:
        return VmState.BROKEN
    return VmState.PAUSED if domain is DomainState.PAUSED else record.state


def heal(book: Book) -> VmState:
    """Undo what an interrupted ``up`` made, clean up behind a guest that ended; return what the VM is then.

    Call it with the lock held.
    """
    record = book.load()
    if record is None:
        return VmState.ABSENT
    if _needs_healing(record):
        cleanup.warn(cleanup.unmake(book))
        settled = cleanup.settle(book)
        return VmState.ABSENT if settled is None else settled.state
    return observe(record, book.files)


def heal_if_idle(files: VmPaths) -> VmState:
    """Heal unless another command is at work on the VM; return what the VM is (for commands that only look)."""
    book = Book(files)
    record = book.load()
    if record is None:
        return VmState.ABSENT
    if not lock_is_free(files) or not _needs_healing(record):
        return observe(record, files)
    with locked(files):
        return heal(book)


def _needs_healing(record: Record) -> bool:
    if record.state in (VmState.PREPARING, VmState.STARTING):
        return True
    if record.state is VmState.STOPPED:
        return bool(record.made or record.leases)
    return domain_state(record) in _GONE
