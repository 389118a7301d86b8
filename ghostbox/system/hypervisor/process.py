# SPDX-License-Identifier: MIT
"""Find the QEMU process of a domain in /proc: libvirt's API does not name it, and may not know it.

A QEMU shows without libvirt by two things: the domain's UUID on its command line, and the lock that QEMU holds on the
disk that it writes. The lock is visible also where the process is not: from another container, and where /proc hides
it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from ghostbox.system import process_table, processes

# include/uapi/asm-generic/fcntl.h has these; the module fcntl has no name for the command. struct flock is x86-64's.
_F_OFD_GETLK = 36
_FLOCK = struct.Struct("hhqqi4x")
# In QEMU's block/file-posix.c this is RAW_LOCK_PERM_BASE + BLK_PERM_WRITE's bit. A QEMU that only reads a disk (because
# a clone's disk stands on it) does not lock this byte.
_WRITER_BYTE = 101


@dataclass(frozen=True)
class QemuProcess:
    """Is a running QEMU."""

    pid: int

    def maps(self, library: Path) -> bool | None:
        """Tell whether ``library`` is mapped: AppArmor, SELinux or setuid may prevent the preload.

        The result is None for another user's process, whose maps cannot be read. Only the library's file name is
        compared, which is unique: its directory may be a symbolic link.
        """
        try:
            return b"/" + os.fsencode(library.name) in Path(f"/proc/{self.pid}/maps").read_bytes()
        except PermissionError:
            return None
        except OSError:
            return False


def find_qemu(uuid: str) -> QemuProcess | None:
    """Return the QEMU that libvirt started for the domain with this UUID (it is on its command line)."""
    found = processes.find("", "-uuid", uuid)
    return QemuProcess(found[0]) if found else None


def end_qemu(pid: int, uuid: str) -> bool:
    """End the QEMU of the domain with this UUID without libvirt; return whether it is gone.

    Raises:
        ProgramError: the process belongs to another user.
    """
    return process_table.end(pid, lambda: pid in processes.find("", "-uuid", uuid))


def disk_is_written(disk: Path) -> bool | None:
    """Tell whether a QEMU has a disk open for writing; None if that cannot be found out."""
    try:
        descriptor = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _WRITER_BYTE, 1, 0)
        kind = _FLOCK.unpack(fcntl.fcntl(descriptor, _F_OFD_GETLK, asked))[0]
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return bool(kind != fcntl.F_UNLCK)
