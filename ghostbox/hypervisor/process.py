# SPDX-License-Identifier: MIT
"""The QEMU process of a domain, found in /proc: libvirt's API does not name it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
    wanted = uuid.encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in words and b"-uuid" in words:
            return QemuProcess(int(entry.name))
    return None
