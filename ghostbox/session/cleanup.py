# SPDX-License-Identifier: MIT
"""Unmakes what a VM's record names. One path for a failed ``up``, for ``down``, and for healing after a crash.

Every step may find its thing gone already. A step that fails is reported and its thing stays in the record, so that
the next command tries again; the other steps go on. A lease whose donor does not answer leaves the record for
`unreleased`, which tries again in the background.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ghostbox import hypervisor, pager
from ghostbox.donor_client import NoAnswer
from ghostbox.errors import GhostboxError
from ghostbox.paths import VmPaths
from ghostbox.session import backup, host_memory, liveness, shares, supervisor, unreleased
from ghostbox.session.record import THIS_HOST, Book, LeaseRecord, Made, Record, VmState

_log = logging.getLogger(__name__)
_MAX_THREADS = 8


def pager_files(files: VmPaths) -> pager.PagerFiles:
    """Return where the VM's pager listens and writes."""
    return pager.PagerFiles(files.pager_socket, files.pager_control, files.pager_log, files.pager_state)


def qemu_log(record: Record, files: VmPaths) -> Path:
    """Return QEMU's own log: libvirt's while the VM runs, our copy of it afterwards.

    The system's libvirt writes it for root alone: one that we may not look for counts as there, unless we have a copy.
    """
    live, copy = _libvirt_log(record), files.state / "qemu.log"
    try:
        return live if live.exists() else copy
    except PermissionError:
        return copy if copy.exists() else live


def _libvirt_log(record: Record) -> Path:
    return hypervisor.qemu_log(record.libvirt_uri, record.domain, record.environment)


def unmake(book: Book, *, end: bool) -> list[GhostboxError]:
    """Unmake domain, pager, leases, backup and files, in this order; return what could not be unmade.

    The domain goes before all: nothing may run without its pager, and if it cannot be ended all else stays. The
    supervisor goes next; what it would mend takes the lock that we hold. The leases go after the pager, which has the
    connections to them.

    ``end``: a QEMU that lives is ended.

    Raises:
        HypervisorError: QEMU lives, or may live; nothing was unmade.
    """
    assert book.record is not None
    errors: list[GhostboxError] = []
    if not end and not liveness.is_over(book.record, book.files):
        raise liveness.still_lives(book.record, liveness.look(book.record, book.files), None)
    if Made.DOMAIN in book.record.made or not liveness.is_over(book.record, book.files):
        liveness.end(book.record, book.files)
    _attempt(errors, _end_supervisor, book)
    if Made.DOMAIN in book.record.made:
        _attempt(errors, _remove_filter, book)
        _attempt(errors, _forget_domain, book)
    if Made.PAGER in book.record.made and Made.DOMAIN not in book.record.made:
        _attempt(errors, _end_pager, book)
    if Made.PAGER not in book.record.made:
        errors += release_all(book)
        if Made.BACKUP in book.record.made:
            _attempt(errors, _remove_backup, book)
    if Made.FILES in book.record.made and not book.record.made & {Made.DOMAIN, Made.PAGER}:
        _attempt(errors, _remove_runtime_files, book)
    return errors


def settle(book: Book) -> Record | None:
    """Record the VM as stopped, or forget one that never ran. Call it after `unmake`."""
    record = book.record
    assert record is not None
    if record.new and not record.made and not record.leases:
        remove_state(book.files)
        book.record = None
        return None
    stopped = record.to(VmState.STOPPED)
    if not record.made:
        stopped = replace(stopped, environment=None, runtime=None, machine=None, qemu=None, pager_process=None)
    return book.save(stopped)


def remove_state(files: VmPaths) -> None:
    """Remove all that is left of a VM: disk, keys, logs, record. The lock's file goes with them."""
    left: list[str] = []

    def note(_function: object, path: str, error: BaseException) -> None:
        if not isinstance(error, FileNotFoundError):
            left.append(f"{path}: {getattr(error, 'strerror', None) or error}")

    shutil.rmtree(files.state, onerror=lambda function, path, info: note(function, path, info[1]))
    if files.state.exists():
        raise GhostboxError(
            f"cannot remove {files.state}",
            why="\n".join(left[:3]) or None,
            hint="delete the VM as the user who made it, or as root",
        )


