# SPDX-License-Identifier: MIT
"""What a machine can run out of, for real: a tiny file system, a control group with little memory or far too little."""

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

from ghostbox import processes
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
    """A tmpfs of 64 KiB and 64 files."""

    path: Path

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.path / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def fill_inodes(self, *, leave: int = 0) -> None:
        """Leave ``leave`` files to be made."""
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
        """Make room again."""
        (self.path / "filler").unlink(missing_ok=True)
        for path in (self.path / "fillers").glob("*"):
            path.unlink()

    def files(self) -> list[str]:
        """What others made on it."""
        names = [str(path.relative_to(self.path)) for path in self.path.rglob("*") if not path.is_dir()]
        return sorted(name for name in names if not name.startswith("filler"))


@contextlib.contextmanager
def tmpfs(path: Path, options: str, *how_to_unmount: str) -> Iterator[None]:
    """Mount a tmpfs over a directory until the end of the block."""
    argv = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", path]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot run here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", *how_to_unmount, path], check=True)


@contextlib.contextmanager
def small_disk() -> Iterator[SmallDisk]:
    """Mount one until the end of the block; its path is short enough for sockets."""
    with (
        tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp") as place,
        tmpfs(Path(place), "size=64k,nr_inodes=64", "--lazy"),
    ):
        yield SmallDisk(Path(place))


@dataclass(frozen=True)
class BoundedDisk:
    """A tmpfs whose size is changed while it is used."""

    path: Path

    def leave(self, n_bytes: int) -> None:
        """Leave so much room."""
        found = os.statvfs(self.path)
        self._resize((found.f_blocks - found.f_bfree) * found.f_frsize + n_bytes)

    def grow(self) -> None:
        """Have room for everything."""
        self._resize(4096 * MIB)

    def _resize(self, n_bytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={n_bytes}", self.path], check=True)


@contextlib.contextmanager
def bounded_disk(path: Path) -> Iterator[BoundedDisk]:
    """Mount one over a directory until the end of the block; it has room for everything."""
    with tmpfs(path, f"size={4096 * MIB},mode=711", "--lazy"):
        yield BoundedDisk(path)


@contextlib.contextmanager
def memory_group(pid: int, limit_bytes: int) -> Iterator[Path]:
    """Put a process into a control group with so much memory, until the end of the block; it need not live so long."""
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
    """Have a process read a file that its control group has no room to keep, again and again, to the end of the block.

    Yields:
        The kernel's file that tells of the pressure: the group's own, or the machine's where groups have none.
    """
    place = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=True)
    if place.stdout.strip() == "tmpfs":
        pytest.skip("cannot run here: a file on a tmpfs is never read from a disk again")
    file = directory / "thrashed"
    with file.open("wb") as stream:
        stream.write(os.urandom(MIB) * (_THRASHED_BYTES // MIB))
        stream.flush()
        os.fsync(stream.fileno())
        # Its pages are to be charged to who reads them.
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
