# SPDX-License-Identifier: MIT
"""Check cloud images before they are imported, and copy them."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
import struct
from pathlib import Path

from ghostbox.errors import ImageError, hint_for
from ghostbox.images import qemu_img
from ghostbox.images.qemu_img import DiskInfo

_SUFFIXES = (".img", ".qcow2", ".raw")
_SECTOR_BYTES = 512
_GPT_HEADER = struct.Struct("<8s24xQ")  # signature, …, LBA of the backup header (UEFI specification, 5.3.2)
_QCOW2_HEADER = struct.Struct(">4sIQI")  # magic, version, offset and length of the backing file's name


def name_from(path: Path) -> str:
    """Return an image name from a file name: ``Debian-13_x.qcow2`` gives ``debian-13_x``."""
    return re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._") or "image"


def is_file_name(text: str) -> bool:
    """Tell whether an image's name looks like a file: it has a slash or a disk's suffix."""
    return "/" in text or Path(text).suffix.lower() in _SUFFIXES


def advice(file: str) -> str:
    """Return how to make a VM from a disk file."""
    name = name_from(Path(file))
    return f"ghostbox image import {shlex.quote(file)} --name {name}, then --image {name}"


def inspect(path: Path, sha256: str | None) -> tuple[str, DiskInfo]:
    """Return a file's SHA-256 and its format and sizes.

    Raises:
        ImageError: the file cannot be read, has another checksum, is neither qcow2 nor raw, is cut off, or needs
            another file.
    """
    digest = _digest(path)
    if sha256 is not None and digest != sha256.strip().lower():
        raise ImageError(
            f"{path} has another SHA-256 than given",
            why=f"it has {digest}, given was {sha256.strip().lower()}",
            hint="download it again, and check that the checksum belongs to this file",
        )
    found = qemu_img.info(path)
    if found.format == "qcow2":
        _check_qcow2(path, found)
    elif found.format == "raw":
        _check_raw(path)
    else:
        raise ImageError(
            f"{path} is a {found.format} disk; only qcow2 and raw can be imported",
            hint=f"qemu-img convert -O qcow2 {_quoted(path)} {_quoted(path.with_suffix('.qcow2'))}",
        )
    return digest, found


def copy(source: Path, found: DiskInfo, target: Path) -> None:
    """Write ``source`` to the new qcow2 ``target``.

    Raises:
        ImageError: the copy failed.
    """
    if found.format == "raw":
        qemu_img.convert(source, target)
        return
    try:
        shutil.copyfile(source, target)
    except OSError as err:
        raise ImageError(f"cannot write {target}: {err.strerror}", hint=hint_for(err)) from err


def backing_file(overlay: Path) -> Path | None:
    """Return the disk that a qcow2 file stands on; None if it has none or is no qcow2.

    The name is read from the file's header (QEMU's docs/interop/qcow2.txt), since a running VM holds the lock that
    qemu-img needs.
    """
    try:
        with overlay.open("rb") as file:
            magic, _version, offset, length = _QCOW2_HEADER.unpack(file.read(_QCOW2_HEADER.size))
            if magic != b"QFI\xfb" or offset == 0 or length > 1023:
                return None
            file.seek(offset)
            return overlay.parent / file.read(length).decode()
    except (OSError, struct.error, UnicodeDecodeError):
        return None


def check_whole(path: Path) -> None:
    """Refuse a disk that is no complete qcow2 file.

    Raises:
        ImageError: the file has another format, stands on another file, keeps its data in another file, or is cut off.
    """
    found = qemu_img.info(path, "qcow2")
    if found.data_file is not None:
        raise ImageError(f"{path} is not whole: its data is in {found.data_file}")
    _check_qcow2(path, found)


def _quoted(path: Path) -> str:
    """Return a file's absolute path, quoted for a shell."""
    return shlex.quote(str(path.absolute()))


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise ImageError(f"cannot read {path}: {err.strerror}") from err


def _check_qcow2(path: Path, found: DiskInfo) -> None:
    if found.backing is not None:
        raise ImageError(
            f"{path} is not whole: it stands on {found.backing}",
            hint=f"qemu-img convert -O qcow2 {_quoted(path)} whole.qcow2, and import whole.qcow2",
        )
    end_bytes = qemu_img.check_end_bytes(path)
    # The file may end within the last cluster if that is compressed.
    if path.stat().st_size + found.cluster_bytes <= end_bytes:
        raise _cut_off(path, end_bytes)


def _check_raw(path: Path) -> None:
    """Check for a boot sector, and for a complete GPT if there is one: a raw disk has no magic number of its own."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        boot, header = file.read(_SECTOR_BYTES), file.read(_SECTOR_BYTES)
    if boot[510:512] != b"\x55\xaa":
        raise ImageError(
            f"{path} is neither a qcow2 nor a bootable raw disk",
            hint="take a cloud image such as …-genericcloud-amd64.qcow2, unpacked",
        )
    if header.startswith(b"EFI PART"):
        _signature, last_sector = _GPT_HEADER.unpack_from(header)
        if size_bytes < (last_sector + 1) * _SECTOR_BYTES:
            raise _cut_off(path, (last_sector + 1) * _SECTOR_BYTES)


def _cut_off(path: Path, needed_bytes: int) -> ImageError:
    return ImageError(
        f"{path} is cut off: it has {path.stat().st_size} bytes, its contents need {needed_bytes}",
        hint="download it again",
    )
