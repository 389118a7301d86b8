# SPDX-License-Identifier: MIT
"""Define the kinds of configuration values; each parses what a person wrote into the program's type.

A kind takes a value from YAML, an environment variable or a flag (text, number, list, None). It returns the typed
value, or raises `UsageError` with a message that fits behind ``key: ``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ghostbox import units
from ghostbox.errors import UsageError


class Kind(Protocol):
    """Describes what every kind of value can do."""

    def parse(self, raw: object) -> object:
        """Return the typed value of ``raw``; raise UsageError if ``raw`` is none of this kind."""


@dataclass(frozen=True)
class PortForward:
    """Is a port of the host's loopback that leads to a port of the guest (TCP)."""

    host: int
    guest: int

    def __str__(self) -> str:
        return f"{self.host}:{self.guest}"


@dataclass(frozen=True)
class NetworkChoice:
    """Is the network of a VM: ``user`` (QEMU's own), or a ``bridge`` or ``libvirt`` network with a name."""

    kind: str = "user"
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


@dataclass(frozen=True)
class ExtraDisk:
    """Is a disk besides the VM's first disk."""

    size_bytes: int

    def __str__(self) -> str:
        return units.exact_bytes(self.size_bytes)


@dataclass(frozen=True)
class SharedFolder:
    """Is a directory of this host that the guest sees."""

    directory: Path
    read_only: bool = False

    def __str__(self) -> str:
        return f"{self.directory}:ro" if self.read_only else f"{self.directory}:rw"

    def below(self, base: Path) -> SharedFolder:
        """Return the folder with a relative directory resolved against ``base``."""
        return SharedFolder(base / self.directory, self.read_only)


@dataclass(frozen=True)
class Size:
    """Is a size in bytes, written ``512M`` or ``4GiB``."""

    minimum: int = 0

    def parse(self, raw: object) -> int:
        """Return the size in bytes."""
        if isinstance(raw, bool) or not isinstance(raw, (str, int)):
            raise _not_a("a size", raw, "write a size such as 512M or 4GiB")
        n_bytes = units.parse_bytes(int(raw) if isinstance(raw, str) and raw.isdigit() else raw)
        hint = units.missing_unit(raw)
        if n_bytes < self.minimum or hint is not None:
            least = units.format_bytes(max(self.minimum, units.PAGE_BYTES))
            raise UsageError(f"{units.format_bytes(n_bytes)} is too small, the least is {least}", hint=hint)
        return n_bytes


@dataclass(frozen=True)
class PageMultiple(Size):
    """Is a size that is a power of two of at least one page (extents, readahead)."""

    def parse(self, raw: object) -> int:
        """Return the size in bytes."""
        n_bytes = super().parse(raw)
        if n_bytes % units.PAGE_BYTES or n_bytes & (n_bytes - 1):
            raise UsageError(f"{units.format_bytes(n_bytes)} is not a power of two of at least 4 KiB")
        return n_bytes


@dataclass(frozen=True)
class Duration:
    """Is a time in seconds, written ``90s`` or ``5m``; ``optional`` allows null or ``none``: no limit."""

    minimum: float = 0.0
    maximum: float = math.inf
    optional: bool = False

    def parse(self, raw: object) -> float | None:
        """Return the time in seconds; None if there is no limit."""
        if self.optional and (raw is None or str(raw).lower() in ("none", "null")):
            return None
        if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
            raise _not_a("a duration", raw, "write a duration such as 90s or 5m")
        seconds = units.parse_duration(raw)
        if seconds < self.minimum:
            raise UsageError(f"'{raw}' is too short, the least is {units.format_duration(self.minimum)}")
        if seconds > self.maximum:
            raise UsageError(f"'{raw}' is too long, the most is {units.format_duration(self.maximum)}")
        return seconds


@dataclass(frozen=True)
class Integer:
    """Is a whole number between two bounds."""

    minimum: int
    maximum: int

    def parse(self, raw: object) -> int:
        """Return the number."""
        if isinstance(raw, bool) or not re.fullmatch(r"-?\d+", str(raw)):
            raise _not_a("a whole number", raw)
        number = int(str(raw))
        if not self.minimum <= number <= self.maximum:
            raise UsageError(f"{number} is out of range, {self.minimum} to {self.maximum} are possible")
        return number


@dataclass(frozen=True)
class Percent:
    """Is a share, written ``20%``; null or ``never`` means none."""

    def parse(self, raw: object) -> float | None:
        """Return the percentage, or None."""
        if raw is None or raw == "never":
            return None
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", str(raw))
        if match is None or not 0 < float(match[1]) <= 100:
            raise _not_a("a percentage above 0%, or never", raw, "write a share such as 20%")
        return float(match[1])


@dataclass(frozen=True)
class Boolean:
    """Is true or false."""

    def parse(self, raw: object) -> bool:
        """Return the truth value."""
        word = str(raw).lower()
        if word in {"true", "yes", "on", "1"}:
            return True
        if word in {"false", "no", "off", "0"}:
            return False
        raise _not_a("true or false", raw)


@dataclass(frozen=True)
class Choice:
    """Is one of some words. The words of `Boolean` are also accepted; they mean ``on`` or ``off``."""

    words: tuple[str, ...]
    on: str
    off: str

    def parse(self, raw: object) -> str:
        """Return one of the words."""
        word = str(raw).lower()
        if word in self.words:
            return word
        try:
            return self.on if Boolean().parse(raw) else self.off
        except UsageError as err:
            raise _not_a(f"{', '.join(self.words[:-1])} or {self.words[-1]}", raw) from err


