# SPDX-License-Identifier: MIT
"""Make text safe for terminals and pipes: it cannot control them, and has no characters outside the locale.

Names, paths, donors' messages and guests' console lines may hold anything. Three measures are taken just before text is
written: control characters are shown in readable form (`printable`), a console of rich takes strings as they are
(`PlainConsole`: only a ``Text`` has colours), and characters that the stream's encoding lacks are written in another
way (`set_up_streams`).
"""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from collections.abc import Iterable
from typing import IO, Any

import rich.table
from rich.console import Console, ConsoleOptions, OverflowMethod, RenderableType
from rich.segment import Segment
from rich.text import Text

# C0 but tab and newline, DEL, C1 (ECMA-48), line and paragraph separators, and the characters that change the reading
# direction (Unicode standard annex 9): with these a donor could overwrite or reorder GhostBox's output.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_SUBSTITUTES = {
    "…": "...", "–": "-", "—": "-", "·": ".", "×": "x", "µ": "u", "±": "+-", "→": "->", "←": "<-", "≥": ">=", "≤": "<=",
    "°": "deg", "█": "#", "▓": "#", "▒": "=", "░": "-", "•": "*", "“": '"', "”": '"', "‘": "'", "’": "'", "\u00a0": " ",
    "─": "-", "━": "-", "│": "|", "┃": "|", "╭": "+", "╮": "+", "╰": "+", "╯": "+", "┌": "+", "┐": "+", "└": "+",
    "┘": "+", "├": "+", "┤": "+", "┬": "+", "┴": "+", "┼": "+", "✓": "ok", "✗": "x",
}  # fmt: skip
_FALLBACK = "ghostbox.fallback"
_FALLBACK_UTF8 = "ghostbox.fallback-utf8"
# The encoding has a name of its own, since click takes "ascii" for a misconfiguration, and writes UTF-8 then.
_ASCII = "ghostbox_ascii"
_ASCII_LOCALES = {"", "C", "POSIX"}


def printable(text: str) -> str:
    r"""Return ``text`` with its control characters in readable form (``\x1b``), except newlines and tabs."""
    return _CONTROL.sub(lambda match: _escaped(match[0]), text)


def _escaped(text: str) -> str:
    return "".join(f"\\x{ord(char):02x}" if ord(char) < 0x100 else f"\\u{ord(char):04x}" for char in text)


class PlainConsole(Console):
    """Is a console that takes strings as they are: no markup, no emoji codes, no control characters from outside."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string in the form in which it is shown, so that its width is known."""
        return super().render_str(printable(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of ``renderable``; rich's own control sequences are kept."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


class Table(rich.table.Table):
    """Is a table that folds text for which it has no space; rich's own would cut off the end of an address."""

    def add_column(
        self, header: RenderableType = "", *args: Any, overflow: OverflowMethod = "fold", **more: Any
    ) -> None:
        """Add a column, as rich does."""
        super().add_column(header, *args, overflow=overflow, **more)


def writes_unicode(stream: IO[str]) -> bool:
    """Tell whether a stream can write every character."""
    return (getattr(stream, "encoding", None) or "ascii").lower().replace("_", "-").startswith("utf")


def set_up_streams() -> None:
    """Let stdout and stderr write every text, whatever the locale. Call this once, before anything is written.

    In the locale "C" Python writes UTF-8. The user's terminal may not be able to show that, so GhostBox's own signs
    become ASCII; text from outside (a path that is to be pasted) keeps its bytes.
    """
    codecs.register_error(_FALLBACK, _fall_back)
    codecs.register_error(_FALLBACK_UTF8, _fall_back_to_bytes)
    codecs.register(_find_codec)
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if _is_ascii(stream.encoding):
            stream.reconfigure(encoding=_ASCII, errors=_FALLBACK)
        elif writes_unicode(stream) and _locale_is_c():
            stream.reconfigure(encoding=_ASCII, errors=_FALLBACK_UTF8)
        else:
            stream.reconfigure(errors=_FALLBACK)


def _locale_is_c() -> bool:
    """Tell whether the environment asks for the locale "C"; where it asks for none, Python sets ``LC_CTYPE``."""
    if os.environ.get("PYTHONIOENCODING") or os.environ.get("PYTHONUTF8"):
        return False
    found = next((value for key in ("LC_ALL", "LC_CTYPE", "LANG") if (value := os.environ.get(key))), "")
    return found in _ASCII_LOCALES


def _is_ascii(encoding: str) -> bool:
    try:
        return codecs.lookup(encoding).name == "ascii"
    except LookupError:
        return False


def _fall_back(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_substitute, error.object[error.start : error.end])), error.end


def _fall_back_to_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    chars = error.object[error.start : error.end]
    return b"".join((_SUBSTITUTES.get(char) or _kept(char)).encode() for char in chars), error.end


def _kept(char: str) -> str:
    return _substitute(char) if "\ud800" <= char <= "\udfff" else char


def _substitute(char: str) -> str:
    r"""Return ASCII for a character: from the table for GhostBox's signs; ``\xff`` for a byte that is not UTF-8."""
    if "\udc80" <= char <= "\udcff":  # PEP 383
        return f"\\x{ord(char) - 0xDC00:02x}"
    return _SUBSTITUTES.get(char) or char.encode("ascii", "backslashreplace").decode()


def _find_codec(name: str) -> codecs.CodecInfo | None:
    if name != _ASCII:
        return None
    found = codecs.lookup("ascii")
    return codecs.CodecInfo(
        found.encode,
        found.decode,
        found.streamreader,
        found.streamwriter,
        found.incrementalencoder,
        found.incrementaldecoder,
        _ASCII,
    )
