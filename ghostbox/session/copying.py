# SPDX-License-Identifier: MIT
"""Copy files to and from a VM with the system's scp (``ghostbox cp``). Names are taken literally on both sides."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import GhostboxError, GuestError, Interrupted, NotFound, UsageError
from ghostbox.paths import Paths
from ghostbox.session import access, login
from ghostbox.session.record import Book, Record, names

_PATTERN = re.compile(r"[\\*?\[\]]")  # the patterns of glob(3), which scp expands in the guest
_LINES = 5
_INTERRUPTED = 130


@dataclass(frozen=True)
class Place:
    """Names a file on this host (``vm`` is None) or in a VM (``vm`` is empty where the VM's name was left out)."""

    vm: str | None
    path: str


@dataclass(frozen=True)
class Options:
    """Holds how to copy.

    ``recursive``: directories with their contents; ``preserve``: times and modes; ``quiet``: without a progress meter.
    """

    recursive: bool = False
    preserve: bool = False
    quiet: bool = False


def parse(word: str) -> Place:
    """Return the place that a word names: ``VM:PATH``, ``:PATH``, or a file on this host.

    A colon behind a slash is part of the file's name.
    """
    head, colon, path = word.partition(":")
    return Place(head, path) if colon and "/" not in head else Place(None, word)


def copy(
    words: Sequence[str], target_word: str, paths: Paths, choose: Callable[[str | None], str], options: Options
) -> None:
    """Copy files to or from one VM.

    Args:
        words: the sources.
        target_word: the target.
        paths: the paths of this installation.
        choose: returns the VM's name, given the name that was written, or None where it was left out.
        options: how to copy.

    Raises:
        UsageError: not exactly one side is a VM, or the target cannot hold the sources.
        NotFound: there is no such VM, or no such file on either side.
        NotRunning: the VM does not run.
        GuestError: the guest still boots, or the copy failed.
    """
    sources, target = [parse(word) for word in words], parse(target_word)
    name = choose(_one_vm(sources, target, paths) or None)
    if target.vm is None:
        _check_target_here(Path(target.path), several=len(sources) > 1)
    else:
        _check_sources_here(sources, recursive=options.recursive)
    book, _ = access.need_running(name, paths)
    transfer(book, sources, target, options)


def transfer(book: Book, sources: Sequence[Place], target: Place, options: Options) -> None:
    """Copy, after the caller has checked what can be checked on this host.

    Raises:
        NotFound, UsageError, GuestError, Interrupted: see `copy`; what was copied before the error stays.
    """
    record = book.record
    flags = [flag for flag, wanted in (("-r", options.recursive), ("-p", options.preserve)) if wanted]
    flags += ["-q"] if options.quiet else []
    operands = [_operand(place, record, source=True) for place in sources]
    status, said = login.scp(book, flags, [*operands, _operand(target, record, source=False)])
    if status:
        raise _failed(record, status, said)


def _one_vm(sources: Sequence[Place], target: Place, paths: Paths) -> str:
    """Return the name of the VM as it was written; an empty string if it was left out."""
    theirs = {place.vm for place in sources if place.vm is not None}
    if not theirs and target.vm is None:
        raise UsageError(
            "neither side is in a VM",
            why="a path in a VM begins with the VM's name and a colon",
            hint="ghostbox cp FILE NAME:PATH, or with one VM only: ghostbox cp FILE :PATH",
        )
    if theirs and target.vm is not None:
        raise UsageError("both sides are in a VM", hint="copy it to this machine first, then from here")
    if len(theirs) > 1 or (theirs and any(place.vm is None for place in sources)):
        raise UsageError("the sources are not all in one place", hint="copy from one place at a time")
    name = target.vm if target.vm is not None else theirs.pop()
    word = f"{name}:{target.path if target.vm is not None else sources[0].path}"
    if name and name not in names(paths) and Path(word).exists():
        raise NotFound(f"no VM named '{name}'", hint=f"a file here whose name has a colon is written ./{word}")
    return name


def _check_sources_here(sources: Sequence[Place], *, recursive: bool) -> None:
    for source in sources:
        path = Path(source.path)
        if not path.exists():
            raise NotFound(f"there is no file {path}")
        if path.is_dir() and not recursive:
            raise UsageError(f"{path} is a directory", hint="copy it with all that is in it: -r")


def _check_target_here(target: Path, *, several: bool) -> None:
    if several and not target.is_dir():
        raise UsageError(f"{target} is no directory, and there are several files to copy", hint=f"mkdir -p {target}")
    if not target.is_dir() and not target.absolute().parent.is_dir():
        raise NotFound(f"there is no directory {target.parent}", hint=f"mkdir -p {target.parent}")


def _operand(place: Place, record: Record, *, source: bool) -> str:
    """Return a place in scp's syntax.

    Nothing in the result is taken for an option, for another host or, in the guest, for a pattern.
    """
    if place.vm is None:
        return place.path if place.path.startswith("/") else f"./{place.path}"
    path = place.path
    if path.startswith("~") and path != "~" and not path.startswith("~/"):
        path = f"./{path}"
    literal = _PATTERN.sub(lambda match: "\\" + match[0], path) if source else path
    return f"{record.name}:{literal}"


def _failed(record: Record, status: int, said: str) -> GhostboxError:
    name = record.name
    lines = [line.strip().removeprefix("scp: ") for line in said.splitlines() if line.strip()]
    why = "\n".join(lines[-_LINES:]) or None
    text = "\n".join(lines)
    if status == _INTERRUPTED:
        return Interrupted("interrupted: what was copied so far is there")
    if "Connection closed" in text or "lost connection" in text or "Connection reset" in text:
        return login.failed(record, said)
    if "No such file" in text:
        return NotFound(f"VM '{name}' has no such file or directory", why=why, hint=f"ghostbox shell {name} ls -la")
    if "not a regular file" in text or "is a directory" in text:
        return UsageError("it is a directory", why=why, hint="copy it with all that is in it: -r")
    if "Permission denied" in text:
        hint = f"the guest's user is {record.user}: copy to :/tmp, then ghostbox shell {name} sudo mv …"
        return GuestError(f"VM '{name}': permission denied", why=why, hint=hint)
    hint = f"there may be too little space; on this host: df -h .; in the guest: ghostbox shell {name} df -h"
    return GuestError(f"copying to or from VM '{name}' failed", why=why, hint=hint)
