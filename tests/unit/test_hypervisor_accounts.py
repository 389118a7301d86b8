# SPDX-License-Identifier: MIT
"""Whether QEMU's user reaches a file: modes, access control lists, symbolic links."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.hypervisor import QemuProcess
from ghostbox.hypervisor.accounts import Account, unreachable_part

QEMU = Account("qemu", 54321, frozenset({54321, 54322}))
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NOBODY = 0xFFFFFFFF


@pytest.fixture
def place() -> Iterator[Path]:
    """A private directory, above which all is open."""
    with tempfile.TemporaryDirectory(prefix="gbt-", dir="/tmp") as name:
        Path(name).chmod(0o711)
        (private := Path(name) / "private").mkdir(mode=0o700)
        yield private


def give(directory: Path, *entries: tuple[int, int, int]) -> None:
    raw = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    try:
        os.setxattr(directory, "system.posix_acl_access", raw)
    except OSError as err:
        pytest.skip(f"cannot run here: no access control lists in /tmp: {err.strerror}")


def test_a_private_directory_is_named_and_so_is_one_behind_a_symbolic_link(place: Path) -> None:
    assert unreachable_part(place / "file", QEMU) == place
    link = place.parent / "link"
    link.symlink_to(place / "deeper", target_is_directory=True)
    (place / "deeper").mkdir(mode=0o755)
    assert unreachable_part(link / "file", QEMU) == place


@pytest.mark.parametrize(
    ("named", "mask", "passes"),
    [
        ((USER, 1, 54321), 7, True),
        ((USER, 1, 54321), 6, False),
        ((USER, 6, 54321), 7, False),
        ((USER, 1, 999), 7, False),
        ((GROUP, 1, 54322), 7, True),
        ((GROUP, 1, 999), 7, False),
    ],
)
def test_what_setfacl_gave_counts(place: Path, named: tuple[int, int, int], mask: int, passes: bool) -> None:
    """`ghostbox doctor` says: setfacl -m u:libvirt-qemu:x DIRECTORY. Then it has to see that it is done."""
    entries = [(USER_OBJ, 7, NOBODY), (GROUP_OBJ, 0, NOBODY), (MASK, mask, NOBODY), (OTHER, 0, NOBODY), named]
    give(place, *sorted(entries))
    assert unreachable_part(place / "file", QEMU) == (None if passes else place)


def test_a_library_is_known_by_its_name_through_a_symbolic_link_and_what_cannot_be_seen_is_unknown() -> None:
    libc = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libc." in line)
    assert QemuProcess(os.getpid()).maps(Path("/elsewhere") / Path(libc).name) is True
    assert QemuProcess(os.getpid()).maps(Path("/elsewhere/libghostbox-shim-none.so")) is False
