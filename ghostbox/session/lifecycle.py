# SPDX-License-Identifier: MIT
"""Another name for a VM, and a copy of it that is a VM of its own."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ghostbox import processes
from ghostbox.config import Config
from ghostbox.config.definition import opening
from ghostbox.config.rewrite import rewritten
from ghostbox.errors import GhostboxError, NotFound, Refused
from ghostbox.paths import Paths, VmPaths
from ghostbox.plan import domain_name
from ghostbox.session import cleanup, definition, observe
from ghostbox.session.planning import new_mac
from ghostbox.session.progress import Progress
from ghostbox.session.record import Book, Record, VmState, locked, now_utc
from ghostbox.units import format_bytes

_NOT_A_COPYS = ("vm.ports", "vm.autostart")
"""Keys of which two VMs cannot have the same value, or should not by accident."""


@dataclass(frozen=True)
class Cloned:
    """A VM that was copied. ``left_out`` is what its definition has not of the source's, as people write it."""

    name: str
    source: str
    left_out: dict[str, object]


def rename(name: str, new: str, paths: Paths) -> None:
    """Give a VM that is stopped another name; the guest gets it as its host name at its next start.

    Raises:
        NotFound: no such VM.
        Refused: it runs, or the name is taken.
    """
    with _stopped(name, paths, f"rename {name} {new}") as book:
        record = book.record
        assert record is not None
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
    """Make a VM that is like another one, which is stopped: a copy of its disks and its definition, a new identity.

    The copy shares nothing with its source but the image: each may be changed and deleted without the other. Where the
    file system can (btrfs, XFS), the copied disk takes no room until one of the two writes.

    Raises:
        NotFound: no such VM.
        Refused: it runs, or the name is taken.
        GhostboxError: it cannot be copied; nothing is left.
    """
    with _stopped(name, paths, f"clone {name} {new}") as book:
        record, target = book.record, paths.vm(new)
        assert record is not None
        _check_free(new, target)
        text = definition.text_of(book.files, record, config)
        own = definition.parse(book.files, text)
        left_out = {key: own.written(key) for key in _NOT_A_COPYS if own.origin(key) != "default"}
        with _undone_on_failure(target), locked(target):
            with progress.stage("copy") as stage:
                stage.say(format_bytes(_copy_disks(book.files, target)))
            definition.keep(target, rewritten(for_name(text, name, new), {}, list(left_out)))
            Book(target).save(_copied(record, new))
    return Cloned(new, name, left_out)


def _copied(record: Record, new: str) -> Record:
    """Return the record of a copy: a VM that was never started, with a disk."""
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
    """Copy the disks; keys, seed and logs are made anew. Return how much room they may take."""
    n_bytes = 0
    for disk in sorted(source.state.glob("*.qcow2")):
        draft = target.state / f"{disk.name}.new"
        processes.run(["cp", "--reflink=auto", "--sparse=always", "--", disk, draft])
        draft.replace(target.state / disk.name)
        n_bytes += disk.stat().st_blocks * 512
    if source.base.is_dir():  # of a VM that was imported; its first disk stands on it by a relative path
        processes.run(
            ["cp", "-r", "--preserve=mode", "--reflink=auto", "--sparse=always", "--", source.base, target.base]
        )
        n_bytes += sum(file.stat().st_blocks * 512 for file in source.base.iterdir())
    return n_bytes


@contextmanager
def _stopped(name: str, paths: Paths, command: str) -> Iterator[Book]:
    """A VM that is stopped, and stays so: its lock is held."""
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
    """Refuse a name that is taken. A directory with nothing but a lock that nobody holds is a trace of nothing."""
    if files.record.exists():
        raise Refused(f"there is a VM named '{name}' already", hint="choose another name")
    left = [] if not files.state.exists() else [each for each in files.state.iterdir() if each != files.lock]
    if left or not processes.is_unlocked(files.lock):
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
    """Return a definition's text with the lines that `config.definition.new_text` begins it with for another VM."""
    before, after = (opening(name) for name in (old, new))
    return after + text.removeprefix(before) if text.startswith(before) else text
