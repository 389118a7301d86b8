# SPDX-License-Identifier: MIT
"""What a machine can run out of, for real: a tiny file system, a control group with little memory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ghostbox import processes


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
def small_disk() -> Iterator[SmallDisk]:
    """Mount one until the end of the block; its path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp") as place:
        argv = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=64", "tmpfs", place]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"cannot run here: {done.stderr.strip()}")
        try:
            yield SmallDisk(Path(place))
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)


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
