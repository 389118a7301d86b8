# SPDX-License-Identifier: MIT
"""QEMU's user reaches a file or not: by modes, access control lists and symbolic links; and gets a VM's disk."""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.errors import Refused
from ghostbox.session import guest_files
from ghostbox.system.hypervisor import QemuProcess, qemu_user
from ghostbox.system.hypervisor.accounts import Account, hand_over, unreachable_part
from helpers.other_user import NOBODY, as_user

QEMU = Account("qemu", 54321, frozenset({54321, 54322}))
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NO_ID = 0xFFFFFFFF
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="cannot run here: needs root to become another user")


@pytest.fixture
def place() -> Iterator[Path]:
    """Yield a private directory, above which all directories are open."""
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
    """`ghostbox doctor` says: setfacl -m u:libvirt-qemu:x DIRECTORY. It must then see the entry."""
    entries = [(USER_OBJ, 7, NO_ID), (GROUP_OBJ, 0, NO_ID), (MASK, mask, NO_ID), (OTHER, 0, NO_ID), named]
    give(place, *sorted(entries))
    assert unreachable_part(place / "file", QEMU) == (None if passes else place)


def opens(file: Path, uid: int) -> bool:
    def try_it() -> bool:
        try:
            os.close(os.open(file, os.O_RDWR))
        except PermissionError:
            return False
        return True

    return as_user(try_it, uid)


@needs_root
def test_an_ordinary_users_disk_is_opened_by_qemus_user_and_by_nobody_else(place: Path) -> None:
    """A system libvirt runs QEMU as another user; only root could give that user the file."""
    place.chmod(0o711)
    (disk := place / "disk").touch(mode=0o644)
    os.chown(disk, NOBODY, NOBODY)
    for _ in range(2):  # each start gives the disk to QEMU's user anew
        as_user(lambda: hand_over(disk, QEMU))
        assert [opens(disk, uid) for uid in (NOBODY, QEMU.uid, 4242)] == [True, True, False]
    assert disk.stat().st_uid == NOBODY


@needs_root
def test_roots_disk_becomes_that_of_qemus_user(place: Path) -> None:
    (disk := place / "disk").touch(mode=0o644)
    hand_over(disk, QEMU)
    assert (disk.stat().st_uid, disk.stat().st_mode & 0o777) == (QEMU.uid, 0o600)


@needs_root
def test_a_file_system_without_access_control_lists_is_named_with_the_way_out(place: Path) -> None:
    place.chmod(0o711)
    if subprocess.run(["mount", "-t", "ramfs", "none", place], check=False, capture_output=True).returncode:
        pytest.skip("cannot run here: no ramfs")
    try:
        (disk := place / "disk").touch()
        os.chown(disk, NOBODY, NOBODY)

        def refusal() -> Refused | None:
            try:
                guest_files.hand_to_qemu(disk, "qemu:///system")
            except Refused as err:
                return err
            return None

        seen = as_user(refusal)
    finally:
        subprocess.run(["umount", place], check=True)
    account = qemu_user("qemu:///system")
    assert seen is not None
    assert seen.message == f"QEMU runs as user {account.name}, which cannot be given access to {disk}"
    assert seen.why == "Operation not supported"
    assert seen.hint == "set libvirt.uri to qemu:///session, or run this as root"


def test_a_library_is_known_by_its_name_through_a_symbolic_link_and_what_cannot_be_seen_is_unknown() -> None:
    libc = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libc." in line)
    assert QemuProcess(os.getpid()).maps(Path("/elsewhere") / Path(libc).name) is True
    assert QemuProcess(os.getpid()).maps(Path("/elsewhere/libghostbox-shim-none.so")) is False
