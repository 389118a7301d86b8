# SPDX-License-Identifier: MIT
"""Read what ``facts.sh`` has printed on a machine that is to lend memory."""

from __future__ import annotations

import enum
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import GhostboxError

Version = tuple[int, ...]


class Sudo(enum.StrEnum):
    """Names how a login may become root. ``ASKS``: sudo wants a password, or refuses."""

    ROOT = "root"
    FREE = "free"
    ASKS = "asks"
    MISSING = "missing"


@dataclass(frozen=True)
class Place:
    """Describes a directory that a donor may be installed in.

    ``exists``: something is there; ``ours``: `donor deploy` has made it. ``current`` is the version in use,
    ``arguments`` are those of its memserver, its name first. ``unit``: systemd has a unit of the donor's name.
    """

    path: str
    free_bytes: int
    exists: bool = False
    ours: bool = False
    current: str = ""
    versions: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    unit: bool = False


@dataclass(frozen=True)
class Facts:
    """Describes a machine. ``glibc`` and ``python`` are None if it has none; ``python_lacks`` is what Python says."""

    kernel: str
    machine: str
    host: str
    user: str
    home: str
    libc: str
    glibc: Version | None
    python: Version | None
    python_path: str
    python_lacks: str
    sudo: Sudo
    systemd: bool
    user_systemd: bool
    system_place: Place
    home_place: Place


def script() -> bytes:
    """Return the script that prints the facts."""
    return Path(__file__).with_name("facts.sh").read_bytes()


def read(text: str, target: str) -> Facts:
    """Return what the script has printed on ``target``; lines of the login's own start-up files are passed over.

    Raises:
        GhostboxError: the script did not run to its end.
    """
    values: defaultdict[str, list[str]] = defaultdict(list)
    for name, value in re.findall(r"^([a-z_]+)=(.*)$", text, re.MULTILINE):
        values[name].append(value)
    if "end" not in values:
        raise GhostboxError(
            f"{target} does not say what it is",
            why=text.strip() or "its login shell ran nothing: it may be limited to other commands",
            hint=f"see what this prints: ssh {target} uname -a",
        )

    def one(name: str) -> str:
        return (values.get(name) or [""])[-1]

    def place(name: str) -> Place:
        return Place(
            one(name),
            int(one(f"{name}_free_kib") or 0) * 1024,
            one(f"{name}_exists") == "yes",
            one(f"{name}_ours") == "yes",
            one(f"{name}_current"),
            tuple(values.get(f"{name}_version", ())),
            tuple(values.get(f"{name}_argument", ())),
            one(f"{name}_unit") == "yes",
        )

    return Facts(
        one("kernel"),
        one("machine"),
        one("host"),
        one("user"),
        one("home_directory"),
        one("libc"),
        _glibc(one("libc")),
        version(one("python")) if one("python") else None,
        one("python_path"),
        one("python_lacks"),
        Sudo(one("sudo")),
        one("systemd") == "yes",
        one("user_systemd") == "yes",
        place("system"),
        place("home"),
    )


def version(text: str) -> Version:
    """Return the numbers of a version, ``3.11.2``."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _glibc(text: str) -> Version | None:
    """Return the version of the GNU C library, by the text of getconf or ldd; None for another library."""
    found = re.search(r"glibc[^0-9]*([0-9.]+)", text, re.IGNORECASE) or re.search(r"\(GNU libc\) ([0-9.]+)", text)
    return version(found[1]) if found else None
