# SPDX-License-Identifier: MIT
"""Rename a VM, or clone it to a VM with an identity of its own."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ghostbox.config import Config
from ghostbox.config.definition import opening
from ghostbox.config.rewrite import rewritten
from ghostbox.errors import GhostboxError, NotFound, Refused
from ghostbox.paths import Paths, VmPaths
from ghostbox.plan.plan import domain_name
from ghostbox.session import cleanup, definition, observe
from ghostbox.session.planning import new_mac
from ghostbox.session.progress import Progress
from ghostbox.session.record import Book, Record, VmState, locked, now_utc
from ghostbox.system import locks, processes
from ghostbox.units import format_bytes

_NOT_CLONED = ("vm.ports", "vm.autostart")
"""Keys that a clone does not take over: two VMs cannot have the same ports, and autostart would surprise."""


@dataclass(frozen=True)
class Cloned:
    """Holds the result of ``clone``. ``left_out`` has the source's keys, with values, that the clone lacks."""

    name: str
    source: str
    left_out: dict[str, object]


def rename(name: str, new: str, paths: Paths) -> None:
    """Give a stopped VM another name; the guest gets it as its host name at its next start.

    Raises:
        NotFound: no VM has this name.
        Refused: the VM runs, or the new name is taken.
        GhostboxError: the state directory cannot be renamed.
    """
    with _stopped(name, paths, f"rename {name} {new}") as book:
        record = book.record
        target = paths.vm(new)
        _check_free(new, target)
        file = book.files.definition
        text = file.read_text(encoding="utf-8") if file.exists() else None
        try:
            book.files.state.rename(target.state)
        except OSError as err:
            raise GhostboxError(f"cannot rename {book.files.state}: {err.strerror}") from err
        moved = Book(target)
        moved.save(replace(record, name=new, domain=domain_name(new)))
        if text is not None:
            definition.keep(target, for_name(text, name, new))


def clone(name: str, new: str, config: Config, paths: Paths, progress: Progress) -> Cloned:
    """Make a copy of a stopped VM: its disks and its definition, with a new identity.

    The copy shares nothing with its source but the image: each can be changed and deleted without the other. On a file
    system that can share blocks (btrfs, XFS), the copied disk takes no space until one of the two writes.

    Raises:
        NotFound: no VM has this name.
        Refused: the VM runs, or the new name is taken.
        GhostboxError: the VM cannot be copied; nothing of the copy is left.
    """
    with _stopped(name, paths, f"clone {name} {new}") as book:
        record, target = book.record, paths.vm(new)
        _check_free(new, target)
        text = definition.text_of(book.files, record, config)
        own = definition.parse(book.files, text)
        left_out = {key: own.written(key) for key in _NOT_CLONED if own.origin(key) != "default"}
        with _undone_on_failure(target), locked(target):
            with progress.stage("copy") as stage:
                stage.say(format_bytes(_copy_disks(book.files, target)))
            definition.keep(target, rewritten(for_name(text, name, new), {}, list(left_out)))
            Book(target).save(_copied(record, new))
    return Cloned(new, name, left_out)


def _copied(record: Record, new: str) -> Record:
    """Return the record of a clone: a VM that has a disk and was never started."""
    return replace(
        record,
        name=new,
        domain=domain_name(new),
        uuid=str(uuid.uuid4()),
        mac=new_mac(),
        ssh_port=0,
        created_at=now_utc(),
        started_at=None,
        forwards=(),
        made=frozenset(),
        leases=(),
        backup=None,
        paused=False,
        asked_to=(),
        cloned=True,
        drained=(),
        address=None,
    )


def _copy_disks(source: VmPaths, target: VmPaths) -> int:
    """Copy the disks, and an import's base; return the bytes they may take. Keys, seed and logs are not copied."""
    n_bytes = 0
    for disk in sorted(source.state.glob("*.qcow2")):
        draft = target.state / f"{disk.name}.new"
        processes.run(["cp", "--reflink=auto", "--sparse=always", "--", disk, draft])
        draft.replace(target.state / disk.name)
        n_bytes += disk.stat().st_blocks * 512
    if source.base.is_dir():  # the base of an imported VM, which its first disk names by a relative path
        processes.run(
            ["cp", "-r", "--preserve=mode", "--reflink=auto", "--sparse=always", "--", source.base, target.base]
        )
        n_bytes += sum(file.stat().st_blocks * 512 for file in source.base.iterdir())
    return n_bytes


@contextmanager
def _stopped(name: str, paths: Paths, command: str) -> Iterator[Book]:
    """Hold the lock of a stopped VM, so that it stays stopped, and yield its record."""
    Book(paths.vm(name)).need(name, paths)
    with locked(paths.vm(name)):
        book = Book(paths.vm(name))
        state = observe.heal(book)
        if state is VmState.ABSENT:
            raise NotFound(f"no VM named '{name}'")
        if state is not VmState.STOPPED:
            raise Refused(
                f"VM '{name}' is {state}",
                why="its disk is being written, and its domain, sockets and leases carry its name",
                hint=f"ghostbox down {name}, then: ghostbox {command}",
            )
        yield book


def _check_free(name: str, files: VmPaths) -> None:
    """Refuse a name that is taken. A directory in which only the file of a free lock is left does not count."""
    if files.record.exists():
        raise Refused(f"there is a VM named '{name}' already", hint="choose another name")
    left = [] if not files.state.exists() else [each for each in files.state.iterdir() if each != files.lock]
    if left or not locks.is_free(files.lock):
        raise Refused(
            f"{files.state} is in the way", why="it belongs to no VM that is known", hint="choose another name"
        )
    shutil.rmtree(files.state, ignore_errors=True)


@contextmanager
def _undone_on_failure(files: VmPaths) -> Iterator[None]:
    try:
        yield
    except BaseException:
        cleanup.remove_state(files)
        raise


def for_name(text: str, old: str, new: str) -> str:
    """Return a definition's text with its first lines, which name the VM (`config.definition.opening`), changed."""
    before, after = (opening(name) for name in (old, new))
    return after + text.removeprefix(before) if text.startswith(before) else text
