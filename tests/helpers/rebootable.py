# SPDX-License-Identifier: MIT
"""Make a host that can be rebooted: its /run and its libvirt (a mount namespace) end with all its processes.

with rebootable() as host:
    host.cli("up", "box", check=True)
    host.reboot()
    host.cli("autostart", "run", check=True)

It needs root. The network, the donors and the processors are the machine's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ghostbox.system import processes
from helpers.lab import Host, lab

_PRIVATE = ("/run", "/var/lib/libvirt", "/var/log/libvirt")


@dataclass(frozen=True)
class Rebootable(Host):
    """Is a host whose commands run in the namespace of process ``holder``."""

    holder: int = 0

    def argv(self, *words: str | Path) -> list[str]:
        """Return the command that runs in the namespace."""
        return [*self._enter(), *super().argv(*words)]

    def run(self, *argv: str) -> str:
        """Run another program in the namespace; return its output."""
        return subprocess.run([*self._enter(), *argv], check=True, capture_output=True, text=True, timeout=60).stdout

    def reboot(self) -> None:
        """End everything at once, like a power cut, and empty /run and the host's runtime directory."""
        for pid in self.inhabitants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        processes.wait_until(lambda: not self.inhabitants(), timeout_s=30, what="the end of everything on the host")
        shutil.rmtree(self.root / "r")
        (self.root / "r").mkdir()
        self.run("sh", "-c", "rm -rf /run/* /var/log/libvirt/*")

    def inhabitants(self) -> list[int]:
        """Return the host's processes: those in its namespace, and QEMU, which libvirt puts into another one."""
        own = Path(f"/proc/{self.holder}/ns/mnt").readlink()
        found = [int(line.split()[0]) for line in self._processes()]
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and (entry / "ns/mnt").readlink() == own and int(entry.name) != self.holder:
                    found += [int(entry.name)] if processes.pid_alive(int(entry.name)) else []
        return found

    def _enter(self) -> list[str]:
        return ["nsenter", "--mount", "--target", str(self.holder), f"--wdns={self.root}", "--"]


@contextlib.contextmanager
def rebootable() -> Iterator[Rebootable]:
    """Make a host; at the end its processes are ended and its VMs' directories removed."""
    mounts = "; ".join(f"mkdir -p {place} && mount -t tmpfs -o mode=755 tmpfs {place}" for place in _PRIVATE)
    script = f"mount --make-rprivate / && {mounts} && echo ready && exec sleep infinity"
    with lab() as plain:
        holder = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        host = Rebootable(plain.root, plain.env, holder=holder.pid)
        try:
            yield host
        finally:
            for record in (plain.root / "s" / "vms").glob("*/vm.json"):
                host.cli("delete", record.parent.name, "-y", "--force")
            with contextlib.suppress(OSError):
                host.reboot()
            holder.kill()
            holder.wait()
            holder.stdout.close()
