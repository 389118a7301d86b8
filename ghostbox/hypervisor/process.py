# SPDX-License-Identifier: MIT
"""The QEMU process of a domain, found in /proc: libvirt's API does not name it, and may not know of it.

Two things tell of a QEMU without libvirt: its command line, which has the domain's UUID, and the lock that QEMU holds
on the disk that it writes. The lock is seen where the process is not: from another container, and where /proc hides it.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from ghostbox import process_table, processes

# include/uapi/asm-generic/fcntl.h; the module fcntl has no name for it. struct flock of x86-64.
_F_OFD_GETLK = 36
_FLOCK = struct.Struct("hhqqi4x")
# QEMU's block/file-posix.c: RAW_LOCK_PERM_BASE + BLK_PERM_WRITE's bit. Who only reads (the disk of a clone that lies
# on this one) does not lock this byte.
_WRITER_BYTE = 101


@dataclass(frozen=True)
class QemuProcess:
    """A running QEMU."""

    pid: int

    def maps(self, library: Path) -> bool | None:
        """Tell whether ``library`` is mapped: the preload took effect (AppArmor, SELinux or setuid may drop it).

        None: another user's process, into which we may not look. Its directory may be a symbolic link, so the name
        alone counts: nobody else has one like it.
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
    """End the QEMU of the domain with this UUID without libvirt; tell whether it is gone.

    Raises:
        ProgramError: it belongs to another user.
    """
    return process_table.end(pid, lambda: pid in processes.find("", "-uuid", uuid))


def disk_is_written(disk: Path) -> bool | None:
    """Tell whether a QEMU has a disk open for writing; None if it cannot be told."""
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
