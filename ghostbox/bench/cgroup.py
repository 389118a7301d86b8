# SPDX-License-Identifier: MIT
"""Limit a program's memory by a control group, for programs without a cache limit of their own (cgroup v2 or v1)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ghostbox.errors import ProgramError

_ROOT = Path("/sys/fs/cgroup")


def missing() -> str | None:
    """Return why no control group can be made here; None if one can be made."""
    if os.geteuid() != 0:
        return "a limit for nbdfuse needs root (a memory cgroup)"
    return None if _parent() is not None else "this machine has no memory cgroup"


@contextlib.contextmanager
def memory_limited(limit_bytes: int) -> Iterator[Path]:
    """Make a control group; a process that joins it has ``limit_bytes``, including its page cache.

    Raises:
        ProgramError: the group cannot be made.
    """
    parent = _parent()
    if parent is None:
        raise ProgramError("cannot make a memory cgroup", why=missing())
    group = parent / f"ghostbox-bench-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as err:
        raise ProgramError(f"cannot make the cgroup {group}: {err.strerror}") from err
    try:
        knob = "memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes"
        (group / knob).write_text(str(limit_bytes))
        yield group
    except OSError as err:
        raise ProgramError(f"cannot set the limit of the cgroup {group}: {err.strerror}") from err
    finally:
        group.rmdir()


def _parent() -> Path | None:
    with contextlib.suppress(OSError):
        if "memory" in (_ROOT / "cgroup.subtree_control").read_text().split():
            return _ROOT
    old = _ROOT / "memory"
    return old if (old / "memory.limit_in_bytes").exists() else None
