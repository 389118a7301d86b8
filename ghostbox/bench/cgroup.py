# SPDX-License-Identifier: MIT
"""A control group with a limit of memory, for what has no cache limit of its own (cgroup v2 or v1)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ghostbox.errors import ProgramError

_ROOT = Path("/sys/fs/cgroup")


def missing() -> str | None:
    """Say why no control group can be made here; None if it can."""
    if os.geteuid() != 0:
        return "a limit for nbdfuse needs root (a memory cgroup)"
    return None if _parent() is not None else "there is no memory cgroup to be had here"


@contextlib.contextmanager
def memory_limited(limit_bytes: int) -> Iterator[Path]:
    """Make a control group; who joins it has ``limit_bytes``, page cache included.

    Raises:
        ProgramError: it cannot be made.
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
