# SPDX-License-Identifier: MIT
"""The supervisor of a VM as a process: there is one at a time, any command starts one that is missing.

It is a command of its own (``ghostbox supervise NAME``), started detached. What it does is in `care`; all of that can
also be done by a command, so a supervisor that is killed costs nothing but time. Its lock keeps a second one out; what
it changes it changes with the VM's lock held, as every command. It ends with the VM, or when `cleanup` ends it.
"""

from __future__ import annotations

import fcntl
import os
import sys

from ghostbox import processes
from ghostbox.paths import Paths, VmPaths
from ghostbox.session.record import Book, Made, VmState

COMMAND = "supervise"


def ensure(book: Book, paths: Paths) -> bool:
    """Start a supervisor for a VM that runs, unless it has one; tell whether one was started."""
    record, files = book.record, book.files
    wanted = record is not None and record.state in (VmState.RUNNING, VmState.STOPPING) and Made.DOMAIN in record.made
    if record is None or not wanted or not processes.is_unlocked(files.supervisor_lock):
        return False
    _end_former(files)
    processes.start_detached(
        [sys.executable, "-P", "-m", "ghostbox", COMMAND, record.name, "--lock", files.supervisor_lock],
        log_path=files.supervisor_log,
        env={
            **(record.environment or {}),
            "GHOSTBOX_STATE_DIR": str(paths.state),
            "GHOSTBOX_RUNTIME_DIR": str(paths.runtime),
            "GHOSTBOX_CACHE_DIR": str(paths.cache),
            "GHOSTBOX_NATIVE_DIR": str(paths.native),
        },
    )
    return True


def find(files: VmPaths) -> list[int]:
    """Return the process ids of the VM's supervisors: one, or none, or for a moment two."""
    return processes.find("", COMMAND, str(files.supervisor_lock))


def _end_former(files: VmPaths) -> None:
    """End a supervisor of an earlier version: it believes libvirt when that does not know the VM."""
    for pid in processes.find("", COMMAND, str(files.former_supervisor_lock)):
        if pid != os.getpid():
            processes.terminate(pid)


def stop(files: VmPaths) -> None:
    """End the supervisor, unless we are it.

    Raises:
        ProgramError: it does not end.
    """
    _end_former(files)
    for pid in find(files):
        if pid != os.getpid():
            processes.terminate(pid)


def lock(files: VmPaths) -> int | None:
    """Take the supervisor's lock until this process ends; None if another one holds it, or the VM is gone.

    Returns a file descriptor; closing it gives the lock back.
    """
    try:
        descriptor = os.open(files.supervisor_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
