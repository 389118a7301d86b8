# SPDX-License-Identifier: MIT
"""Change a VM's definition (``set``, ``edit``): the new definition is checked as a whole, then taken or refused."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ghostbox.config import Config
from ghostbox.config import definition as format
from ghostbox.errors import NotFound, NotRunning, ProgramError, Refused
from ghostbox.paths import Paths
from ghostbox.session import definition, live, observe, takeover
from ghostbox.session.definition import Defined
from ghostbox.session.live import Applied
from ghostbox.session.progress import Progress
from ghostbox.session.record import Book, VmState, locked
from ghostbox.system import processes

_EDITORS = ("editor", "nano", "vi")


@dataclass(frozen=True)
class Changed:
    """Holds the keys of a definition that have another value now, and from when on each value applies."""

    name: str
    state: VmState
    changes: tuple[Applied, ...]


@dataclass(frozen=True)
class Draft:
    """Holds a copy of a definition for the editor, and the text of the definition when the copy was made."""

    name: str
    file: Path
    original: str


def change(config: Config, removed: Collection[str], paths: Paths, progress: Progress) -> Changed:
    """Change the definition of the VM ``config.vm.name``: take the command line's values, drop the keys ``removed``.

    A VM that runs applies at once what it can.

    Raises:
        NotFound: no VM has this name.
        ConfigError, UsageError: a key or a value is wrong, or the values do not fit together.
        Refused: this VM cannot take the change; nothing has changed.
    """
    name = config.vm.name
    Book(paths.vm(name)).need(name, paths)
    with locked(paths.vm(name)):
        book, state = _present(name, paths)
        before = definition.text_of(book.files, book.record, config)
        return _taken(book, paths, state, before, definition.settle(book, config, removed), progress)


def draft(name: str, config: Config, paths: Paths) -> Draft:
    """Make a copy of a VM's definition to edit, in the VM's state directory.

    Raises:
        NotFound: no VM has this name.
    """
    book = Book(paths.vm(name))
    text = definition.text_of(book.files, book.need(name, paths), config)
    handle, file = tempfile.mkstemp(prefix="definition-", suffix=".yaml", dir=book.files.state)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    return Draft(name, Path(file), text)


def run_editor(file: Path) -> None:
    """Let the user edit a file with the editor of their choice.

    Raises:
        ProgramError: no editor is installed, or the editor fails.
    """
    chosen = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    argv = shlex.split(chosen) if chosen else [each for each in _EDITORS if shutil.which(each)][:1]
    if not argv:
        raise ProgramError("no editor is installed", hint="set VISUAL or EDITOR to one")
    status = processes.attach([*argv, file])
    if status != 0:
        raise ProgramError(f"the editor {argv[0]} failed with status {status}", hint="nothing was changed")


def take(edited: Draft, config: Config, paths: Paths, progress: Progress) -> Changed:
    """Take an edited copy as the definition, if all of it is right; a VM that runs applies at once what it can.

    Raises:
        ConfigError, UsageError: the copy has an error; the message names the copy and the line.
        Refused: this VM cannot take the change, or the definition has changed since the copy was made; nothing changes.
        NotFound: the VM is gone, or the copy cannot be read.
    """
    try:
        text = edited.file.read_text(encoding="utf-8")
    except OSError as err:
        raise NotFound(f"cannot read {edited.file}: {err.strerror}") from err
    wanted = format.parse(text, edited.file, edited.name, paths.vm(edited.name).state)
    Book(paths.vm(edited.name)).need(edited.name, paths)
    with locked(paths.vm(edited.name)):
        book, state = _present(edited.name, paths)
        before = definition.text_of(book.files, book.record, config)
        if before != edited.original:
            raise Refused(f"another command changed the definition of VM '{edited.name}' meanwhile")
        found = definition.compare(book.record, definition.parse(book.files, before), wanted, text)
        return _taken(book, paths, state, before, found, progress)


def _present(name: str, paths: Paths) -> tuple[Book, VmState]:
    """Return a VM whose definition can change: it is stopped, or it runs and has its pager. Needs the lock."""
    book = Book(paths.vm(name))
    state = observe.heal(book)
    if state is VmState.BROKEN:
        state = takeover.heal_pager(book, paths)
    if state is VmState.BROKEN:
        raise NotRunning(f"VM '{name}' is broken: its pager is gone", hint=f"ghostbox recover {name}")
    book.need(name, paths)
    return book, state


def _taken(book: Book, paths: Paths, state: VmState, before: str, defined: Defined, progress: Progress) -> Changed:
    name = book.files.state.name
    if defined.text == before and book.files.definition.exists():
        return Changed(name, state, ())
    return Changed(name, state, live.apply(book, paths, state, defined, progress))
