# SPDX-License-Identifier: MIT
"""Replace files as a whole, so that no file is ever half written; most are JSON that commands keep."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from ghostbox.errors import GhostboxError, hint_for
from ghostbox.paths import make_directory
from ghostbox.system import documents, forms, locks

_log = logging.getLogger(__name__)

P = TypeVar("P", bound=documents.Part)
_DRAFT = ".new"


def write(path: Path, document: Any, *, mode: int = 0o600) -> None:
    """Replace a file by JSON, as `replace` does.

    Raises:
        OSError: the file cannot be written; its former content stays.
    """
    replace(path, json.dumps(document, indent=2).encode(), mode=mode)


def replace(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace a file at once: after a crash it has the old or the new content (rename(2)), on disk (fsync(2)).

    Several processes and threads may replace one file at a time: each writes a draft of its own, ``.NAME.HEX.new``
    beside the file, and holds the draft's lock meanwhile; the last rename counts. A draft whose writer was killed is
    not locked any more, and the next writer of the file removes it.

    Args:
        path: the file; it need not exist.
        content: the whole new content.
        mode: the file's permissions, whatever the umask is.

    Raises:
        OSError: the file cannot be written; its former content stays.
    """
    _remove_leftovers(path)
    descriptor, draft = _new_draft(path)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            publish(draft, path, mode=mode)
    except BaseException:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def _new_draft(path: Path) -> tuple[int, Path]:
    """Make an empty draft; return the descriptor that holds its lock, and its path."""
    while True:
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}{_DRAFT}")
        try:
            return locks.take(draft), draft
        except locks.Held:  # another writer saw the draft before it was locked, and is about to remove it
            continue


def _remove_leftovers(path: Path) -> None:
    leftover = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}{re.escape(_DRAFT)}")
    for entry in path.parent.iterdir():
        if leftover.fullmatch(entry.name) and locks.remove_unheld(entry):
            _log.debug("removed %s, which a killed command left", entry)


def publish(draft: Path, path: Path, *, mode: int | None = None) -> None:
    """Write a finished draft to disk and give it its final name; ``mode`` are its permissions, None leaves them.

    Raises:
        OSError: that failed; the draft stays.
    """
    descriptor = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if mode is not None:
            os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@dataclass(frozen=True)
class ListFile(Generic[P]):
    """Is a document with one list, whose entries commands change one at a time; see `documents` for its versions.

    ``key`` is the list's name in the file, ``form`` the list's type; ``mend`` is the hint of an error when the file
    makes no sense.
    """

    path: Path
    key: str
    form: TypeAdapter[tuple[P, ...]]
    mend: str
    version: int = 1

    def load(self) -> tuple[P, ...]:
        """Return the list; it is empty if the file does not exist.

        Raises:
            GhostboxError: the file cannot be read or makes no sense, or a newer version wrote it.
        """
        return self._read()[0]

    def _read(self) -> tuple[tuple[P, ...], dict[str, Any]]:
        """Return the list, and the whole document."""
        try:
            text = self.path.read_text(encoding="utf-8")
            document = documents.check(json.loads(text), self.path, self.version)
            return forms.read(self.form, document[self.key]), document
        except FileNotFoundError:
            return (), {}
        except (OSError, ValueError, KeyError, TypeError) as err:
            raise GhostboxError(f"cannot read {self.path}: {err}", hint=self.mend) from err

    def change(self, changed: Callable[[Sequence[P]], Sequence[P]]) -> None:
        """Replace the list by the result of ``changed``. Changes of other commands meanwhile are kept.

        Raises:
            GhostboxError: the file cannot be read, makes no sense, or cannot be written; or a newer version wrote it.
        """
        try:
            make_directory(self.path.parent)
            with locks.held(self.path.with_suffix(".lock"), wait=True):
                found, document = self._read()
                new = documents.plain(list(changed(found)))
                write(self.path, {**document, documents.VERSION: self.version, self.key: new})
        except OSError as err:
            raise GhostboxError(
                f"cannot write {self.path}: {err.strerror}", hint=hint_for(err, "see that it can be written")
            ) from err
