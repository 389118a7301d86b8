# SPDX-License-Identifier: MIT
"""Make snapshots of a stopped VM: all its disks at one moment, with the definition it had.

The disks' part is inside their qcow2 files (an internal snapshot, tagged ``gb-NAME``), so it takes no space until the
guest overwrites data. The rest is a directory in the VM's state directory, which is written last: a snapshot exists
once its directory exists. While disks are being restored, each has one more internal snapshot, tagged ``gb-``, of its
content before, for the case that a disk fails.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ghostbox.config.kinds import Text
from ghostbox.errors import GhostboxError, ImageError, NotFound, Refused, UsageError, hint_for
from ghostbox.images import qemu_img
from ghostbox.paths import Paths, VmPaths, make_directory
from ghostbox.session import definition, observe
from ghostbox.session.record import Book, Record, VmState, locked, now_utc
from ghostbox.system import state_files

_NAME = Text("a name (letters, digits, '.', '_', '-', at most 40)", r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,39}")
_DESCRIPTION = "snapshot.json"
_DEFINITION = "definition.yaml"
_UNDO = "gb-"


@dataclass(frozen=True)
class Snapshot:
    """Describes a snapshot: when it was made, its disks (the names of their files) and their sizes then, in bytes."""

    name: str
    created_at: str
    disks: dict[str, int]


def check_name(text: str) -> str:
    """Return a snapshot's name as it was given.

    Raises:
        UsageError: the text cannot be the name of a snapshot.
    """
    try:
        return str(_NAME.parse(text))
    except UsageError as err:
        raise UsageError(f"'{text}' cannot be the name of a snapshot", why=err.message) from err


def create(vm: str, name: str, paths: Paths) -> Snapshot:
    """Make a snapshot.

    Raises:
        NotFound: no VM has this name.
        Refused: the VM runs, or has a snapshot of that name.
        ImageError: a disk cannot take the snapshot; nothing has changed.
    """
    check_name(name)
    with stopped(vm, paths, "a snapshot is made of disks that no program writes to") as book:
        record = book.record
        if _directory(book.files, name).exists():
            raise Refused(
                f"VM '{vm}' has a snapshot '{name}' already",
                hint=f"choose another name; `ghostbox snapshot list {vm}` shows those it has",
            )
        disks = disk_files(book.files)
        if not disks:
            raise Refused(f"VM '{vm}' has no disk yet", hint=f"ghostbox up {vm}")
        _tag_all(disks, f"gb-{name}")
        made = Snapshot(name, now_utc(), {disk.name: qemu_img.info(disk).virtual_bytes for disk in disks})
        try:
            _describe(book.files, made, record)
        except BaseException:
            _untag_all(disks, f"gb-{name}")
            raise
        return made


def find_all(vm: str, paths: Paths) -> list[Snapshot]:
    """Return a VM's snapshots, the oldest first.

    Raises:
        NotFound: no VM has this name.
    """
    book = Book(paths.vm(vm))
    book.need(vm, paths)
    found = [_read(entry) for entry in _root(book.files).glob(f"*/{_DESCRIPTION}")]
    return sorted(found, key=lambda each: (each.created_at, each.name))


def restore(vm: str, name: str, paths: Paths) -> Snapshot:
    """Restore all disks, and the definition, from a snapshot. The disks' present content is lost.

    Raises:
        NotFound: no such VM or snapshot.
        Refused: the VM runs.
        ImageError: a disk cannot be restored; all disks are as they were before.
        GhostboxError: the snapshot's record cannot be read, or a newer version made it; nothing has changed.
    """
    with stopped(vm, paths, "its disks are put back") as book:
        found = _need(book.files, vm, name)
        disks = [book.files.state / file for file in found.disks]
        for disk in disks:
            if not disk.exists() or f"gb-{name}" not in qemu_img.snapshots(disk):
                raise ImageError(
                    f"snapshot '{name}' of VM '{vm}' is damaged: {disk} does not have it",
                    hint="nothing was changed; the other snapshots may be whole",
                )
        then = _record_then(book.files, name)
        _put_back(disks, f"gb-{name}")
        _restore_definition(book, found, then)
        return found


def delete(vm: str, name: str, paths: Paths) -> None:
    """Remove a snapshot; the disks' content stays.

    Raises:
        NotFound: no such VM or snapshot.
        Refused: the VM runs.
        ImageError: a disk cannot be changed.
    """
    with stopped(vm, paths, "a snapshot is inside its disks") as book:
        found = _need(book.files, vm, name)
        _untag_all([book.files.state / file for file in found.disks], f"gb-{name}")
        shutil.rmtree(_directory(book.files, name))


@contextmanager
def stopped(vm: str, paths: Paths, why: str) -> Iterator[Book]:
    """Hold the lock of a VM that does not run, and yield its record.

    Raises:
        NotFound: no VM has this name.
        Refused: the VM runs; ``why`` says what a running VM would disturb.
    """
    Book(paths.vm(vm)).need(vm, paths)
    with locked(paths.vm(vm)):
        book = Book(paths.vm(vm))
        state = observe.heal(book)
        book.need(vm, paths)
        if state is not VmState.STOPPED:
            raise Refused(f"VM '{vm}' is {state}", why=why, hint=f"ghostbox down {vm}, then again")
        yield book


def disk_files(files: VmPaths) -> list[Path]:
    """Return the VM's disks, the first disk first, also those that its definition does not name any more."""
    more = sorted(files.state.glob("disk[0-9]*.qcow2"), key=lambda disk: (len(disk.name), disk.name))
    return [disk for disk in (files.disk, *more) if disk.is_file()]


