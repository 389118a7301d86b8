# SPDX-License-Identifier: MIT
"""Let a machine really run out of something: a tiny file system, a control group with little memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ghostbox.system import processes
from ghostbox.units import MIB

_THRASHED_BYTES = 96 * MIB
_THRASH = """
import mmap, os, sys
memory = mmap.mmap(os.open(sys.argv[1], os.O_RDONLY), 0, prot=mmap.PROT_READ)
sys.stdin.read(1)
while True:
    sum(memory[at] for at in range(0, len(memory), 4096))
"""


@dataclass(frozen=True)
class SmallDisk:
    """Is a tmpfs of 64 KiB and 64 files."""

    path: Path

    def fill(self) -> None:
        """Fill the disk, so that no byte is free."""
        with (self.path / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def fill_inodes(self, *, leave: int = 0) -> None:
        """Fill the disk, so that only ``leave`` more files can be made."""
        place = self.path / "fillers"
        place.mkdir()
        made: list[Path] = []
        with contextlib.suppress(OSError):
            while True:
                made.append(place / str(len(made)))
                made[-1].touch()
        for path in made[-1 - leave : -1]:
            path.unlink()

    def free(self) -> None:
        """Remove the filling."""
        (self.path / "filler").unlink(missing_ok=True)
        for path in (self.path / "fillers").glob("*"):
            path.unlink()

    def files(self) -> list[str]:
        """Return the files that others made on the disk."""
        names = [str(path.relative_to(self.path)) for path in self.path.rglob("*") if not path.is_dir()]
        return sorted(name for name in names if not name.startswith("filler"))


@contextlib.contextmanager
def tmpfs(path: Path, options: str, *how_to_unmount: str) -> Iterator[None]:
    """Mount a tmpfs over a directory until the end of the block."""
    argv: list[str | Path] = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot run here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", *how_to_unmount, path], check=True)


@contextlib.contextmanager
def small_disk() -> Iterator[SmallDisk]:
    """Mount a small disk until the end of the block; its path is short enough for sockets."""
    with (
        tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp") as place,
        tmpfs(Path(place), "size=64k,nr_inodes=64", "--lazy"),
    ):
        yield SmallDisk(Path(place))


@dataclass(frozen=True)
class BoundedDisk:
    """Is a tmpfs whose size changes while it is in use."""

    path: Path

    def leave(self, n_bytes: int) -> None:
        """Leave this much free space."""
        found = os.statvfs(self.path)
        self._resize((found.f_blocks - found.f_bfree) * found.f_frsize + n_bytes)

    def grow(self) -> None:
        """Make the disk large again."""
        self._resize(4096 * MIB)

    def _resize(self, n_bytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={n_bytes}", self.path], check=True)


@contextlib.contextmanager
def bounded_disk(path: Path) -> Iterator[BoundedDisk]:
    """Mount a bounded disk over a directory until the end of the block; at first it is large."""
    with tmpfs(path, f"size={4096 * MIB},mode=711", "--lazy"):
        yield BoundedDisk(path)


@contextlib.contextmanager
def memory_group(pid: int, limit_bytes: int) -> Iterator[Path]:
    """Put a process into a control group with this much memory, until the end of the block or of the process."""
    root = Path("/sys/fs/cgroup")
    if os.geteuid() != 0:
        pytest.skip("cannot run here: a control group needs root")
    new = root / "cgroup.subtree_control"
    if new.exists() and "memory" in new.read_text().split():
        parent, knob = root, "memory.max"
    elif (root / "memory" / "memory.limit_in_bytes").exists():
        parent, knob = root / "memory", "memory.limit_in_bytes"
    else:
        pytest.skip("cannot run here: there is no memory control group")
    group = parent / f"gb-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / knob).write_text(str(limit_bytes))
        (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            (parent / "cgroup.procs").write_text(left)
        processes.wait_until(lambda: not (group / "cgroup.procs").read_text(), timeout_s=10, what="an empty group")
        group.rmdir()


@contextlib.contextmanager
def memory_pressure(directory: Path) -> Iterator[Path]:
    """Let a process read a file that its control group cannot keep, again and again, until the end of the block.

    Yields:
        The kernel's file with the pressure: the group's own, or the machine's if groups have none.
    """
    place = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=True)
    if place.stdout.strip() == "tmpfs":
        pytest.skip("cannot run here: a file on a tmpfs is never read from a disk again")
    file = directory / "thrashed"
    with file.open("wb") as stream:
        stream.write(os.urandom(MIB) * (_THRASHED_BYTES // MIB))
        stream.flush()
        os.fsync(stream.fileno())
        # The reader's group must be charged for the file's pages.
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with subprocess.Popen([sys.executable, "-c", _THRASH, file], stdin=subprocess.PIPE) as thrasher:
        try:
            with memory_group(thrasher.pid, 24 * MIB) as group:
                pressure = group / "memory.pressure"
                if not pressure.exists():
                    pressure = Path("/proc/pressure/memory")
                if not pressure.exists():
                    pytest.skip("cannot run here: the kernel tells of no memory pressure (psi=1)")
                assert thrasher.stdin is not None
                thrasher.stdin.write(b"x")
                thrasher.stdin.flush()
                yield pressure
        finally:
            thrasher.kill()
            file.unlink()