@dataclass(frozen=True)
class Text:
    """Is a word; ``pattern`` and ``what`` say which words are allowed, ``optional`` allows null."""

    what: str = "text"
    pattern: str = r".+"
    choices: tuple[str, ...] = ()
    optional: bool = False

    def parse(self, raw: object) -> str | None:
        """Return the word; None if it is null and optional."""
        if raw is None and self.optional:
            return None
        if raw is None or isinstance(raw, (bool, list, dict)):
            raise _not_a(self.what, raw)
        word = str(raw)
        if self.choices and word not in self.choices:
            raise UsageError(f"'{word}' is not one of {', '.join(self.choices)}")
        if not re.fullmatch(self.pattern, word):
            raise _not_a(self.what, raw)
        return word


@dataclass(frozen=True)
class File:
    """Is a path, or null; ``~`` is expanded. The loader resolves it against the place where it is written."""

    def parse(self, raw: object) -> Path | None:
        """Return the path."""
        if raw is None:
            return None
        if not isinstance(raw, (str, Path)) or not str(raw):
            raise _not_a("a path", raw)
        try:
            return Path(raw).expanduser()
        except RuntimeError as err:  # there is no such user, or no home directory
            raise UsageError(f"'{raw}': there is no such home directory", hint="write the whole path") from err


@dataclass(frozen=True)
class Port:
    """Is a forwarded port, written ``HOST:GUEST``."""

    def parse(self, raw: object) -> PortForward:
        """Return the pair."""
        if isinstance(raw, PortForward):
            return raw
        match = re.fullmatch(r"(\d+):(\d+)", str(raw))
        if match is None:
            raise _not_a("a forwarded port", raw, "write HOST:GUEST, such as 8080:80")
        host, guest = (Integer(1, 65535).parse(number) for number in match.groups())
        return PortForward(host, guest)


@dataclass(frozen=True)
class Network:
    """Is a network, written ``user``, ``bridge:NAME`` or ``libvirt:NAME``."""

    def parse(self, raw: object) -> NetworkChoice:
        """Return the choice."""
        if isinstance(raw, NetworkChoice):
            return raw
        if raw == "user":
            return NetworkChoice()
        # In Linux an interface's name has at most 15 bytes, no '/' and no white space (dev_valid_name, net/core/dev.c).
        match = re.fullmatch(r"(bridge):([^\s/:]{1,15})|(libvirt):([^\s/]{1,64})", str(raw))
        if match is None:
            raise _not_a("a network", raw, "write user, bridge:NAME (such as bridge:br0) or libvirt:NAME")
        return NetworkChoice(match[1] or match[3], match[2] or match[4])


@dataclass(frozen=True)
class Disk:
    """Is a further disk, written as its size."""

    def parse(self, raw: object) -> ExtraDisk:
        """Return the disk."""
        return raw if isinstance(raw, ExtraDisk) else ExtraDisk(Size(units.MIB).parse(raw))


@dataclass(frozen=True)
class Share:
    """Is a shared directory, written ``DIR``, ``DIR:ro`` or ``DIR:rw``; ``~`` is expanded."""

    def parse(self, raw: object) -> SharedFolder:
        """Return the folder."""
        if isinstance(raw, SharedFolder):
            return raw
        text = str(raw)
        word, _, mode = text.rpartition(":")
        if mode not in ("ro", "rw"):
            word, mode = text, "rw"
        if not isinstance(raw, (str, Path)) or not word or "\0" in word:
            raise _not_a("a shared directory", raw, "write DIR, or DIR:ro for a directory that the guest only reads")
        return SharedFolder(Path(word).expanduser(), mode == "ro")


@dataclass(frozen=True)
class Many:
    """Is a list of another kind; in an environment variable commas separate its members."""

    member: Kind

    def parse(self, raw: object) -> tuple[object, ...]:
        """Return the members."""
        if isinstance(raw, str):
            raw = [word.strip() for word in raw.split(",") if word.strip()]
        if raw is None or isinstance(raw, dict) or not isinstance(raw, Iterable):
            raise _not_a("a list", raw)
        return tuple(self.member.parse(item) for item in raw)


VM_NAME = Text("a name (letters, digits, '-', at most 40)", r"[a-zA-Z0-9][a-zA-Z0-9-]{0,39}")
HOST_PORT = Text("HOST or HOST:PORT", r"(\[[0-9a-fA-F:.]+(%[\w.-]+)?\]|[A-Za-z0-9_][A-Za-z0-9._-]*)(:[1-9][0-9]{0,4})?")
ADDRESS = Text("an address to listen on", r"[0-9A-Za-z:.%_-]+")
AMOUNT = Text("a size, a percentage or auto", r"auto|\d{1,2}(\.\d+)?%|100%|\d+(\.\d+)?\s*[KMGTkmgt]?([Ii]?[Bb])?")
USER = Text("a user name", r"[a-z_][a-z0-9_-]{0,31}")
PORT = Integer(0, 65535)


def _not_a(what: str, raw: object, hint: str | None = None) -> UsageError:
    shown = "null" if raw is None else str(raw)
    return UsageError(f"'{shown}' is not {what}", hint=hint)
