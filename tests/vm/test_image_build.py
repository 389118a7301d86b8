# SPDX-License-Identifier: MIT
"""``ghostbox image build`` builds a whole image, and failing builds clean up; the other image commands work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ghostbox import paths
from ghostbox.images import ImageStore, backing_file
from ghostbox.system import processes

MIB = 1024 * 1024
Cli = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.timeout(400)


def images_of(directory: Path) -> Path:
    return directory / "cache/images"


def left_behind(images: Path) -> list[str]:
    """Return all files but the empty lock files (removing a lock file is a race)."""
    return sorted(path.name for path in images.iterdir() if path.suffix != ".lock")


def recipe_with(directory: Path, old: str, new: str) -> Path:
    text = paths.data_file("images/debian.yaml").read_text()
    assert old in text
    path = directory / "recipe.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


def bootable(path: Path) -> Path:
    """Write a disk whose boot sector prints to the first serial port: a firmware boots it."""
    text = b"booted by firmware\r\n\0"
    code = bytes.fromhex(
        "31c0 8ed8"  # xor ax,ax; mov ds,ax
        "be 187c"  # mov si,0x7c18
        "ba f803"  # mov dx,0x3f8
        "ac"  # next: lodsb
        "84c0 7403"  # test al,al; jz halt
        "ee ebf8"  # out dx,al; jmp next
        "f4 ebfd"  # halt: hlt; jmp halt
    )
    assert len(code) <= 0x18
    sector = code.ljust(0x18, b"\x90") + text
    path.write_bytes(sector.ljust(510, b"\0") + b"\x55\xaa" + os.urandom(MIB - 512))
    return path


@pytest.mark.vm
@pytest.mark.slow
def test_build_replaces_the_image_and_keeps_the_old_one_for_its_vms(ghostbox_cli: Cli, ghostbox_dirs: Path) -> None:
    store = ImageStore(images_of(ghostbox_dirs))
    old = store.import_file(bootable(ghostbox_dirs / "mine.raw"))
    overlay = ghostbox_dirs / "state/vms/box/disk.qcow2"
    overlay.parent.mkdir(parents=True)
    store.create_overlay(old, overlay, 2 * MIB)
    unused = old.directory.with_name("mine@000000000000-0")
    unused.mkdir()

    env = {"PYTHONDONTWRITEBYTECODE": "1"}  # this is for the user's programs, not for those of the image
    done = ghostbox_cli("image", "build", "--name", "mine", "--force", "--output", "json", env=env, timeout_s=390)

    assert done.returncode == 0, done.stderr
    built = json.loads(done.stdout)
    assert (built["name"], built["kind"]) == ("mine", "built")
    assert "done" in done.stderr
    for part in ("disk", "kernel", "initrd"):
        assert Path(built[part]).stat().st_mode & 0o777 == 0o644
    new = store.get("mine")
    assert left_behind(images_of(ghostbox_dirs)) == sorted(("mine.json", old.directory.name, new.directory.name))
    assert backing_file(overlay) == old.disk
    again = ghostbox_cli("image", "build", "--name", "mine", "--json")
    assert json.loads(again.stdout) == built
    assert ".cpython-" in files_in(new.disk, "/usr/lib/python3/dist-packages/cloudinit/__pycache__", ghostbox_dirs)


def files_in(disk: Path, directory: str, scratch: Path) -> str:
    """Return the names of the files in a directory of an image's root file system."""
    raw = scratch / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, raw], check=True)
    argv = ["debugfs", "-R", f"ls -p {directory}", str(raw)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_build_without_space_says_how_much_is_needed(ghostbox_cli: Cli, ghostbox_dirs: Path) -> None:
    recipe = recipe_with(ghostbox_dirs, "build_space: 2G", "build_space: 900T")
    done = ghostbox_cli("image", "build", "--recipe", recipe)
    assert done.returncode == 1
    assert f"no space for the image in {images_of(ghostbox_dirs)}" in done.stderr
    assert ": 900 TiB needed, " in done.stderr
    assert "fix: free some space, or set GHOSTBOX_CACHE_DIR" in done.stderr
    assert left_behind(images_of(ghostbox_dirs)) == []


@pytest.fixture
def small_cache(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("cannot run here: only root may mount a small file system")
    cache = tmp_path / "small"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100M", "tmpfs", cache], check=True)
    yield cache
    subprocess.run(["umount", cache], check=True)


def test_disk_that_fills_up_while_building_is_named(ghostbox_cli: Cli, ghostbox_dirs: Path, small_cache: Path) -> None:
    recipe = recipe_with(ghostbox_dirs, "build_space: 2G", "build_space: 90M")
    env = {"GHOSTBOX_CACHE_DIR": str(small_cache)}
    done = ghostbox_cli("image", "build", "--recipe", recipe, env=env, timeout_s=300)
    assert done.returncode == 1
    assert f"no space for the image in {small_cache}/images" in done.stderr
    assert "MiB free" in done.stderr
    assert left_behind(small_cache / "images") == []


def test_unreachable_mirror_is_reported_in_apts_words(ghostbox_cli: Cli, ghostbox_dirs: Path) -> None:
    """apt's messages name the release that the configuration names."""
    mirror, env = "http://127.0.0.1:1/debian", {"GHOSTBOX_IMAGE_SUITE": "forky"}
    done = ghostbox_cli("image", "build", "--mirror", mirror, env=env)
    assert done.returncode == 1
    assert "error: cannot build the guest image" in done.stderr
    assert f"{mirror}/dists/forky/" in done.stderr.partition("why:")[2]
    assert left_behind(images_of(ghostbox_dirs)) == []


def test_missing_tool_is_named_with_its_package(ghostbox_cli: Cli, ghostbox_dirs: Path) -> None:
    directory = ghostbox_dirs / "bin"
    directory.mkdir()
    done = ghostbox_cli("image", "build", env={"PATH": str(directory)})
    assert done.returncode == 1
    assert "cannot build an image without " in done.stderr
    assert "mmdebstrap" in done.stderr
    assert "fix: sudo apt install " in done.stderr


def test_ctrl_c_while_building_leaves_no_file_and_no_process(ghostbox_dirs: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(Path(processes.__file__).parent.parent), "NO_COLOR": "1"}
    child = subprocess.Popen(
        [sys.executable, "-m", "ghostbox", "image", "build"], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    images = images_of(ghostbox_dirs)

    def unpacking() -> bool:
        assert child.poll() is None, child.stderr and child.stderr.read()
        return any(images.glob(".*.new-*/ghostbox-build-*/mmdebstrap.*/usr"))

    processes.wait_until(unpacking, timeout_s=120, what="unpacked packages")
    inside = next(images.glob(".*.new-*"))
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130, stderr.decode()
    assert left_behind(images) == []
    assert using(inside) == []


def using(directory: Path) -> list[str]:
    """Return the processes that name a directory in their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in words:
            found.append(words)
    return found


def test_image_commands_from_import_to_delete(ghostbox_cli: Cli, ghostbox_dirs: Path) -> None:
    bootable(ghostbox_dirs / "cloud.raw")
    wrong = ghostbox_cli("image", "import", "cloud.raw", "--sha256", "0" * 64)
    assert wrong.returncode == 1
    assert "has another SHA-256 than given" in wrong.stderr
    taken = ghostbox_cli("image", "import", "cloud.raw", "--name", "mine", "--json")
    assert json.loads(taken.stdout)["kind"] == "imported"
    listed = ghostbox_cli("image", "list", "-o", "json")
    assert [image["name"] for image in json.loads(listed.stdout)] == ["mine"]
    assert "firmware" in ghostbox_cli("image", "list", "-o", "table").stdout
    asked = ghostbox_cli("image", "delete", "mine")
    assert asked.returncode == 2
    assert "fix: add --yes" in asked.stderr
    assert json.loads(ghostbox_cli("image", "delete", "mine", "--yes", "--json").stdout) == {"deleted": "mine"}
    assert "no images; make one: ghostbox image build" in ghostbox_cli("image", "list").stdout
    gone = ghostbox_cli("image", "delete", "mine", "-y")
    assert gone.returncode == 4
    assert "error: no image named 'mine'" in gone.stderr


def test_image_that_a_vm_uses_is_not_deleted(ghostbox_cli: Cli, ghostbox_dirs: Path) -> None:
    store = ImageStore(images_of(ghostbox_dirs))
    image = store.import_file(bootable(ghostbox_dirs / "mine.raw"))
    overlay = ghostbox_dirs / "state/vms/box/disk.qcow2"
    overlay.parent.mkdir(parents=True)
    store.create_overlay(image, overlay, 2 * MIB)
    done = ghostbox_cli("image", "delete", "mine", "--yes")
    assert done.returncode == 5
    assert "error: image 'mine' is the base of a VM's disk" in done.stderr


def test_imported_image_is_booted_by_firmware_and_its_base_is_never_written(ghostbox_dirs: Path) -> None:
    store = ImageStore(images_of(ghostbox_dirs))
    image = store.import_file(bootable(ghostbox_dirs / "mine.raw"))
    before = image.disk.read_bytes()
    overlay, serial = ghostbox_dirs / "overlay.qcow2", ghostbox_dirs / "serial"
    store.create_overlay(image, overlay, 2 * MIB)
    argv = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35", "-m", "64M"]
    argv += ["-drive", f"if=virtio,file={overlay},format=qcow2", "-serial", f"file:{serial}"]
    child = subprocess.Popen(argv)
    try:
        processes.wait_until(
            lambda: serial.exists() and b"booted by firmware" in serial.read_bytes(),
            timeout_s=60,
            what="text from the boot sector",
        )
    finally:
        processes.terminate(child.pid)
        child.wait()
    assert image.disk.read_bytes() == before