def _root(files: VmPaths) -> Path:
    return files.state / "snapshots"


def _directory(files: VmPaths, name: str) -> Path:
    return _root(files) / check_name(name)


def _need(files: VmPaths, vm: str, name: str) -> Snapshot:
    try:
        return _read(_directory(files, name) / _DESCRIPTION)
    except FileNotFoundError as err:
        have = ", ".join(sorted(entry.parent.name for entry in _root(files).glob(f"*/{_DESCRIPTION}")))
        hint = f"there are: {have}" if have else f"make one: ghostbox snapshot create {vm} NAME"
        raise NotFound(f"VM '{vm}' has no snapshot '{name}'", hint=hint) from err


def _read(file: Path) -> Snapshot:
    try:
        data = json.loads(file.read_text())
        return Snapshot(str(data["name"]), str(data["created_at"]), {str(k): int(v) for k, v in data["disks"].items()})
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise GhostboxError(f"cannot read {file}: {err}", hint="the disks still have the snapshot (qemu-img)") from err


def _describe(files: VmPaths, made: Snapshot, record: Record) -> None:
    draft = _root(files) / ".new"
    try:
        shutil.rmtree(draft, ignore_errors=True)
        make_directory(draft)
        if files.definition.exists():
            shutil.copyfile(files.definition, draft / _DEFINITION)
        state_files.write(draft / _DESCRIPTION, {**asdict(made), "vm": record.to_json()})
        state_files.publish(draft, _directory(files, made.name))
    except OSError as err:
        raise GhostboxError(f"cannot write {_directory(files, made.name)}: {err.strerror}", hint=hint_for(err)) from err


def _record_then(files: VmPaths, name: str) -> Record:
    """Return the record that the VM had when the snapshot was made."""
    file = _directory(files, name) / _DESCRIPTION
    try:
        return Record.from_document(json.loads(file.read_text())["vm"], file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as err:
        raise GhostboxError(f"cannot read {file}: {err}", hint="the disks still have the snapshot (qemu-img)") from err


def _restore_definition(book: Book, found: Snapshot, then: Record) -> None:
    """Restore the definition, and those fields of the record that describe disks, shares and network."""
    record, kept = book.record, _directory(book.files, found.name) / _DEFINITION
    if kept.exists():
        definition.keep(book.files, kept.read_text(encoding="utf-8"))
    book.save(replace(record, disk_bytes=then.disk_bytes, disks=then.disks, shares=then.shares, network=then.network))


def _tag_all(disks: Sequence[Path], tag: str) -> None:
    """Make a snapshot in every disk, or in none. First delete a snapshot that a killed command left."""
    done: list[Path] = []
    try:
        for disk in disks:
            if tag in qemu_img.snapshots(disk):
                qemu_img.delete_snapshot(disk, tag)
            done.append(disk)
            qemu_img.create_snapshot(disk, tag)
    except BaseException:
        _untag_all(done, tag)
        raise


def _untag_all(disks: Sequence[Path], tag: str) -> None:
    for disk in disks:
        if disk.exists() and tag in qemu_img.snapshots(disk):
            qemu_img.delete_snapshot(disk, tag)


def _put_back(disks: Sequence[Path], tag: str) -> None:
    """Restore all disks from their snapshots, or leave all as they are."""
    _tag_all(disks, _UNDO)
    try:
        for disk in disks:
            qemu_img.apply_snapshot(disk, tag)
    except BaseException:
        for disk in disks:
            qemu_img.apply_snapshot(disk, _UNDO)
        raise
    finally:
        _untag_all(disks, _UNDO)
