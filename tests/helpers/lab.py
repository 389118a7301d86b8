# SPDX-License-Identifier: MIT
"""Make a host for tests: directories of its own (short, and open to QEMU's user), the shared image, the real command.

with lab() as host:
    host.cli("up", "box", "--donor", donor.address, check=True)
    assert host.belongings([donor]) == before
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ghostbox
from ghostbox import paths
from ghostbox.donors.client import DonorClient
from ghostbox.system import hypervisor, processes
from helpers.donor import RunningDonor
from helpers.guest import share_images

PACKAGE_PARENT = str(Path(ghostbox.__file__).resolve().parent.parent)
Run = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Belongings:
    """Holds all that VMs of one host have outside their own state directories."""

    processes: frozenset[str]
    domains: frozenset[str]
    files: frozenset[str]
    vms: frozenset[str]
    leases: frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Host:
    """Holds directories and environment of a GhostBox installation that shares only the image with others."""

    root: Path
    env: Mapping[str, str]
    state: str = "s"
    umask: int = -1

    @property
    def paths(self) -> paths.Paths:
        """Return the paths of this installation."""
        return paths.Paths(
            self.root / self.state, self.root / "r", self.root / "c", self.root / "config.yaml", paths.find().native
        )

    def argv(self, *words: str | Path) -> list[str]:
        """Return the command."""
        return [sys.executable, "-m", "ghostbox", *map(str, words)]

    def cli(self, *words: str | Path, check: bool = False, timeout_s: float = 280.0, stdin: str = "") -> Run:
        """Run a command to its end; with ``check`` a failure fails the test."""
        try:
            done = subprocess.run(
                self.argv(*words), env=dict(self.env), capture_output=True, text=True, timeout=timeout_s, input=stdin,
                check=False, cwd=self.root, umask=self.umask,
            )  # fmt: skip
        except subprocess.TimeoutExpired as err:  # its own message shows a few letters of what the command said
            said = b"".join(each or b"" for each in (err.stdout, err.stderr)).decode(errors="replace")
            raise AssertionError(f"{words}: not done after {timeout_s:g} s\n{said}") from None
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            self.argv(*words), env=dict(self.env), cwd=self.root, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, umask=self.umask,
        )  # fmt: skip

    def belongings(self, donors: Sequence[RunningDonor] = ()) -> Belongings:
        """Return what exists now, to be compared with an earlier result."""
        vms = self.root / self.state / "vms"
        return Belongings(
            processes=frozenset(self._processes()),
            domains=frozenset(self._domains()),
            # kvm.json belongs to no VM: it keeps the verdict on KVM.
            files=frozenset(str(f) for f in (self.root / "r").rglob("*") if not f.is_dir() and f.name != "kvm.json"),
            vms=frozenset(str(file.relative_to(vms)) for file in vms.rglob("*")),
            leases=frozenset(lease for donor in donors for lease in _leases(donor)),
        )

    def _domains(self) -> list[str]:
        """Return the domains with a state directory of this host; others may come and go meanwhile."""
        with hypervisor.connect("qemu:///system") as connection:
            return [each.domain for each in connection.list_ours() if str(self.root) in each.state_dir]

    def _processes(self) -> Iterator[str]:
        """Yield the command lines of all processes of VMs that use this host's directories."""
        ours = ("ghostbox-pager", "ghostbox-memserver", "qemu-system", "qemu-nbd", " supervise ")
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and processes.pid_alive(int(entry.name)):
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    if str(self.root) in line and any(word in line for word in ours):
                        yield f"{entry.name} {line[:200]}"


def _leases(donor: RunningDonor) -> list[tuple[str, str]]:
    with DonorClient(donor.address) as client:
        return [(donor.address, lease.name) for lease in client.leases()]


@contextlib.contextmanager
def lab(*, state: str = "s", umask: int = -1, **env: str) -> Iterator[Host]:
    """Make a host; at the end its VMs are deleted, in whatever state the test left them.

    ``state`` names its state directory, ``umask`` is that of its commands (-1: the tests'), ``env`` is added to theirs.
    """
    root = Path(tempfile.mkdtemp(prefix="gbt-", dir="/tmp"))
    root.chmod(0o711)
    directories = {"STATE": root / state, "RUNTIME": root / "r", "CACHE": root / "c"}
    for directory in directories.values():
        directory.mkdir()
    share_images(root / "c")
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GHOSTBOX_")}
    ours = {f"GHOSTBOX_{kind}_DIR": str(directory) for kind, directory in directories.items()}
    more = {
        "PYTHONPATH": PACKAGE_PARENT,
        "GHOSTBOX_NATIVE_DIR": str(paths.find().native),
        "GHOSTBOX_SYSTEM_CONFIG": str(root / "none.yaml"),
        "XDG_CONFIG_HOME": str(root / "none"),
        "NO_COLOR": "1",
    }
    host = Host(root, {**clean, **ours, **more, **env}, state, umask)
    try:
        yield host
    finally:
        for record in (root / state / "vms").glob("*/vm.json"):
            host.cli("delete", record.parent.name, "-y", "--force")
        shutil.rmtree(root, ignore_errors=True)
