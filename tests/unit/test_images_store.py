# SPDX-License-Identifier: MIT
"""Images are imported, listed, used and deleted, with the real qemu-img."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ghostbox.errors import GhostboxError, ImageError, NotFound, Refused, UsageError
from ghostbox.images import ImageStore, backing_file, qemu_img

MIB = 1024 * 1024


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


def raw_disk(path: Path, size_bytes: int = 4 * MIB, *, gpt: bool = False) -> Path:
    """Write a disk with a boot sector, some random data, and perhaps a GPT whose backup is in the last sector."""
    data = bytearray(os.urandom(MIB) + bytes(size_bytes - MIB))
    data[510:512] = b"\x55\xaa"
    if gpt:
        data[512:1024] = struct.pack("<8s24xQ", b"EFI PART", size_bytes // 512 - 1).ljust(512, b"\0")
    path.write_bytes(data)
    return path


def qcow2_disk(path: Path, *options: str) -> Path:
    source = raw_disk(path.with_suffix(".raw"))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", *options, source, path], check=True)
    return path


def left_behind(store_root: Path) -> list[str]:
    return sorted(path.name for path in store_root.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize("make", [raw_disk, qcow2_disk])
def test_imported_disk_holds_what_the_file_held(
    store: ImageStore, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    source = make(tmp_path / "Cloud Disk_1.img")
    image = store.import_file(source)
    assert (image.name, image.kind, image.kernel, image.virtual_bytes) == ("cloud-disk_1", "imported", None, 4 * MIB)
    assert image.recipe_hash == hashlib.sha256(source.read_bytes()).hexdigest()
    subprocess.run(["qemu-img", "compare", "-q", source, image.disk], check=True)
    assert store.list() == [store.get("cloud-disk_1")] == [image]


def test_qemus_own_user_can_read_an_image_whatever_the_umask_is(store: ImageStore, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        image = store.import_file(raw_disk(tmp_path / "disk.raw"))
    finally:
        os.umask(before)
    assert image.disk.stat().st_mode & 0o777 == 0o644
    assert image.directory.stat().st_mode & 0o777 == 0o755
    assert image.directory.parent.stat().st_mode & 0o777 == 0o755


def test_right_checksum_is_taken_in_any_case(store: ImageStore, tmp_path: Path) -> None:
    source = raw_disk(tmp_path / "disk.raw")
    store.import_file(source, sha256=hashlib.sha256(source.read_bytes()).hexdigest().upper())


def test_wrong_checksum_is_refused_and_leaves_nothing(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"disk\.raw has another SHA-256 than given") as caught:
        store.import_file(raw_disk(tmp_path / "disk.raw"), sha256="0" * 64)
    assert caught.value.why is not None
    assert "given was 000" in caught.value.why
    assert left_behind(tmp_path / "images") == []


@pytest.mark.parametrize("options", [(), ("-c",)])
def test_cut_off_qcow2_is_refused(store: ImageStore, tmp_path: Path, options: tuple[str, ...]) -> None:
    source = qcow2_disk(tmp_path / "disk.qcow2", *options)
    os.truncate(source, source.stat().st_size - 256 * 1024)
    with pytest.raises(ImageError, match=r"disk\.qcow2 is (cut off: it has \d+ bytes|damaged or cut off)"):
        store.import_file(source)
    assert left_behind(tmp_path / "images") == []


def test_cut_off_raw_disk_with_a_partition_table_is_refused(store: ImageStore, tmp_path: Path) -> None:
    source = raw_disk(tmp_path / "disk.raw", gpt=True)
    store.import_file(source, "whole")
    os.truncate(source, 3 * MIB)
    with pytest.raises(ImageError, match=f"is cut off: it has {3 * MIB} bytes, its contents need {4 * MIB}"):
        store.import_file(source, "short")


def test_file_that_is_no_disk_is_refused(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html>not found</html>" * 100)
    with pytest.raises(ImageError, match=r"page\.html is neither a qcow2 nor a bootable raw disk"):
        store.import_file(tmp_path / "page.html")


def test_missing_file_is_named(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"cannot read .*gone\.qcow2: No such file or directory"):
        store.import_file(tmp_path / "gone.qcow2")


def test_other_formats_are_refused_with_the_command_that_converts(store: ImageStore, tmp_path: Path) -> None:
    source = raw_disk(tmp_path / "disk.raw")
    subprocess.run(["qemu-img", "convert", "-O", "vmdk", source, tmp_path / "disk.vmdk"], check=True)
    with pytest.raises(ImageError, match="is a vmdk disk; only qcow2 and raw can be imported") as caught:
        store.import_file(tmp_path / "disk.vmdk")
    assert caught.value.hint is not None
    assert "qemu-img convert" in caught.value.hint


def test_overlay_is_no_image(store: ImageStore, tmp_path: Path) -> None:
    base = store.import_file(raw_disk(tmp_path / "disk.raw"))
    store.create_overlay(base, tmp_path / "overlay.qcow2", 8 * MIB)
    with pytest.raises(ImageError, match=r"overlay\.qcow2 is not whole: it stands on .*disk\.qcow2"):
        store.import_file(tmp_path / "overlay.qcow2")


def test_taken_name_is_refused(store: ImageStore, tmp_path: Path) -> None:
    source = raw_disk(tmp_path / "disk.raw")
    store.import_file(source)
    with pytest.raises(Refused, match="an image named 'disk' exists already"):
        store.import_file(source)


@pytest.mark.parametrize("name", ["", "../x", "A", "a b", "-x"])
def test_bad_name_is_refused(store: ImageStore, name: str) -> None:
    with pytest.raises(UsageError, match="cannot name an image"):
        store.get(name)


def test_missing_image_is_not_found_and_the_hint_says_what_to_do(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no image named 'debian'") as caught:
        store.get("debian")
    assert caught.value.hint == "ghostbox image build"
    store.import_file(raw_disk(tmp_path / "mine.raw"))
    with pytest.raises(NotFound) as caught:
        store.get("other")
    assert caught.value.hint == "there are: mine"


def test_image_whose_disk_was_removed_is_damaged_not_missing(store: ImageStore, tmp_path: Path) -> None:
    image = store.import_file(raw_disk(tmp_path / "disk.raw"))
    image.disk.unlink()
    with pytest.raises(ImageError, match=r"image 'disk' is damaged: .*disk\.qcow2 is missing"):
        store.get("disk")
    assert store.list() == []


def test_unreadable_record_names_itself(store: ImageStore, tmp_path: Path) -> None:
    image = store.import_file(raw_disk(tmp_path / "disk.raw"))
    record = image.directory.parent / "disk.json"
    record.write_text("{")
    with pytest.raises(ImageError, match=r"cannot read .*disk\.json") as caught:
        store.get("disk")
    assert caught.value.hint == f"remove {record}"


def test_overlay_has_the_wanted_size_and_names_its_base(store: ImageStore, tmp_path: Path) -> None:
    image = store.import_file(raw_disk(tmp_path / "disk.raw"))
    overlay = tmp_path / "overlay.qcow2"
    store.create_overlay(image, overlay, 64 * MIB)
    told = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", overlay]))
    assert (told["virtual-size"], told["format"]) == (64 * MIB, "qcow2")
    assert backing_file(overlay) == image.disk == Path(told["backing-filename"])


def test_overlay_smaller_than_its_base_is_refused(store: ImageStore, tmp_path: Path) -> None:
    image = store.import_file(raw_disk(tmp_path / "disk.raw"))
    with pytest.raises(ImageError, match="a disk of 1 MiB is too small for image 'disk', which has 4 MiB"):
        store.create_overlay(image, tmp_path / "overlay.qcow2", MIB)


def test_overlay_that_cannot_be_written_names_its_path(store: ImageStore, tmp_path: Path) -> None:
    image = store.import_file(raw_disk(tmp_path / "disk.raw"))
    with pytest.raises(ImageError, match=r"cannot make the disk .*/nowhere/overlay\.qcow2"):
        store.create_overlay(image, tmp_path / "nowhere/overlay.qcow2", 8 * MIB)


@pytest.mark.parametrize("content", [b"", b"QFI", b"x" * 4096])
def test_file_that_is_no_overlay_has_no_backing_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    assert backing_file(tmp_path / "file") is None
    assert backing_file(tmp_path / "missing") is None


def test_disk_goes_on_standing_on_its_image_when_another_takes_the_name(store: ImageStore, tmp_path: Path) -> None:
    old = store.import_file(raw_disk(tmp_path / "disk.raw"))
    overlay = tmp_path / "overlay.qcow2"
    store.create_overlay(old, overlay, 64 * MIB)
    (tmp_path / "images/disk.json").unlink()
    new = store.import_file(raw_disk(tmp_path / "disk.raw"))
    assert store.get("disk") == new != old
    assert store.under(overlay) == old


def test_disk_that_is_not_there_stands_on_nothing(store: ImageStore, tmp_path: Path) -> None:
    assert store.under(tmp_path / "none.qcow2") is None


def test_disk_without_an_image_is_explained(store: ImageStore, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"disk\.qcow2 stands on no image that is known") as caught:
        store.under(qcow2_disk(tmp_path / "disk.qcow2"))
    assert caught.value.why == "its base is not named in its header"
    assert caught.value.hint == f"put its base back in its place; {tmp_path}/disk.qcow2 has what the VM wrote"


def test_image_in_use_is_not_deleted(store: ImageStore, tmp_path: Path) -> None:
    image = store.import_file(raw_disk(tmp_path / "disk.raw"))
    with pytest.raises(Refused, match="image 'disk' is the base of a VM's disk"):
        store.delete("disk", {image.disk})
    assert store.get("disk") == image
    store.delete("disk", {tmp_path / "other/disk.qcow2"})
    assert left_behind(tmp_path / "images") == []
    with pytest.raises(NotFound, match="no image named 'disk'"):
        store.delete("disk", set())


def test_image_is_in_use_while_an_overlay_of_it_exists(store: ImageStore, tmp_path: Path) -> None:
    image = store.import_file(raw_disk(tmp_path / "disk.raw"))
    overlay = tmp_path / "overlay.qcow2"
    store.create_overlay(image, overlay, 8 * MIB)
    with pytest.raises(Refused, match="image 'disk' is the base of a VM's disk"):
        store.delete("disk", set())
    overlay.unlink()
    store.delete("disk", set())


def test_second_command_on_an_image_waits_for_the_first(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    said: list[str] = []
    waits = threading.Event()

    def progress(text: str) -> None:
        said.append(text)
        if "waiting" in text:
            waits.set()

    source = raw_disk(tmp_path / "disk.raw")
    with (tmp_path / "images/.disk.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        importer = threading.Thread(target=store.import_file, args=(source, "disk", None, progress))
        importer.start()
        assert waits.wait(10)
        assert not (tmp_path / "images/disk.json").exists()
    importer.join(30)
    assert said[0] == "waiting for another command that works on image 'disk'"
    assert store.get("disk").virtual_bytes == 4 * MIB


def test_what_a_killed_command_left_is_removed_by_the_next(store: ImageStore, tmp_path: Path) -> None:
    (tmp_path / "images/.disk.new-abc").mkdir(parents=True)
    (tmp_path / "images/.disk.new-abc/disk.qcow2").write_text("half")
    image = store.import_file(raw_disk(tmp_path / "disk.raw"), "disk")
    assert left_behind(tmp_path / "images") == ["disk.json", image.directory.name]


def test_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GhostboxError, match="cannot make the directory .*/file/images"):
        ImageStore(tmp_path / "file/images").import_file(raw_disk(tmp_path / "disk.raw"))


@pytest.mark.parametrize(("file", "name"), [("a:b.qcow2", "a-b"), ("-x.img", "x"), ("json:{}.img", "json")])
def test_relative_file_names_that_qemu_img_would_misread_can_be_imported(
    store: ImageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, name: str
) -> None:
    """qemu-img takes the part before a colon for a protocol, and a word with a leading dash for an option."""
    monkeypatch.chdir(tmp_path)
    raw = raw_disk(tmp_path / "disk.raw")
    if file.endswith(".qcow2"):
        qemu_img.convert(raw, Path(file))
    else:
        raw.rename(file)
    assert store.import_file(Path(file)).name == name
    assert store.get(name).disk.is_file()


@pytest.mark.parametrize("file", ["ubuntu-24.04.img", "./ubuntu-24.04.img"])
def test_file_given_in_place_of_an_images_name_is_recognised(store: ImageStore, file: str) -> None:
    with pytest.raises(GhostboxError) as caught:
        store.get(file)
    assert caught.value.hint == f"ghostbox image import {file} --name ubuntu-24.04, then --image ubuntu-24.04"
