# SPDX-License-Identifier: MIT
"""Export a VM as one file, and import it: a tar archive of its definition, its disks, and the kernel that it boots.

    ghostbox-vm.json      the first member: the format, the kind of image, size and SHA-256 of every other member
    definition.yaml       the definition
    vmlinuz, initrd.img   of an image that is booted directly
    disk.qcow2, …         compressed and without a base image; snapshots are not exported

An import does not trust the file. If a member is not in the list, has another size or checksum, or is missing, or if a
disk stands on another file, the import is refused and leaves nothing. The keys of the definition that belong to the
other host (`_HOSTS_OWN`) are left out. Keys, addresses and the UUID are not in the file: the VM gets new ones.

An imported VM stands on a base of its own, in its state directory (``base/``), which is deleted with the VM.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ghostbox.config import Config, definition
from ghostbox.config.kinds import VM_NAME
from ghostbox.config.rewrite import rewritten
from ghostbox.errors import GhostboxError, ImageError, NotFound, Refused, UsageError, hint_for
from ghostbox.images import Image, ImageStore, imports, qemu_img
from ghostbox.images.model import image_from_json
from ghostbox.paths import Paths, VmPaths, make_directory
from ghostbox.plan.plan import domain_name
from ghostbox.session import definition as definitions
from ghostbox.session import lifecycle, planning, snapshots
from ghostbox.session.progress import Progress, Stage
from ghostbox.session.record import Book, Record, VmState, locked, now_utc
from ghostbox.system import locks, ports, state_files
from ghostbox.units import format_bytes

_MANIFEST = "ghostbox-vm.json"
_DEFINITION = "definition.yaml"
_FORMAT = 1
_MANIFEST_BYTES = 1 << 20
_PIECE_BYTES = 1 << 20
_IMAGE = "image.json"
_RANDOM = r"[a-z0-9_]{8}"  # what tempfile.mkdtemp() puts behind a prefix

_HOSTS_OWN = (
    "vm.ssh_key", "vm.cloud_init", "vm.ports", "vm.shares", "vm.network", "vm.host_access", "vm.autostart",
    "pool.donors", "pool.insecure", "pool.backup", "libvirt.uri",
)  # fmt: skip
"""Keys whose values name things of the host that a VM came from, or open this one to it."""


@dataclass(frozen=True)
class Exported:
    """Describes the file that was written, and the bytes that it takes."""

    name: str
    file: Path
    size_bytes: int


@dataclass(frozen=True)
class Imported:
    """Describes the VM that was made. ``left_out`` are the definition's keys that belonged to the other host."""

    name: str
    disks: dict[str, int]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class _Manifest:
    """Holds what the file says of itself: size and SHA-256 of each member, and the ``image`` under the VM's disk."""

    vm: str
    record: Mapping[str, Any]
    image: Mapping[str, Any]
    members: Mapping[str, tuple[int, str]]


def export(vm: str, file: Path, config: Config, paths: Paths, progress: Progress) -> Exported:
    """Write a stopped VM into ``file``, which must not exist yet.

    Raises:
        NotFound: no VM has this name.
        Refused: the VM runs, ``file`` exists, or there is too little space.
        ImageError: a disk cannot be read.
        GhostboxError: ``file`` cannot be written.
    """
    if file.exists():
        raise Refused(f"{file} is there already", hint="choose another file, or remove it first")
    with snapshots.stopped(vm, paths, "its disks are copied") as book, _draft_beside(file) as draft:
        record = book.record
        disks = snapshots.disk_files(book.files)
        image = ImageStore(paths.images).under(book.files.disk)
        if image is None:
            raise Refused(f"VM '{vm}' has no disk yet", hint=f"ghostbox up {vm}")
        _check_space(file.parent, 2 * sum(_allocated(each) for each in (image.disk, *disks)), "export")
        (draft / _DEFINITION).write_text(definitions.text_of(book.files, record, config), encoding="utf-8")
        for source in (image.kernel, image.initrd):
            if source is not None:
                shutil.copyfile(source, draft / source.name)
        for disk in disks:
            with progress.stage(disk.stem) as stage, _growth_shown(draft / disk.name, stage):
                qemu_img.flatten(disk, draft / disk.name)
        with progress.stage("file") as stage:
            size_bytes = _write(draft, file, record, image)
            stage.say(f"{file}, {format_bytes(size_bytes)}")
    return Exported(vm, file, size_bytes)


