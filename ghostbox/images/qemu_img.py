# SPDX-License-Identifier: MIT
"""qemu-img: what a disk file is, and new disk files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ghostbox import processes
from ghostbox.errors import ImageError, ProgramError

_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class DiskInfo:
    """``format`` as QEMU names it; ``virtual_bytes`` is the size that the guest sees."""

    format: str
    virtual_bytes: int
    cluster_bytes: int
    backing: str | None


def info(path: Path) -> DiskInfo:
    """Return what qemu-img says of a disk file.

    Raises:
        ImageError: it cannot be read as a disk.
    """
    data = json.loads(_run("info", "--output=json", path, what=f"{path} is not a disk image"))
    return DiskInfo(
        data["format"], int(data["virtual-size"]), int(data.get("cluster-size", 0)), data.get("backing-filename")
    )


def check_end_bytes(path: Path) -> int:
    """Check a qcow2 file's structure and return where its last cluster ends.

    Raises:
        ImageError: it is damaged.
    """
    data = json.loads(_run("check", "--output=json", "-f", "qcow2", path, what=f"{path} is damaged or cut off"))
    return int(data["image-end-offset"])


def convert(source: Path, target: Path, source_format: str = "raw") -> None:
    """Copy a disk into a new qcow2 file; zeroes take no space.

    Raises:
        ImageError: qemu-img failed (a full disk is its usual reason).
    """
    _run("convert", "-f", source_format, "-O", "qcow2", source, target, what=f"cannot write {target}")


def create_overlay(backing: Path, target: Path, size_bytes: int) -> None:
    """Make a qcow2 that holds only what differs from ``backing``, which is never written.

    Raises:
        ImageError: qemu-img failed.
    """
    _run(
        "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, target, str(size_bytes),
        what=f"cannot make the disk {target}",
    )  # fmt: skip


def _run(command: str, *words: str | Path, what: str) -> str:
    """Run qemu-img; files are named from the root on, or it takes ``a:b`` for a protocol and ``-x`` for an option."""
    argv = [word.absolute() if isinstance(word, Path) else word for word in words]
    try:
        return processes.run(["qemu-img", command, *argv], timeout_s=_TIMEOUT_S)
    except ProgramError as err:
        raise ImageError(what, why=err.why or err.message, hint=err.hint) from err
