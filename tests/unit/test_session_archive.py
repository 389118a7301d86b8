# SPDX-License-Identifier: MIT
"""A VM goes into one file and comes out whole, under another identity; an incomplete file leaves nothing behind."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ghostbox import config
from ghostbox.errors import GhostboxError, ImageError, NotFound, Refused
from ghostbox.images import Image, ImageStore, qemu_img
from ghostbox.paths import Paths, VmPaths
from ghostbox.session import archive, cleanup, lifecycle, snapshots
from ghostbox.session.record import Book, VmState
from ghostbox.system import locks
from ghostbox.units import MIB
from helpers.facts import RECORD
from helpers.killed import killed_at
from helpers.stages import Quiet

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
Members = list[tuple[str, bytes]]
DEFINITION = """\
vm:
  cpus: 3  # kept
  disk: 8MiB
  disks: [4MiB]
  shares: [/etc]
  network: bridge:br0
  host_access: true
pool:
  donors: [tower]
  cache: 512MiB
"""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "s", tmp_path / "r", tmp_path / "c", tmp_path / "e", tmp_path / "n")


@pytest.fixture
def files(paths: Paths) -> VmPaths:
    """Return a stopped VM of an image with a kernel: ones in the image, twos in its disk, threes in its second disk."""
    image = add_image(paths)
    files = paths.vm("box")
    Book(files).save(dataclasses.replace(RECORD, disk_bytes=8 * MIB, disks=(4 * MIB,)))
    files.definition.write_text(DEFINITION.replace("8MiB", "1GiB"))
    ImageStore(paths.images).create_overlay(image, files.disk, 8 * MIB)
    io_at(files.disk, "write -q -P 2 1M 1M")
    qemu_img.create(files.more_disk(2), 4 * MIB)
    io_at(files.more_disk(2), "write -q -P 3 0 1M")
    return files


def add_image(paths: Paths) -> Image:
    directory = paths.images / "debian@x"
    directory.mkdir(parents=True)
    qemu_img.create(directory / "disk.qcow2", 4 * MIB)
    io_at(directory / "disk.qcow2", "write -q -P 1 0 2M")
    for name in ("vmlinuz", "initrd.img"):
        (directory / name).write_text(f"the {name}")
    image = Image(
        "debian", directory / "disk.qcow2", directory / "vmlinuz", directory / "initrd.img", "root=LABEL=x", 4 * MIB,
        "hash", "2026-01-01T00:00:00+00:00", "built",
    )  # fmt: skip
    for record in (directory / "image.json", paths.images / "debian.json"):
        record.write_text(json.dumps(image.to_json()))
    return image


def io_at(disk: Path, *commands: str) -> str:
    words = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(["qemu-io", *words, str(disk)], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def exported(paths: Paths, file: Path) -> Path:
    archive.export("box", file, config.load({"vm.name": "box"}), paths, Quiet())
    return file


def taken_in(paths: Paths, file: Path, name: str | None = "new") -> archive.Imported:
    return archive.import_(file, name, paths, Quiet())


def test_imported_vm_has_the_disks_and_the_definition_and_stands_alone(paths: Paths, files: VmPaths) -> None:
    file = exported(paths, paths.state / "box.ghostbox")
    for entry in paths.images.rglob("*"):
        if entry.is_file():
            entry.unlink()
    made = taken_in(paths, file)
    assert made.disks == {"disk": 8 * MIB, "disk2": 4 * MIB}
    new = paths.vm("new")
    assert "failed" not in io_at(new.disk, "read -q -P 1 0 1M", "read -q -P 2 1M 1M", "read -q -P 0 2M 6M")
    assert "failed" not in io_at(new.more_disk(2), "read -q -P 3 0 1M", "read -q -P 0 1M 3M")
    image = ImageStore(paths.images).under(new.disk)
    assert image is not None
    assert (image.kernel_args, image.kind, image.name) == ("root=LABEL=x", "imported", "debian")
    assert image.kernel is not None
    assert image.kernel.read_text() == "the vmlinuz"


def test_imported_vm_is_another_one_in_all_that_names_it(paths: Paths, files: VmPaths) -> None:
    taken_in(paths, exported(paths, paths.state / "f"))
    old, new = (Book(paths.vm(name)).need(name, paths) for name in ("box", "new"))
    assert (new.name, new.domain, new.state) == ("new", "ghostbox-new", VmState.STOPPED)
    assert new.uuid != old.uuid
    assert new.mac != old.mac
    assert not list(paths.vm("new").state.glob("*key*"))
    assert (new.cpus, new.disk_bytes, new.disks, new.image) == (3, 8 * MIB, (4 * MIB,), "debian")


def test_what_belongs_to_the_other_host_or_would_open_this_one_is_left_out(paths: Paths, files: VmPaths) -> None:
    made = taken_in(paths, exported(paths, paths.state / "f"))
    assert made.left_out == ("vm.shares", "vm.network", "vm.host_access", "pool.donors")
    text = paths.vm("new").definition.read_text()
    assert "cpus: 3  # kept" in text
    for word in ("/etc", "br0", "host_access", "tower"):
        assert word not in text


def test_directory_of_an_imported_vm_can_get_another_name(paths: Paths, files: VmPaths) -> None:
    taken_in(paths, exported(paths, paths.state / "f"))
    paths.vm("new").state.rename(paths.vm("other").state)
    assert "failed" not in io_at(paths.vm("other").disk, "read -q -P 1 0 1M")
    image = ImageStore(paths.images).under(paths.vm("other").disk)
    assert image is not None
    assert image.disk == paths.vm("other").state / "base" / "disk.qcow2"


def test_copy_of_an_imported_vm_stands_on_a_base_of_its_own(paths: Paths, files: VmPaths) -> None:
    taken_in(paths, exported(paths, paths.state / "f"))
    lifecycle.clone("new", "copy", config.load({"vm.name": "new"}), paths, Quiet())
    cleanup.remove_state(paths.vm("new"))
    assert "failed" not in io_at(paths.vm("copy").disk, "read -q -P 1 0 1M", "read -q -P 2 1M 1M")
    assert ImageStore(paths.images).under(paths.vm("copy").disk) is not None


def test_snapshots_stay_behind_and_the_vm_that_was_exported_is_as_it_was(paths: Paths, files: VmPaths) -> None:
    snapshots.create("box", "one", paths)
    before = sorted(entry.name for entry in files.state.rglob("*"))
    taken_in(paths, exported(paths, paths.state / "f"))
    assert qemu_img.snapshots(paths.vm("new").disk) == ()
    assert qemu_img.snapshots(files.disk) == ("gb-one",)
    assert sorted(entry.name for entry in files.state.rglob("*")) == before


def test_export_and_import_once_more(paths: Paths, files: VmPaths) -> None:
    taken_in(paths, exported(paths, paths.state / "f"))
    archive.export("new", paths.state / "g", config.load({"vm.name": "new"}), paths, Quiet())
    taken_in(paths, paths.state / "g", "third")
    assert "failed" not in io_at(paths.vm("third").disk, "read -q -P 1 0 1M", "read -q -P 2 1M 1M")


def test_vm_without_a_name_given_gets_the_one_it_had(paths: Paths, files: VmPaths) -> None:
    file = exported(paths, paths.state / "f")
    with pytest.raises(Refused, match="there is a VM named 'box' already") as caught:
        taken_in(paths, file, None)
    assert caught.value.hint == "give the new one another: --name NAME"
    assert files.disk.exists()
    elsewhere = dataclasses.replace(paths, state=paths.state.parent / "s2")
    assert taken_in(elsewhere, file, None).name == "box"


def test_file_that_is_there_is_not_overwritten(paths: Paths, files: VmPaths) -> None:
    (paths.state / "f").write_text("mine")
    with pytest.raises(Refused, match="is there already"):
        exported(paths, paths.state / "f")
    assert (paths.state / "f").read_text() == "mine"


def test_export_that_fails_leaves_no_file(paths: Paths, files: VmPaths) -> None:
    files.more_disk(2).write_bytes(b"no disk")
    with pytest.raises(ImageError):
        exported(paths, paths.state / "f")
    assert [entry.name for entry in paths.state.iterdir()] == ["vms"]


def test_export_that_is_killed_leaves_no_file_of_that_name_and_can_be_made_again(paths: Paths, files: VmPaths) -> None:
    file = paths.state / "box.ghostbox"
    killed_at(Path, "replace", lambda: exported(paths, file))
    at_work = paths.state / ".box.ghostbox-abcdefgh"
    at_work.mkdir()
    assert not file.exists()
    with closing_descriptor(locks.take_directory(at_work)):
        exported(paths, file)
    assert {entry.name for entry in paths.state.iterdir()} == {"vms", file.name, at_work.name}
    file.unlink()
    assert exported(paths, file).stat().st_mode & 0o777 == 0o600
    assert not at_work.exists(), "what a killed export left is removed"
    assert taken_in(paths, file).disks == {"disk": 8 * MIB, "disk2": 4 * MIB}


@contextmanager
def closing_descriptor(descriptor: int) -> Iterator[None]:
    yield
    os.close(descriptor)


def test_too_little_space_is_said_before_anything_is_written(
    paths: Paths, files: VmPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = exported(paths, paths.state / "f")
    usage = shutil.disk_usage(paths.state)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(Refused, match="too little space in .*: 1000 B are free"):
        exported(paths, paths.state / "g")
    with pytest.raises(Refused, match="too little space in"):
        taken_in(paths, file)
    assert not paths.vm("new").state.exists()


def nothing_is_left(paths: Paths) -> bool:
    return [entry.name for entry in (paths.state / "vms").iterdir()] == ["box"]


def test_file_that_is_cut_off_anywhere_is_refused_and_leaves_nothing(paths: Paths, files: VmPaths) -> None:
    whole = exported(paths, paths.state / "f").read_bytes()
    with tarfile.open(paths.state / "f") as found:
        ends = [member.offset_data + member.size for member in found]
    for length in (0, 100, 600, *(end - 1 for end in ends), *(end + 512 - end % 512 for end in ends[:-1])):
        (paths.state / "cut").write_bytes(whole[:length])
        with pytest.raises(ImageError, match="is not a whole export of a VM"):
            taken_in(paths, paths.state / "cut")
        assert nothing_is_left(paths), length


def test_byte_that_is_changed_anywhere_is_found_and_leaves_nothing(paths: Paths, files: VmPaths) -> None:
    whole = exported(paths, paths.state / "f").read_bytes()
    with tarfile.open(paths.state / "f") as found:
        places = [member.offset_data + member.size // 2 for member in found]
    for place in places[1:]:  # the first member is the list itself, which names the other members
        changed = bytearray(whole)
        changed[place] ^= 1
        (paths.state / "changed").write_bytes(changed)
        with pytest.raises(ImageError, match="is not a whole export of a VM") as caught:
            taken_in(paths, paths.state / "changed")
        assert "has another SHA-256 than ghostbox-vm.json says" in str(caught.value.why)
        assert nothing_is_left(paths)


def rebuilt(source: Path, target: Path, change: Callable[[Members], Members]) -> Path:
    """Write an export anew with changed members, and a list that agrees with them."""
    with tarfile.open(source) as found:
        members = [(each.name, found.extractfile(each).read()) for each in found]  # type: ignore[union-attr]
    manifest = json.loads(members[0][1])
    changed = list(change(members[1:]))
    manifest["members"] = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in changed}
    with tarfile.open(target, "w") as made:
        for name, data in [(members[0][0], json.dumps(manifest).encode()), *changed]:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            made.addfile(entry, io.BytesIO(data))
    return target


def with_disk(directory: Path, *words: str) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        disk = directory / "evil.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *words, disk, "8M"], check=True, cwd=directory)
        return [(name, disk.read_bytes() if name == "disk.qcow2" else data) for name, data in members]

    return change


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("-F", "raw", "-b", "/etc/passwd"), "stands on /etc/passwd"),
        (("-o", "data_file=stolen.raw"), "its data is in stolen.raw"),
    ],
)
def test_disk_that_reaches_for_a_file_of_this_host_is_refused(
    paths: Paths, files: VmPaths, tmp_path: Path, words: tuple[str, ...], why: str
) -> None:
    evil = rebuilt(exported(paths, paths.state / "f"), paths.state / "evil", with_disk(tmp_path, *words))
    with pytest.raises(ImageError, match="is not a whole export of a VM") as caught:
        taken_in(paths, evil)
    assert why in str(caught.value.why)
    assert nothing_is_left(paths)


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "vm.json", "id_ed25519", "disk1.qcow2", "image.json"])
def test_member_that_an_export_does_not_have_is_refused(paths: Paths, files: VmPaths, name: str) -> None:
    evil = rebuilt(exported(paths, paths.state / "f"), paths.state / "evil", lambda all_: [*all_, (name, b"x")])
    with pytest.raises(ImageError, match="is not a whole export of a VM"):
        taken_in(paths, evil)
    assert nothing_is_left(paths)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vm", "../x"),
        ("format", 2),
        ("image", {}),
        ("image", {"kernel": "image.json"}),
        ("members", {}),
        ("members", 3),
    ],
)
def test_list_that_makes_no_sense_is_refused(paths: Paths, files: VmPaths, key: str, value: Any) -> None:
    with tarfile.open(exported(paths, paths.state / "f")) as found:
        first = found.next()
        assert first is not None
        manifest = json.load(found.extractfile(first))  # type: ignore[arg-type]
    manifest[key] = manifest[key] | value if isinstance(value, dict) and value else value
    with tarfile.open(paths.state / "evil", "w") as made:
        data = json.dumps(manifest).encode()
        entry = tarfile.TarInfo("ghostbox-vm.json")
        entry.size = len(data)
        made.addfile(entry, io.BytesIO(data))
    with pytest.raises(ImageError):
        taken_in(paths, paths.state / "evil")
    assert nothing_is_left(paths)


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, b"\x1f\x8b\x08\x00 gzip?"])
def test_file_of_another_kind_is_refused(paths: Paths, files: VmPaths, content: bytes) -> None:
    (paths.state / "other").write_bytes(content)
    with pytest.raises(ImageError, match="is not a whole export of a VM"):
        taken_in(paths, paths.state / "other")


def test_file_that_is_missing_is_said_to_be(paths: Paths, files: VmPaths) -> None:
    with pytest.raises(NotFound, match="no file"):
        taken_in(paths, paths.state / "missing")


def test_wrong_definition_is_refused_and_leaves_nothing(paths: Paths, files: VmPaths) -> None:
    def change(members: Members) -> Members:
        return [(name, b"vm: {cpus: many}\n" if name == "definition.yaml" else data) for name, data in members]

    evil = rebuilt(exported(paths, paths.state / "f"), paths.state / "evil", change)
    with pytest.raises(GhostboxError, match="vm.cpus: 'many' is not a whole number"):
        taken_in(paths, evil)
    assert nothing_is_left(paths)


def test_disks_of_a_vm_that_has_lost_its_record_are_not_touched(paths: Paths, files: VmPaths) -> None:
    file = exported(paths, paths.state / "f")
    files.record.unlink()
    before = files.disk.read_bytes()
    with pytest.raises(Refused, match="has disks of a VM that has no record"):
        taken_in(paths, file, "box")
    assert files.disk.read_bytes() == before


def test_commands_export_the_only_vm_and_import_it_under_another_name(
    quick_cli: Cli, paths: Paths, files: VmPaths
) -> None:
    env = {f"GHOSTBOX_{kind}_DIR": str(getattr(paths, kind.lower())) for kind in ("STATE", "RUNTIME", "CACHE")}
    done = quick_cli("export", "box.ghostbox", env=env, cwd=paths.state)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("VM 'box' is in box.ghostbox, ")
    done = quick_cli("import", "box.ghostbox", "--name", "new", env=env, cwd=paths.state)
    assert done.returncode == 0, done.stderr
    assert "VM 'new' is imported. Start it: ghostbox up new --donor HOST" in done.stdout
    assert "left out, since these keys belong to the other host: vm.shares, vm.network" in done.stderr
    done = quick_cli("export", "new", "box.ghostbox", env=env, cwd=paths.state)
    assert "error: box.ghostbox is there already" in done.stderr
    assert (paths.state / "box.ghostbox").stat().st_mode & 0o077 == 0
