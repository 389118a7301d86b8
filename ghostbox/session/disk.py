# SPDX-License-Identifier: MIT
"""Handle a failed write to a VM's disk: QEMU has paused the VM, and repeats the write when the VM is resumed."""

from __future__ import annotations

import os
from pathlib import Path

from ghostbox.errors import GhostboxError
from ghostbox.pager import health
from ghostbox.pager.health import Problem
from ghostbox.paths import VmPaths
from ghostbox.plan import domain_xml
from ghostbox.session import liveness
from ghostbox.session.record import Record
from ghostbox.system.hypervisor import DiskTrouble, FailedWrite

RETRY_S = 30.0
"""The time between two tries of a write while nothing shows that it would succeed."""

_ROOM_BYTES = 64 << 20


def trouble(record: Record) -> FailedWrite | None:
    """Ask libvirt whether a failed write has paused the VM; None also if libvirt does not answer."""
    try:
        with liveness.connect(record, start_daemon=False) as connection:
            return connection.disk_trouble(record.domain, uuid=record.uuid)
    except GhostboxError:
        return None


def problem(record: Record, files: VmPaths) -> Problem | None:
    """Return what to tell the user about the disk of a paused VM; None if the pause has another reason."""
    found = trouble(record)
    return None if found is None else explain(files, found)


def explain(files: VmPaths, found: FailedWrite) -> Problem:
    """Return what is wrong with the disk, and advice."""
    file = file_of(files, found)
    return health.disk_problem(file, free_bytes(file), full=found.trouble is DiskTrouble.FULL)


def file_of(files: VmPaths, found: FailedWrite) -> Path:
    """Return the disk that the failed write was for; the first disk if libvirt does not name one."""
    number = 1 if found.target is None else domain_xml.disk_number(found.target)
    return files.disk if number == 1 else files.more_disk(number)


def free_bytes(file: Path) -> int:
    """Return the free bytes that QEMU's user may use on the disk's file system; 0 if they cannot be read."""
    try:
        found = os.statvfs(file)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def has_room(files: VmPaths, found: FailedWrite) -> bool:
    """Tell whether the write failed for lack of space, and there is space now."""
    return found.trouble is DiskTrouble.FULL and free_bytes(file_of(files, found)) >= _ROOM_BYTES


def try_again(record: Record) -> None:
    """Resume the VM, so that QEMU repeats the write; if the write fails again, QEMU pauses the VM again.

    Raises:
        HypervisorError: libvirt refuses.
    """
    with liveness.connect(record, start_daemon=False) as connection:
        if connection.disk_trouble(record.domain, uuid=record.uuid) is not None:
            connection.resume(record.domain, uuid=record.uuid)
