# SPDX-License-Identifier: MIT
"""The QEMU process of a domain, found in /proc: libvirt's API does not name it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ghostbox import processes


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
