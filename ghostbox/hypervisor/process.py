# SPDX-License-Identifier: MIT
"""The QEMU process of a domain, found in /proc: libvirt's API does not name it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ghostbox import processes


@dataclass(frozen=True)
class QemuProcess:
    """A running QEMU."""

    pid: int

    def maps(self, library: Path) -> bool:
        """Tell whether ``library`` is mapped: the preload took effect (AppArmor, SELinux or setuid may drop it)."""
        try:
            return str(library) in Path(f"/proc/{self.pid}/maps").read_text()
        except OSError:
            return False


def find_qemu(uuid: str) -> QemuProcess | None:
    """Return the QEMU that libvirt started for the domain with this UUID (it is on its command line)."""
    found = processes.find("", "-uuid", uuid)
    return QemuProcess(found[0]) if found else None
