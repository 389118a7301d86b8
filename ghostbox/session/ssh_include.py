# SPDX-License-Identifier: MIT
"""One ``Include`` line in the user's own ssh configuration, by which ssh, scp, rsync and editors find all VMs by name.

It is a pattern over the VMs' directories, so that it never has to be changed when VMs come and go.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import GhostboxError, NotFound
from ghostbox.paths import Paths

# The words of Include are split with quotes and backslashes, then globbed, and newer versions expand %-tokens and
# ${variables} first (ssh_config(5)): where a directory has such a sign, the pattern has "any sign" in its place.
_SPECIAL = re.compile(r"""[%$"'\\*?\[\]{}]""")
_SCOPE = re.compile(rb"^\s*(?:Host|Match)\b", re.IGNORECASE)
_HOST = re.compile(r"^\s*Host(?:\s+|\s*=\s*)(.+)$", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True)
class Changed:
    """What was done to ``file``; ``shadowed`` are Host names of the user's own that VMs now come before."""

    file: Path
    changed: bool
    line: str
    shadowed: tuple[str, ...] = ()


def user_config() -> Path:
    """Return the calling user's own ssh configuration: ssh looks for it where the system says, not where HOME points.

    Raises:
        NotFound: the system does not know the user, nor does ssh.
    """
    try:
        home = pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError as err:
        raise NotFound(
            f"the system knows no user {os.geteuid()}, so there is no ~/.ssh/config", hint="name a file: --file FILE"
        ) from err
    return Path(home) / ".ssh" / "config"


def line(paths: Paths) -> str:
    """Return the line."""
    return f'Include "{_SPECIAL.sub("?", str(paths.state))}/vms/*/ssh_config"'


def blocks(paths: Paths, names: Sequence[str]) -> str:
    """Return the Host blocks of VMs, as far as they were ever started."""
    found = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            found.append(os.fsdecode(paths.vm(name).ssh_config.read_bytes()))
    return "\n".join(found)


def install(file: Path, paths: Paths, names: Sequence[str]) -> Changed:
    """Put the line at the top of ``file``, which is made if it is missing; all else in it stays as it is.

    Raises:
        GhostboxError: it cannot be read or written.
    """
    ours = line(paths)
    before = _read(file)
    if ours.encode() in _unconditional(before):
        return Changed(file, False, ours)
    _write(file, ours.encode() + b"\n" + _without(before, ours))
    return Changed(file, True, ours, _shadowed(before, names))


def uninstall(file: Path, paths: Paths) -> Changed:
    """Take the line away again.

    Raises:
        GhostboxError: it cannot be read or written.
    """
    ours = line(paths)
    before = _read(file)
    after = _without(before, ours)
    if after != before:
        _write(file, after)
    return Changed(file, after != before, ours)


def _unconditional(text: bytes) -> list[bytes]:
    """Return the lines before the first Host or Match: those that hold for every host."""
    found: list[bytes] = []
    for each in text.splitlines():
        if _SCOPE.match(each):
            break
        found.append(each.strip())
    return found


def _without(text: bytes, ours: str) -> bytes:
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
    """Replace what is in a file in one step; a symbolic link (to somebody's dotfiles) stays one."""
    target = file.resolve()
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        descriptor, draft = tempfile.mkstemp(prefix=".ghostbox-", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            Path(draft).chmod(mode)
            Path(draft).replace(target)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as err:
        raise GhostboxError(f"cannot write {target}: {err.strerror}", hint="the file is as it was") from err