def _write(draft: Path, file: Path, record: Record, image: Image) -> int:
    """Put the members into one file; the file gets its name when it is complete."""
    names = [_DEFINITION, *(each.name for each in (image.kernel, image.initrd) if each is not None)]
    names += sorted(entry.name for entry in draft.iterdir() if entry.name not in names)
    members = {name: (_size(draft / name), _digest(draft / name)) for name in names}
    manifest = {"format": _FORMAT, "vm": record.name, "created_at": now_utc(), "record": _portable(record),
                "image": image.to_json(), "members": members}  # fmt: skip
    text = (json.dumps(manifest, indent=2) + "\n").encode()
    part = draft / "part"
    with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(_entry(_MANIFEST, len(text)), io.BytesIO(text))
        for name in names:
            with (draft / name).open("rb") as stream:
                archive.addfile(_entry(name, members[name][0]), stream)
            (draft / name).unlink()
    state_files.publish(part, file, mode=0o600)
    return _size(file)


def _entry(name: str, n_bytes: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = n_bytes, 0o600
    return entry


def _portable(record: Record) -> dict[str, Any]:
    return {"image": record.image, "user": record.user, "disk_bytes": record.disk_bytes, "disks": record.disks}


def import_(file: Path, name: str | None, paths: Paths, progress: Progress) -> Imported:
    """Make a VM from a file that `export` wrote, under the name in the file or another one.

    Raises:
        NotFound: there is no such file.
        ImageError: the file is no export, or is damaged or cut off; nothing of it stays.
        Refused: a VM of that name exists, or there is too little space.
        GhostboxError: the VM's files cannot be written; nothing of them stays.
    """
    with _opened(file) as archive:
        manifest = _read_manifest(file, archive)
        vm = manifest.vm if name is None else name
        with locked(paths.vm(vm)):
            book = Book(paths.vm(vm))
            if book.load() is not None:
                raise Refused(f"there is a VM named '{vm}' already", hint="give the new one another: --name NAME")
            if snapshots.disk_files(book.files):
                raise Refused(f"{book.files.state} has disks of a VM that has no record", hint="see what they are")
            try:
                return _take_in(file, archive, manifest, vm, book, paths, progress)
            except BaseException as err:
                shutil.rmtree(book.files.state, ignore_errors=True)
                if isinstance(err, OSError):
                    raise GhostboxError(f"cannot make VM '{vm}' of {file}: {err.strerror}", hint=hint_for(err)) from err
                raise


def _take_in(
    file: Path,
    archive: tarfile.TarFile,
    manifest: _Manifest,
    vm: str,
    book: Book,
    paths: Paths,
    progress: Progress,
) -> Imported:
    files = book.files
    make_directory(files.state)
    _check_space(files.state, sum(size for size, _ in manifest.members.values()), "import")
    base = files.base
    shutil.rmtree(base, ignore_errors=True)
    make_directory(base)
    with progress.stage("file") as stage:
        for member, (size_bytes, digest) in manifest.members.items():
            stage.say(f"{member}, {format_bytes(size_bytes)}")
            _extract(file, archive, member, size_bytes, digest, base / member)
        if archive.next() is not None:
            raise _damaged(file, f"it has more members than {_MANIFEST} lists")
        stage.say("whole, all checksums are right")
    with progress.stage("disks") as stage:
        sizes = _make_disks(file, base, manifest, files)
        stage.say(", ".join(f"{disk} {format_bytes(size)}" for disk, size in sizes.items()))
    text, left_out = _definition(base, files, manifest.vm, vm)
    definitions.keep(files, text)
    book.save(_record(vm, definitions.parse(files, text), manifest, sizes))
    return Imported(vm, sizes, left_out)


def _make_disks(file: Path, base: Path, manifest: _Manifest, files: VmPaths) -> dict[str, int]:
    """Check every disk and move it to its place; the first disk becomes the base of an overlay."""
    disks = sorted(
        (base / member for member in manifest.members if member.endswith(".qcow2")), key=lambda disk: len(disk.name)
    )
    for disk in disks:
        try:
            imports.check_whole(disk)
        except ImageError as err:
            raise _damaged(file, err.message) from err
        disk.chmod(0o644)
    sizes = {disk.stem: qemu_img.info(disk).virtual_bytes for disk in disks}
    _write_image(base, manifest)
    for disk in disks[1:]:
        disk.rename(files.state / disk.name)
    # The base's path is relative, so that the VM's directory can be renamed.
    qemu_img.create_overlay(f"{files.base.name}/disk.qcow2", files.disk, sizes["disk"])
    return sizes


def _write_image(base: Path, manifest: _Manifest) -> None:
    """Describe the base in the format of the image store."""
    kernel, initrd = (base / Path(str(manifest.image[key])).name if manifest.image.get(key) else None
                      for key in ("kernel", "initrd"))  # fmt: skip
    for part in (kernel, initrd):
        if part is not None:
            part.chmod(0o644)
    image = Image(
        name=str(manifest.image["name"]),
        disk=base / "disk.qcow2",
        kernel=kernel,
        initrd=initrd,
        kernel_args=str(manifest.image["kernel_args"]),
        virtual_bytes=qemu_img.info(base / "disk.qcow2").virtual_bytes,
        recipe_hash=str(manifest.image["recipe_hash"]),
        created_at=str(manifest.image["created_at"]),
        kind="imported",
    )
    beside = {"disk": "disk.qcow2", "kernel": kernel and kernel.name, "initrd": initrd and initrd.name}
    state_files.write(base / _IMAGE, image.to_json() | beside, mode=0o644)


def _definition(base: Path, files: VmPaths, old: str, vm: str) -> tuple[str, tuple[str, ...]]:
    """Return the definition's text without what belongs to the other host, and the keys that were left out."""
    text = (base / _DEFINITION).read_text(encoding="utf-8")
    (base / _DEFINITION).unlink()
    found = definition.parse(text, base / _DEFINITION, vm, files.state)
    left_out = tuple(name for name in _HOSTS_OWN if found.origin(name) != "default")
    return rewritten(lifecycle.for_name(text, old, vm), {}, left_out), left_out


def _record(vm: str, config: Config, manifest: _Manifest, sizes: Mapping[str, int]) -> Record:
    """Return the record of a stopped VM with a new identity: UUID, MAC address and SSH port."""
    more = tuple(size for disk, size in sizes.items() if disk != "disk")
    return Record(
        name=vm,
        state=VmState.STOPPED,
        uuid=str(uuid.uuid4()),
        mac=planning.new_mac(),
        ssh_port=ports.choose(),
        created_at=now_utc(),
        domain=domain_name(vm),
        libvirt_uri=config.libvirt.uri,
        image=str(manifest.record["image"]),
        user=config.vm.user,
        virt="tcg",
        cpus=config.vm.cpus,
        memory_bytes=config.vm.memory_bytes,
        remote_memory_bytes=config.vm.remote_memory_bytes,
        cache_bytes=config.pool.cache_bytes,
        disk_bytes=sizes["disk"],
        new=False,
        cloned=True,
        disks=more[: len(config.vm.disks)],
    )


@contextmanager
def _opened(file: Path) -> Iterator[tarfile.TarFile]:
    """Open the file for one pass from its start to its end."""
    try:
        with tarfile.open(file, "r|") as archive:
            yield archive
    except FileNotFoundError as err:
        raise NotFound(f"no file {file}") from err
    except tarfile.TarError as err:
        raise _damaged(file, str(err)) from err
    except (IsADirectoryError, PermissionError) as err:
        raise ImageError(f"cannot read {file}: {err.strerror}") from err


def _damaged(file: Path, why: str) -> ImageError:
    return ImageError(f"{file} is not a whole export of a VM", why=why, hint="copy it again, or export the VM again")


def _read_manifest(file: Path, archive: tarfile.TarFile) -> _Manifest:
    first = archive.next()
    stream = archive.extractfile(first) if first is not None and first.isreg() else None
    if first is None or stream is None or first.name != _MANIFEST or first.size > _MANIFEST_BYTES:
        raise _damaged(file, f"it does not begin with {_MANIFEST}")
    try:
        data = json.loads(stream.read())
        if data["format"] != _FORMAT:
            raise ImageError(f"{file} is of a format that this version does not know: {data['format']}")
        members = {str(name): (int(size), str(digest)) for name, (size, digest) in data["members"].items()}
        image_from_json(data["image"])
        manifest = _Manifest(str(VM_NAME.parse(data["vm"])), dict(data["record"]), dict(data["image"]), members)
        wanted = {_DEFINITION, "disk.qcow2", *(_name_of(data["image"].get(key)) for key in ("kernel", "initrd"))} - {""}
    except (ValueError, KeyError, TypeError, AttributeError, UsageError) as err:
        raise _damaged(file, f"{_MANIFEST}: {err!r}") from err
    more = {f"disk{number}.qcow2" for number in range(2, 100)}
    if not wanted <= members.keys() or not members.keys() - wanted <= more:
        raise _damaged(file, f"{_MANIFEST} names other members than an export has: {', '.join(members)}")
    return manifest


def _name_of(path: object) -> str:
    name = "" if path is None else Path(str(path)).name
    if name in (_MANIFEST, _IMAGE, _DEFINITION) or name.endswith(".qcow2"):
        raise ValueError(f"{name} is no kernel")
    return name


def _extract(
    file: Path, archive: tarfile.TarFile, name: str, size_bytes: int, digest: str, target: Path
) -> None:  # fmt: skip
    entry = archive.next()
    if entry is None:
        raise _damaged(file, f"it is cut off before {name}")
    if entry.name != name or not entry.isreg() or entry.size != size_bytes:
        raise _damaged(file, f"where {name} should be is {entry.name}")
    stream = archive.extractfile(entry)
    assert stream is not None
    with target.open("xb") as out:
        if _copy(stream, out) != digest:
            raise _damaged(file, f"{name} has another SHA-256 than {_MANIFEST} says")


def _copy(source: IO[bytes], target: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while piece := source.read(_PIECE_BYTES):
        digest.update(piece)
        target.write(piece)
    return digest.hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def _check_space(directory: Path, needed_bytes: int, what: str) -> None:
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise Refused(
            f"too little space in {directory}: {format_bytes(free_bytes)} are free",
            why=f"the {what} may need {format_bytes(needed_bytes)}",
            hint="free some, or give a file on another disk" if what == "export" else "free some",
        )


@contextmanager
def _draft_beside(file: Path) -> Iterator[Path]:
    """Make a directory for a draft, locked as long as this command lives; remove what killed exports left of others."""
    place, prefix = file.absolute().parent, f".{file.name[:40]}-"
    try:
        _remove_leftovers(place, prefix)
        draft, lock = _new_draft(place, prefix)
    except OSError as err:
        raise Refused(f"cannot write into {place}: {err.strerror}") from err
    try:
        yield draft
    except OSError as err:
        raise GhostboxError(f"cannot write {file}: {err.strerror}", hint=hint_for(err)) from err
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        os.close(lock)


def _new_draft(place: Path, prefix: str) -> tuple[Path, int]:
    while True:
        draft = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
        with suppress(locks.Held, FileNotFoundError):  # another export saw it unlocked, and removes it
            return draft, locks.take_directory(draft)


def _remove_leftovers(place: Path, prefix: str) -> None:
    for entry in place.iterdir():
        if re.fullmatch(re.escape(prefix) + _RANDOM, entry.name) and entry.lstat().st_uid == os.geteuid():
            with suppress(locks.Held, OSError):
                lock = locks.take_directory(entry)
                shutil.rmtree(entry, ignore_errors=True)
                os.close(lock)


@contextmanager
def _growth_shown(file: Path, stage: Stage) -> Iterator[None]:
    """Show each second how much of a file is written."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1.0):
            if file.exists():
                stage.say(f"{format_bytes(_allocated(file))} written")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    stage.say(f"{format_bytes(_size(file))}, compressed")
