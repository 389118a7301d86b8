# SPDX-License-Identifier: MIT
"""The disk of a VM when a write to it failed: QEMU has paused the VM, and tries again when it goes on."""

from __future__ import annotations

import os

from ghostbox import health
from ghostbox.errors import GhostboxError
from ghostbox.health import Problem
from ghostbox.hypervisor import DiskTrouble
from ghostbox.paths import VmPaths
from ghostbox.session import liveness
from ghostbox.session.record import Record

RETRY_S = 30.0
"""How often a write is tried again where nothing says that it will succeed."""

_ROOM_BYTES = 64 << 20


def trouble(record: Record) -> DiskTrouble | None:
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


def explain(files: VmPaths, found: DiskTrouble) -> Problem:
    """Return what is wrong with the disk, and what to do."""
    return health.disk_problem(files.disk, free_bytes(files), full=found is DiskTrouble.FULL)


def free_bytes(files: VmPaths) -> int:
    """Return what the file system under the disk has left for QEMU's user."""
    try:
        found = os.statvfs(files.disk)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize


def has_room(files: VmPaths, found: DiskTrouble) -> bool:
    """Tell whether it is worth while to try again at once."""
    return found is DiskTrouble.FULL and free_bytes(files) >= _ROOM_BYTES


def try_again(record: Record) -> None:
    """Let the VM go on; if the write fails once more, it is paused as before.

    Raises:
        HypervisorError: libvirt refuses.
    """
    with liveness.connect(record, start_daemon=False) as connection:
        if connection.disk_trouble(record.domain, uuid=record.uuid) is not None:
            connection.resume(record.domain, uuid=record.uuid)
