# SPDX-License-Identifier: MIT
"""Ask about disk files and make them, with qemu-img."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import ImageError, ProgramError
from ghostbox.system import processes

_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class DiskInfo:
    """Describes a disk file. ``format`` is QEMU's name; ``virtual_bytes`` is the size that the guest sees."""

    format: str
    virtual_bytes: int
    cluster_bytes: int
    backing: str | None
    data_file: str | None = None


def info(path: Path, disk_format: str | None = None) -> DiskInfo:
    """Return what qemu-img says of a disk file; with ``disk_format`` None, qemu-img finds out the format.

    Raises:
        ImageError: the file cannot be read as a disk.
    """
    known = () if disk_format is None else ("-f", disk_format)
    data = json.loads(_run("info", "--output=json", *known, path, what=f"{path} is not a disk image"))
    return DiskInfo(
        data["format"],
        int(data["virtual-size"]),
        int(data.get("cluster-size", 0)),
        data.get("backing-filename"),
        data.get("format-specific", {}).get("data", {}).get("data-file"),
    )


def check_end_bytes(path: Path) -> int:
    """Check a qcow2 file's structure and return where its last cluster ends.

    Raises:
        ImageError: the file is damaged.
    """
    data = json.loads(_run("check", "--output=json", "-f", "qcow2", path, what=f"{path} is damaged or cut off"))
    return int(data["image-end-offset"])


def convert(source: Path, target: Path, source_format: str = "raw") -> None:
    """Copy a disk into a new qcow2 file, in which zeroes take no space.

    Raises:
        ImageError: qemu-img failed, most often since the disk is full.
    """
    _run("convert", "-f", source_format, "-O", "qcow2", source, target, what=f"cannot write {target}")


def flatten(source: Path, target: Path) -> None:
    """Copy a qcow2 disk, with all that it stands on, into a new compressed disk, without internal snapshots.

    Raises:
        ImageError: qemu-img failed, most often since the disk is full.
    """
    _run(
        "convert", "-c", "-W", "-f", "qcow2", "-O", "qcow2", "-o", "compression_type=zstd", source, target,
        what=f"cannot write {target}",
    )  # fmt: skip


def create_overlay(backing: Path | str, target: Path, size_bytes: int) -> None:
    """Make a qcow2 that holds only differences from ``backing``, which is never written to.

    If ``backing`` is text, it names the file relative to the directory of ``target``, also after that was renamed.

    Raises:
        ImageError: qemu-img failed.
    """
    _run(
        "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, target, str(size_bytes),
        what=f"cannot make the disk {target}",
    )  # fmt: skip


def create(target: Path, size_bytes: int) -> None:
    """Make an empty qcow2 without a backing file; it takes space as it is written.

    Raises:
        ImageError: qemu-img failed.
    """
    _run("create", "-q", "-f", "qcow2", target, str(size_bytes), what=f"cannot make the disk {target}")


def grow(disk: Path, size_bytes: int) -> None:
    """Make a qcow2 disk larger; the new part reads as zeroes.

    Raises:
        ImageError: qemu-img failed.
    """
    _run("resize", "-q", "-f", "qcow2", disk, str(size_bytes), what=f"cannot make the disk {disk} larger")


def snapshots(disk: Path) -> tuple[str, ...]:
    """Return the tags of the internal snapshots of a qcow2 disk.

    Raises:
        ImageError: the disk cannot be read.
    """
    data = json.loads(_run("info", "--output=json", disk, what=f"{disk} cannot be read"))
    return tuple(str(each["name"]) for each in data.get("snapshots", ()))


def create_snapshot(disk: Path, tag: str) -> None:
    """Keep a qcow2 disk's present content as an internal snapshot.

    Raises:
        ImageError: qemu-img failed.
    """
    _run("snapshot", "-q", "-c", tag, disk, what=f"cannot make a snapshot of {disk}")


def apply_snapshot(disk: Path, tag: str) -> None:
    """Restore a qcow2 disk, with its size, from an internal snapshot.

    Raises:
        ImageError: qemu-img failed.
    """
    _run("snapshot", "-q", "-a", tag, disk, what=f"cannot put {disk} back to its snapshot")


def delete_snapshot(disk: Path, tag: str) -> None:
    """Remove an internal snapshot.

    Raises:
        ImageError: qemu-img failed.
    """
    _run("snapshot", "-q", "-d", tag, disk, what=f"cannot remove a snapshot of {disk}")


def _run(command: str, *words: str | Path, what: str) -> str:
    """Run qemu-img with absolute paths: it takes ``a:b`` for a protocol and ``-x`` for an option."""
    argv = [word.absolute() if isinstance(word, Path) else word for word in words]
    try:
        return processes.run(["qemu-img", command, *argv], timeout_s=_TIMEOUT_S)
    except ProgramError as err:
        raise ImageError(what, why=err.why or err.message, hint=err.hint) from err
