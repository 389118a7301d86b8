# SPDX-License-Identifier: MIT
"""A snapshot of a stopped VM has all its disks and its definition, or is not made. qemu-io writes to real disks."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ghostbox import config
from ghostbox.errors import GhostboxError, ImageError, NotFound, Refused, UsageError
from ghostbox.images import qemu_img
from ghostbox.paths import Paths, VmPaths
from ghostbox.plan import plan
from ghostbox.session import guest_files, observe, snapshots
from ghostbox.session.record import Book, VmState
from ghostbox.units import MIB
from helpers.facts import FACTS, RECORD

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "s", tmp_path / "r", tmp_path / "c", tmp_path / "e", tmp_path / "n")


@pytest.fixture
def files(paths: Paths) -> VmPaths:
    """Return a stopped VM with two disks, full of ones and twos."""
    files = paths.vm("box")
    Book(files).save(dataclasses.replace(RECORD, disk_bytes=8 * MIB, disks=(4 * MIB,)))
    files.definition.write_text("vm: {cpus: 2}\n")
    for disk, size, byte in ((files.disk, 8 * MIB, 1), (files.more_disk(2), 4 * MIB, 2)):
        qemu_img.create(disk, size)
        write(disk, byte)
    return files


def write(disk: Path, byte: int) -> None:
    subprocess.run(["qemu-io", "-c", f"write -q -P {byte} 0 1M", disk], check=True, capture_output=True)


def holds(disk: Path, byte: int) -> bool:
    done = subprocess.run(
        ["qemu-io", "-c", f"read -q -P {byte} 0 1M", disk], capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and "failed" not in done.stdout + done.stderr


def test_all_disks_their_sizes_and_the_definition_are_put_back(paths: Paths, files: VmPaths) -> None:
    made = snapshots.create("box", "one", paths)
    assert made.disks == {"disk.qcow2": 8 * MIB, "disk2.qcow2": 4 * MIB}
    for disk in (files.disk, files.more_disk(2)):
        write(disk, 9)
        qemu_img.grow(disk, 16 * MIB)
    files.definition.write_text("vm: {cpus: 7}\n")
    book = Book(files)
    record = book.need("box", paths)
    book.save(dataclasses.replace(record, disk_bytes=16 * MIB, disks=(16 * MIB,), user="other"))
    snapshots.restore("box", "one", paths)
    assert holds(files.disk, 1)
    assert holds(files.more_disk(2), 2)
    assert [qemu_img.info(disk).virtual_bytes for disk in (files.disk, files.more_disk(2))] == [8 * MIB, 4 * MIB]
    assert files.definition.read_text() == "vm: {cpus: 2}\n"
    record = Book(files).need("box", paths)
    assert (record.disk_bytes, record.disks, record.user) == (8 * MIB, (4 * MIB,), "other")


def test_several_snapshots_are_listed_in_order_and_each_can_be_put_back_more_than_once(
    paths: Paths, files: VmPaths
) -> None:
    for number, name in enumerate(["1", "2nd", "third.one"], start=3):
        write(files.disk, number)
        snapshots.create("box", name, paths)
    assert [each.name for each in snapshots.find_all("box", paths)] == ["1", "2nd", "third.one"]
    for name, byte in (("2nd", 4), ("1", 3), ("third.one", 5), ("1", 3)):
        snapshots.restore("box", name, paths)
        assert holds(files.disk, byte), name
    assert qemu_img.snapshots(files.disk) == ("gb-1", "gb-2nd", "gb-third.one")


def test_deleted_snapshot_leaves_the_disks_as_they_are_and_nothing_of_itself(paths: Paths, files: VmPaths) -> None:
    snapshots.create("box", "one", paths)
    write(files.disk, 9)
    snapshots.delete("box", "one", paths)
    assert holds(files.disk, 9)
    assert snapshots.find_all("box", paths) == []
    assert qemu_img.snapshots(files.disk) == qemu_img.snapshots(files.more_disk(2)) == ()


def test_disk_that_cannot_take_a_snapshot_leaves_none_in_the_others(paths: Paths, files: VmPaths) -> None:
    files.more_disk(2).write_bytes(b"no disk")
    with pytest.raises(ImageError, match="disk2.qcow2"):
        snapshots.create("box", "one", paths)
    assert qemu_img.snapshots(files.disk) == ()
    assert snapshots.find_all("box", paths) == []


def test_disk_that_cannot_be_put_back_leaves_the_others_as_they_are(
    paths: Paths, files: VmPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots.create("box", "one", paths)
    write(files.disk, 9)
    apply = qemu_img.apply_snapshot

    def fails(disk: Path, tag: str) -> None:
        if disk == files.more_disk(2) and tag == "gb-one":
            raise ImageError("no space")
        apply(disk, tag)

    monkeypatch.setattr(qemu_img, "apply_snapshot", fails)
    with pytest.raises(ImageError, match="no space"):
        snapshots.restore("box", "one", paths)
    assert holds(files.disk, 9)
    assert qemu_img.snapshots(files.disk) == ("gb-one",)


def test_snapshot_that_a_disk_has_lost_is_refused_before_anything_is_changed(paths: Paths, files: VmPaths) -> None:
    snapshots.create("box", "one", paths)
    write(files.disk, 9)
    qemu_img.delete_snapshot(files.more_disk(2), "gb-one")
    with pytest.raises(ImageError, match="snapshot 'one' of VM 'box' is damaged"):
        snapshots.restore("box", "one", paths)
    assert holds(files.disk, 9)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"rack": 7}, r"cannot read .*snapshot\.json: rack: "),
        ({"format": 2}, "was written by a newer version of GhostBox"),
    ],
)
def test_snapshot_of_a_newer_version_is_refused_before_anything_is_changed(
    paths: Paths, files: VmPaths, changed: dict[str, int], problem: str
) -> None:
    snapshots.create("box", "one", paths)
    description = files.state / "snapshots/one/snapshot.json"
    document = json.loads(description.read_text())
    description.write_text(json.dumps(document | {"vm": document["vm"] | changed}))
    write(files.disk, 9)
    with pytest.raises(GhostboxError, match=problem):
        snapshots.restore("box", "one", paths)
    assert holds(files.disk, 9)


def test_what_a_killed_command_left_in_a_disk_is_no_snapshot_and_not_in_the_way(paths: Paths, files: VmPaths) -> None:
    qemu_img.create_snapshot(files.disk, "gb-one")
    write(files.disk, 9)
    assert snapshots.find_all("box", paths) == []
    snapshots.create("box", "one", paths)
    write(files.disk, 8)
    snapshots.restore("box", "one", paths)
    assert holds(files.disk, 9)


def test_snapshot_of_a_name_that_is_taken_is_refused(paths: Paths, files: VmPaths) -> None:
    snapshots.create("box", "one", paths)
    with pytest.raises(Refused, match="VM 'box' has a snapshot 'one' already"):
        snapshots.create("box", "one", paths)


@pytest.mark.parametrize("name", ["", "../x", "a b", "-rf", ".hidden", "x" * 41, "ä"])
def test_name_that_is_none_is_refused(paths: Paths, files: VmPaths, name: str) -> None:
    for command in (snapshots.create, snapshots.restore, snapshots.delete):
        with pytest.raises(UsageError, match="cannot be the name of a snapshot"):
            command("box", name, paths)


def test_snapshot_that_is_not_there_is_named_with_those_that_are(paths: Paths, files: VmPaths) -> None:
    with pytest.raises(NotFound, match="VM 'box' has no snapshot 'two'") as caught:
        snapshots.restore("box", "two", paths)
    assert caught.value.hint == "make one: ghostbox snapshot create box NAME"
    snapshots.create("box", "one", paths)
    with pytest.raises(NotFound) as caught:
        snapshots.delete("box", "two", paths)
    assert caught.value.hint == "there are: one"


@pytest.mark.parametrize("state", [VmState.RUNNING, VmState.PAUSED])
def test_vm_that_runs_is_refused_with_the_reason(
    paths: Paths, files: VmPaths, state: VmState, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots.create("box", "one", paths)
    monkeypatch.setattr(observe, "heal", lambda book: (book.load(), state)[1])
    with pytest.raises(Refused, match=f"VM 'box' is {state}") as caught:
        snapshots.create("box", "two", paths)
    assert caught.value.why == "a snapshot is made of disks that no program writes to"
    assert caught.value.hint == "ghostbox down box, then again"
    for command in (snapshots.restore, snapshots.delete):
        with pytest.raises(Refused, match=f"VM 'box' is {state}"):
            command("box", "one", paths)


def test_commands_show_what_they_did(quick_cli: Cli, paths: Paths, files: VmPaths) -> None:
    env = {f"GHOSTBOX_{kind}_DIR": str(getattr(paths, kind.lower())) for kind in ("STATE", "RUNTIME", "CACHE")}

    def snapshot(*words: str, code: int = 0) -> str:
        done = quick_cli("snapshot", *words, env=env)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    assert "snapshot 'one' of VM 'box' is made: disk 8 MiB, disk2 4 MiB" in snapshot("create", "box", "one")
    assert json.loads(snapshot("list", "box", "--json"))[0]["disks"] == {"disk.qcow2": 8 * MIB, "disk2.qcow2": 4 * MIB}
    assert "one" in snapshot("list", "box")
    assert "error: " in snapshot("restore", "box", "one", code=2)
    assert "VM 'box' is as it was at 20" in snapshot("restore", "box", "one", "--yes", "-o", "table")
    assert "snapshot 'one' of VM 'box' is deleted" in snapshot("delete", "box", "one", "-y")
    assert "error: VM 'box' has no snapshot 'one'" in snapshot("restore", "box", "one", "-y", code=4)


def test_disk_that_is_not_named_any_more_is_kept_and_said_to_be(paths: Paths, files: VmPaths) -> None:
    two = plan.make(config.load({"vm.name": "box", "vm.disks": ["4M"]}), paths, FACTS)
    assert guest_files.notes(two) == ()
    one = plan.make(config.load({"vm.name": "box"}), paths, FACTS)
    assert guest_files.notes(one) == (
        f"note: {files.more_disk(2)} is kept and not attached: vm.disks does not name it any more",
    )
