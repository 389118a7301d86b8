# SPDX-License-Identifier: MIT
"""Maintain an ``Include`` line in the user's ssh configuration, by which ssh, scp, rsync and editors find all VMs.

The line has a pattern over the VMs' directories, so that it stays the same when VMs come and go.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import GhostboxError, NotFound
from ghostbox.paths import Paths
from ghostbox.system import state_files

# ssh splits the words of Include by quotes and backslashes and expands patterns in them; newer versions expand %-tokens
# and ${variables} first (ssh_config(5)). The pattern has "?" in the place of each such character of the directory.
_SPECIAL = re.compile(r"""[%$"'\\*?\[\]{}]""")
_SCOPE = re.compile(rb"^\s*(?:Host|Match)\b", re.IGNORECASE)
_HOST = re.compile(r"^\s*Host(?:\s+|\s*=\s*)(.+)$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Changed:
    """Describes the change of ``file``; ``shadowed`` are Host names of the user's that VMs now come before."""

    file: Path
    changed: bool
    line: str
    shadowed: tuple[str, ...] = ()


def user_config() -> Path:
    """Return the user's own ssh configuration. ssh takes the home directory from the system, not from HOME.

    Raises:
        NotFound: the system does not know the user.
    """
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError as err:
        raise NotFound(
            f"the system knows no user {os.geteuid()}, so there is no ~/.ssh/config", hint="name a file: --file FILE"
        ) from err
    return Path(home) / ".ssh" / "config"


def line(paths: Paths) -> str:
    """Return the Include line."""
    return f'Include "{_SPECIAL.sub("?", str(paths.state))}/vms/*/ssh_config"'


def blocks(paths: Paths, names: Sequence[str]) -> str:
    """Return the Host blocks of those VMs that were started once."""
    found = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            found.append(os.fsdecode(paths.vm(name).ssh_config.read_bytes()))
    return "\n".join(found)


def install(file: Path, paths: Paths, names: Sequence[str]) -> Changed:
    """Put the line at the top of ``file``, which is made if it is missing; the rest of the file stays.

    Raises:
        GhostboxError: the file cannot be read or written.
    """
    ours = line(paths)
    before = _read(file)
    if ours.encode() in _unconditional(before):
        return Changed(file, False, ours)
    _write(file, ours.encode() + b"\n" + _without_line(before, ours))
    return Changed(file, True, ours, _shadowed(before, names))


def uninstall(file: Path, paths: Paths) -> Changed:
    """Take the line out of ``file``.

    Raises:
        GhostboxError: the file cannot be read or written.
    """
    ours = line(paths)
    before = _read(file)
    after = _without_line(before, ours)
    if after != before:
        _write(file, after)
    return Changed(file, after != before, ours)


def _unconditional(text: bytes) -> list[bytes]:
    """Return the lines before the first Host or Match: they hold for every host."""
    found: list[bytes] = []
    for each in text.splitlines():
        if _SCOPE.match(each):
            break
        found.append(each.strip())
    return found


def _without_line(text: bytes, ours: str) -> bytes:
    return b"".join(each for each in text.splitlines(keepends=True) if each.strip() != ours.encode())


def _shadowed(text: bytes, names: Sequence[str]) -> tuple[str, ...]:
    taken = {word.strip('"') for words in _HOST.findall(text.decode(errors="replace")) for word in words.split()}
    return tuple(name for name in names if name in taken)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as err:
        raise GhostboxError(f"cannot read {file}: {err.strerror}") from err


def _write(file: Path, text: bytes) -> None:
    """Replace a file's content in one step; a symbolic link (to the user's dotfiles) stays a link."""
    target = file.resolve()
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        state_files.replace(target, text, mode=mode)
    except OSError as err:
        raise GhostboxError(f"cannot write {target}: {err.strerror}", hint="the file is as it was") from err