def warn(errors: list[GhostboxError]) -> None:
    """Log what could not be unmade."""
    for error in errors:
        _log.warning("%s%s", error.message, f": {error.why}" if error.why else "")


def _attempt(errors: list[GhostboxError], step: Callable[[Book], None], book: Book) -> None:
    try:
        step(book)
    except GhostboxError as err:
        errors.append(err)


def _forget_domain(book: Book) -> None:
    """Keep QEMU's log, which libvirt would write over."""
    record = book.record
    assert record is not None
    log = _libvirt_log(record)
    if os.access(log, os.R_OK | os.W_OK):
        shutil.copyfile(log, book.files.state / "qemu.log")
        log.unlink()
    book.save(record.without_made(Made.DOMAIN))


def _remove_filter(book: Book) -> None:
    assert book.record is not None
    if book.record.filter is not None:
        with liveness.connect(book.record) as connection:
            connection.undefine_filter(book.record.filter)


def _end_supervisor(book: Book) -> None:
    supervisor.stop(book.files)
    shares.stop(book.files)


def _remove_backup(book: Book) -> None:
    record = book.record
    assert record is not None
    if record.backup is not None:
        backup.remove(book.files, Path(record.backup))
    book.save(record.without_made(Made.BACKUP))


def _end_pager(book: Book) -> None:
    assert book.record is not None
    pager.stop(pager_files(book.files))
    book.save(book.record.without_made(Made.PAGER))


def release_all(book: Book) -> list[GhostboxError]:
    """End all leases, those of several donors at a time; return what could not be ended.

    A donor that does not answer is not waited for again: what it holds is noted (`unreleased`) and struck out here.
    """
    record = book.record
    assert record is not None
    with ThreadPoolExecutor(max_workers=_MAX_THREADS) as pool:
        failures = dict(zip(record.leases, pool.map(lambda lease: _end_lease(book, lease), record.leases), strict=True))
    kept = tuple(lease for lease, failure in failures.items() if failure and not _is_noted(book, lease, failure))
    book.save(replace(record, leases=kept))
    return [failure for failure in failures.values() if failure is not None]


def _is_noted(book: Book, lease: LeaseRecord, failure: GhostboxError) -> bool:
    """Note a lease whose donor does not answer; False if it stays in the record."""
    if not isinstance(failure, NoAnswer):
        return False
    assert book.record is not None
    try:
        unreleased.note(book.files.state.parents[1], book.record.name, lease, failure.message)
    except GhostboxError as err:
        _log.warning("%s", err)
        return False
    return True


def _end_lease(book: Book, lease: LeaseRecord) -> GhostboxError | None:
    try:
        _end(book, lease)
    except GhostboxError as err:
        return err
    return None


def release(book: Book, name: str) -> None:
    """End a lease and strike it out of the record; one that is gone is no error.

    Raises:
        GhostboxError: its donor does not answer or refuses; the lease stays in the record.
    """
    record = book.record
    assert record is not None
    lease = next(lease for lease in record.leases if lease.name == name)
    _end(book, lease)
    book.save(replace(record, leases=tuple(each for each in record.leases if each.name != name)))


def _end(book: Book, lease: LeaseRecord) -> None:
    """End a lease, wherever its memory is."""
    if lease.donor == THIS_HOST:
        host_memory.stop(book.files, lease)
        return
    try:
        unreleased.release(lease)
    except GhostboxError as err:
        hint = "the next command on this VM tries again"
        if isinstance(err, NoAnswer):
            hint = f"it is tried again; if the donor is gone for good: ghostbox donor forget {lease.donor} --write-off"
        raise type(err)(f"lease {lease.name} could not be released: {err.message}", why=err.why, hint=hint) from err


def _remove_runtime_files(book: Book) -> None:
    """Remove what only a running VM needs: sockets, seed, the copy of the shim. Disk, keys and logs stay."""
    assert book.record is not None
    shutil.rmtree(book.files.runtime, ignore_errors=True)
    book.files.seed.unlink(missing_ok=True)
    for copy in book.files.state.glob("libghostbox-shim-*.so"):
        copy.unlink(missing_ok=True)
    book.save(book.record.without_made(Made.FILES))
