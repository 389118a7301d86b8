# SPDX-License-Identifier: MIT
"""The disks of a VM when a write to one failed: QEMU has paused the VM, and tries again when it goes on."""

from __future__ import annotations

import os
from pathlib import Path

from ghostbox import domain_xml, health
from ghostbox.errors import GhostboxError
from ghostbox.health import Problem
from ghostbox.hypervisor import DiskTrouble, FailedWrite
from ghostbox.paths import VmPaths
from ghostbox.session import liveness
from ghostbox.session.record import Record

RETRY_S = 30.0
"""How often a write is tried again where nothing says that it will succeed."""

_ROOM_BYTES = 64 << 20


def trouble(record: Record) -> FailedWrite | None:
    """Ask libvirt whether a failed write has paused the VM; None also if libvirt does not answer."""
    try:
        with liveness.connect(record, start_daemon=False) as connection:
            return connection.disk_trouble(record.domain, uuid=record.uuid)
    except GhostboxError:
        return None


def problem(record: Record, files: VmPaths) -> Problem | None:
    """Return what to tell the user of the disk of a VM that is paused; None if that has another reason."""
    found = trouble(record)
    return None if found is None else explain(files, found)


def explain(files: VmPaths, found: FailedWrite) -> Problem:
    """Return what is wrong with the disk, and what to do."""
    file = file_of(files, found)
    return health.disk_problem(file, free_bytes(file), full=found.trouble is DiskTrouble.FULL)


def file_of(files: VmPaths, found: FailedWrite) -> Path:
    """Return the disk that it is about; the first one if libvirt does not say."""
    number = 1 if found.target is None else domain_xml.disk_number(found.target)
    return files.disk if number == 1 else files.more_disk(number)


def free_bytes(file: Path) -> int:
    """Return what the file system under a disk has left for QEMU's user."""
    try:
        found = os.statvfs(file)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def has_room(files: VmPaths, found: FailedWrite) -> bool:
    """Tell whether it is worth while to try again at once."""
    return found.trouble is DiskTrouble.FULL and free_bytes(file_of(files, found)) >= _ROOM_BYTES


def try_again(record: Record) -> None:
    """Let the VM go on; if the write fails once more, it is paused as before.

    Raises:
        HypervisorError: libvirt refuses.
    """
    with liveness.connect(record, start_daemon=False) as connection:
        if connection.disk_trouble(record.domain, uuid=record.uuid) is not None:
            connection.resume(record.domain, uuid=record.uuid)
