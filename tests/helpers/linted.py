# SPDX-License-Identifier: MIT
"""Remember which files a linter has found clean, so that it reads only those that may have changed.

    clean = Clean("clang-tidy", words, also=headers)
    new = clean.unknown(sources)
    … run the linter on `new`, which fails if it finds anything …
    clean.note(new)

A file is known by its own bytes and by all that the linter's answer depends on besides: its words and its program, the
files in ``also``, and the packages of the distribution, from which the headers of the system come.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from helpers import project

PLACE = project.ROOT / ".bootstrap" / "lint"
_PACKAGES = Path("/var/lib/dpkg/status")
_KEPT = 5000  # notes of older files stay, so that a change of branches costs nothing; beyond this number all go


class Clean:
    """Holds the notes of one linter with certain words; in a tree without ``.bootstrap`` it remembers nothing."""

    def __init__(self, program: str | Path, words: Sequence[str], also: Iterable[Path] = ()) -> None:
        self._place = PLACE / Path(program).name
        digest = hashlib.sha256("\0".join([str(program), *words]).encode())
        for file in (Path(program), _PACKAGES):
            if file.exists():
                found = file.resolve().stat()
                digest.update(f"{file.resolve()} {found.st_size} {found.st_mtime_ns}\n".encode())
        for file in sorted(also):
            digest.update(f"{project.shown(file)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
        self._of_all = digest.digest()

    def unknown(self, files: Iterable[Path]) -> list[Path]:
        """Return the files that have not been found clean as they are now."""
        return [file for file in files if not self._note(file).exists()]

    def note(self, files: Iterable[Path]) -> None:
        """Remember that the linter has found nothing in these files."""
        if not PLACE.parent.is_dir():
            return
        if self._place.is_dir() and sum(1 for _ in self._place.iterdir()) > _KEPT:
            shutil.rmtree(self._place, ignore_errors=True)
        self._place.mkdir(parents=True, exist_ok=True)
        for file in files:
            self._note(file).touch()

    def _note(self, file: Path) -> Path:
        own = hashlib.sha256(self._of_all + project.shown(file).encode() + b"\0" + file.read_bytes())
        return self._place / own.hexdigest()
