# SPDX-License-Identifier: MIT
"""Read the logs of a VM: guest console, QEMU, pager, supervisor, events; and of this machine's memservers."""

from __future__ import annotations

import enum
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from ghostbox.errors import GhostboxError, NotFound
from ghostbox.paths import Paths
from ghostbox.session import cleanup, events, observe
from ghostbox.session.events import Event
from ghostbox.session.record import Book, VmState

_FOLLOW_INTERVAL_S = 0.5
_TAIL_BYTES = 1 << 16
# ECMA-48 control sequences (colours, cursor) and single escapes are left out of a console log.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-_c]|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


class Source(enum.StrEnum):
    """Names the program whose log is meant."""

    BOOT = "boot"
    QEMU = "qemu"
    PAGER = "pager"
    SUPERVISOR = "supervisor"
    EVENTS = "events"
    MEMSERVER = "memserver"


def find(name: str, source: Source, paths: Paths) -> list[Path]:
    """Return the files of a log; a machine with several memservers has several.

    Raises:
        NotFound: no VM has this name, or nothing was logged yet.
        GhostboxError: this user may not read the log.
    """
    if source is Source.MEMSERVER:
        found = sorted((paths.state / "memservers").glob("*/*.log"))
        if not found:
            raise NotFound("no memserver of this machine has a log", hint="a donor's log is on the donor")
        return found
    book = Book(paths.vm(name))
    record = book.need(name, paths)
    file = {
        Source.BOOT: book.files.console_log,
        Source.PAGER: book.files.pager_log,
        Source.SUPERVISOR: book.files.supervisor_log,
        Source.EVENTS: book.files.events,
        Source.QEMU: cleanup.qemu_log(record, book.files),
    }[source]
    _check_readable(file, name, source)
    if not file.exists() and source is not Source.EVENTS:  # a VM to which nothing has happened has no events
        raise NotFound(f"VM '{name}' has no {source} log yet", hint=f"ghostbox up {name}")
    return [file]


def _check_readable(file: Path, name: str, source: Source) -> None:
    """Refuse a log that this user may not read: the system's libvirt writes logs for root alone, whoever owns the VM.

    Raises:
        GhostboxError: the log may not be read.
    """
    try:
        file.open().close()
    except PermissionError as err:
        raise GhostboxError(
            f"the {source} log of VM '{name}' cannot be read: {file}",
            why="libvirt wrote it for root alone",
            hint=f"sudo cat {shlex.quote(str(file))}",
        ) from err
    except OSError:
        return


def clean(text: str) -> str:
    """Return console text without control sequences."""
    return _ESCAPES.sub("", text.replace("\r\n", "\n"))


def tail(file: Path, n_lines: int) -> list[str]:
    """Return the last lines that are not blank, without control sequences; nothing if the file does not exist."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL_BYTES))
            text = clean(stream.read().decode(errors="replace"))
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-n_lines:]


def lines(file: Path, n_last: int | None) -> Iterator[str]:
    """Yield the lines of a log (the last ``n_last``, or all), without control sequences."""
    try:
        everything = clean(file.read_text(encoding="utf-8", errors="replace")).splitlines()
    except FileNotFoundError:
        return
    yield from everything if n_last is None else everything[max(0, len(everything) - n_last) :]


@dataclass(frozen=True)
class Entry:
    """Holds a line of a log; ``event`` is what the line says if it is an event's."""

    file: Path
    text: str
    event: Event | None = None


def entries(files: list[Path], n_last: int | None) -> Iterator[Entry]:
    """Yield the lines of logs (the last ``n_last`` of each, or all), in the form that programs read."""
    for file in files:
        for line in lines(file, n_last):
            yield _entry(file, line)


def follow_entries(files: list[Path], ended: Callable[[], bool]) -> Iterator[Entry]:
    """Yield the lines that are added to logs from now on, as `follow` does; all carry the first file's name."""
    rest = ""
    for text in follow(files, ended):
        *whole, rest = (rest + text).split("\n")
        yield from (_entry(files[0], line) for line in whole)


def _entry(file: Path, line: str) -> Entry:
    return Entry(file, line, events.parse(line) if file.suffix == ".jsonl" else None)


def follow(files: list[Path], ended: Callable[[], bool]) -> Iterator[str]:
    """Yield what is added to the files from now on; while nothing is added, end when ``ended`` returns True."""
    streams = {file: stream for file in files if (stream := _opened(file))}
    try:
        for stream in streams.values():
            stream.seek(0, 2)
        while True:
            streams |= {file: stream for file in files if file not in streams and (stream := _opened(file))}
            new = [text for stream in streams.values() if (text := stream.read())]
            yield from (clean(text) for text in new)
            if not new and ended():
                return
            time.sleep(_FOLLOW_INTERVAL_S)
    finally:
        for stream in streams.values():
            stream.close()


def _opened(file: Path) -> TextIO | None:
    """Open a log; return None if the file does not exist yet."""
    try:
        return file.open(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def ended(name: str, paths: Paths) -> Callable[[], bool]:
    """Return a function that tells whether the VM has ended; for `follow`."""
    book = Book(paths.vm(name))

    def gone() -> bool:
        record = book.load()
        return record is None or observe.observe(record, book.files).state is VmState.STOPPED

    return gone
