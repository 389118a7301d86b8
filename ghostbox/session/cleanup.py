# SPDX-License-Identifier: MIT
"""Remove what a VM's record names: after a failed ``up``, for ``down``, and after a crash.

Each step may find that its object is gone already. If a step fails, its error is reported and its object stays in the
record, so that the next command tries again; the other steps still run. A lease whose donor does not answer moves from
the record to `unreleased`, which tries again in the background.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ghostbox import pager
from ghostbox.donors.client import NoAnswer
from ghostbox.errors import GhostboxError
from ghostbox.paths import VmPaths
from ghostbox.session import backup, host_memory, lease_keys, liveness, shares, supervisor, unreleased
from ghostbox.session.record import THIS_HOST, Book, LeaseRecord, Made, Record, VmState
from ghostbox.system import hypervisor

_log = logging.getLogger(__name__)
_MAX_THREADS = 8


def pager_files(files: VmPaths) -> pager.PagerFiles:
    """Return the paths of the sockets and files of the VM's pager."""
    return pager.PagerFiles(files.pager_socket, files.pager_control, files.pager_log, files.pager_state)


def qemu_log(record: Record, files: VmPaths) -> Path:
    """Return the path of QEMU's own log: libvirt's file while the VM runs, the copy in the state directory afterwards.

    The system's libvirt lets only root see its file. Where this user may not look for that file, it is returned unless
    there is a copy.
    """
    live, copy = _libvirt_log(record), files.state / "qemu.log"
    try:
        return live if live.exists() else copy
    except PermissionError:
        return copy if copy.exists() else live


def _libvirt_log(record: Record) -> Path:
    return hypervisor.qemu_log(record.libvirt_uri, record.domain, record.environment)


def unmake(book: Book, *, end: bool) -> list[GhostboxError]:
    """Remove domain, pager, leases, backup and files, in this order; return the errors of what could not be removed.

    The domain is first, since no guest may run without its pager; if QEMU cannot be ended, all else stays. The
    supervisor is next: it waits for the lock that the caller holds. The leases end after the pager, which has
    connections to their exports.

    ``end``: end QEMU if it runs.

    Raises:
        HypervisorError: QEMU runs, or may run; nothing was removed.
    """
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
    """Record the VM as stopped, or remove the state of a VM that never ran. Call this after `unmake`."""
    record = book.record
    if record.new and not record.made and not record.leases:
        remove_state(book.files)
        book.found = None
        return None
    stopped = record.to(VmState.STOPPED)
    if not record.made:
        stopped = replace(stopped, environment=None, runtime=None, machine=None, qemu=None, pager_process=None)
    return book.save(stopped)


def remove_state(files: VmPaths) -> None:
    """Remove a VM's state directory: disk, keys, logs, record and the file of the lock.

    Raises:
        GhostboxError: some of it cannot be removed.
    """
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
    """Log the errors that `unmake` returned."""
    for error in errors:
        _log.warning("%s%s", error.message, f": {error.why}" if error.why else "")


def _attempt(errors: list[GhostboxError], step: Callable[[Book], None], book: Book) -> None:
    try:
        step(book)
    except GhostboxError as err:
        errors.append(err)


def _forget_domain(book: Book) -> None:
    """Strike the domain out of the record; first copy QEMU's log, which libvirt would overwrite."""
    record = book.record
    log = _libvirt_log(record)
    if os.access(log, os.R_OK | os.W_OK):
        shutil.copyfile(log, book.files.state / "qemu.log")
        log.unlink()
    book.save(record.without_made(Made.DOMAIN))


def _remove_filter(book: Book) -> None:
    if book.record.filter is not None:
        with liveness.connect(book.record) as connection:
            connection.undefine_filter(book.record.filter)


def _end_supervisor(book: Book) -> None:
    supervisor.stop(book.files)
    shares.stop(book.files)


def _remove_backup(book: Book) -> None:
    record = book.record
    if record.backup is not None:
        backup.remove(book.files, Path(record.backup))
    book.save(record.without_made(Made.BACKUP))


def _end_pager(book: Book) -> None:
    pager.stop(pager_files(book.files))
    book.save(book.record.without_made(Made.PAGER))


def release_all(book: Book) -> list[GhostboxError]:
    """End all leases, those of several donors at a time; return the errors.

    A donor that does not answer is asked once: its lease moves from the record to `unreleased`.
    """
    record = book.record
    with ThreadPoolExecutor(max_workers=_MAX_THREADS) as pool:
        failures = dict(zip(record.leases, pool.map(lambda lease: _end_lease(book, lease), record.leases), strict=True))
    kept = tuple(lease for lease, failure in failures.items() if failure and not _is_noted(book, lease, failure))
    book.save(replace(record, leases=kept))
    errors = [failure for failure in failures.values() if failure is not None]
    try:
        lease_keys.keep(book.files, (lease.name for lease in kept))
    except GhostboxError as err:
        errors.append(err)
    return errors


def _is_noted(book: Book, lease: LeaseRecord, failure: GhostboxError) -> bool:
    """Note a lease whose donor does not answer; return False if the lease has to stay in the record."""
    if not isinstance(failure, NoAnswer):
        return False
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
    """End a lease and strike it out of the record; a lease that is gone already is no error.

    Raises:
        GhostboxError: the donor does not answer or refuses; the lease stays in the record.
    """
    record = book.record
    lease = next(lease for lease in record.leases if lease.name == name)
    _end(book, lease)
    record = book.save(replace(record, leases=tuple(each for each in record.leases if each.name != name)))
    lease_keys.keep(book.files, (each.name for each in record.leases))


def _end(book: Book, lease: LeaseRecord) -> None:
    """End a lease, at its donor or on this host."""
    if lease.donor == THIS_HOST:
        host_memory.stop(book.files, lease)
        return
    try:
        unreleased.release(lease)
    except GhostboxError as err:
        hint = "the next command on this VM tries again"
        if isinstance(err, NoAnswer):
            forget = f"ghostbox donor forget {lease.donor} --write-off"
            hint = f"GhostBox tries again; if the donor is gone for good: {forget}"
        raise type(err)(f"lease {lease.name} could not be released: {err.message}", why=err.why, hint=hint) from err


def _remove_runtime_files(book: Book) -> None:
    """Remove what only a running VM needs: sockets, seed, copies of the shim. Disk, keys and logs stay."""
    shutil.rmtree(book.files.runtime, ignore_errors=True)
    book.files.seed.unlink(missing_ok=True)
    for copy in book.files.state.glob("libghostbox-shim-*.so"):
        copy.unlink(missing_ok=True)
    book.save(book.record.without_made(Made.FILES))
