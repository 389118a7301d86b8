# SPDX-License-Identifier: MIT
"""Start, find and end the supervisor of a VM. A VM has one at a time; any command starts a supervisor that is missing.

The supervisor is a command of its own (``ghostbox supervise NAME``), started detached. `reconcile` has its work, all of
which commands can do, too: a VM without a supervisor is only repaired later. Its lock keeps a second supervisor out; it
changes a VM with the VM's lock held, like every command. It ends with the VM, or when `cleanup` ends it.
"""

from __future__ import annotations

from ghostbox.paths import Paths, VmPaths
from ghostbox.session.record import Book, Made, VmState
from ghostbox.system import locks, pidfd, processes

COMMAND = "supervise"


def ensure(book: Book, paths: Paths) -> bool:
    """Start a supervisor for a running VM that has none; return whether one was started."""
    record, files = book.found, book.files
    wanted = record is not None and record.state in (VmState.RUNNING, VmState.STOPPING) and Made.DOMAIN in record.made
    if record is None or not wanted or not locks.is_free(files.supervisor_lock):
        return False
    _end_former(files)
    words = (COMMAND, record.name, "--lock", files.supervisor_lock)
    processes.start_own(*words, paths=paths, log_path=files.supervisor_log, env=record.environment)
    return True


def find(files: VmPaths) -> list[int]:
    """Return the process ids of the VM's supervisors: one, or none, or for a moment two."""
    return processes.find("", "-m", "ghostbox", COMMAND, str(files.supervisor_lock))


def _end_former(files: VmPaths) -> None:
    """End a supervisor of an earlier version, which takes a VM that libvirt does not know for gone."""
    pidfd.end_all(lambda: processes.find("", "-m", "ghostbox", COMMAND, str(files.former_supervisor_lock)))


def stop(files: VmPaths) -> None:
    """End the supervisor, unless this process is it.

    Raises:
        ProgramError: the supervisor does not end.
    """
    _end_former(files)
    pidfd.end_all(lambda: find(files))


def lock(files: VmPaths) -> int | None:
    """Take the supervisor's lock until this process ends; None if another process holds it, or the VM is gone.

    Returns a file descriptor; closing the descriptor releases the lock.
    """
    try:
        return locks.take(files.supervisor_lock)
    except (FileNotFoundError, locks.Held):
        return None
