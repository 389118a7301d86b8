# SPDX-License-Identifier: MIT
"""Define the result of a check, and the machine that is checked."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from ghostbox.config import Config
from ghostbox.paths import Paths


class Result(enum.StrEnum):
    """Names a check's result. OK; WARN: GhostBox works, less well; FAIL: GhostBox does not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """Holds the result of one check. ``why`` and ``fix`` are set if the result is not OK."""

    name: str
    result: Result
    found: str
    why: str | None = None
    fix: str | None = None


@dataclass(frozen=True)
class Machine:
    """Describes the machine that is checked; only tests use other paths."""

    config: Config
    paths: Paths
    userfaultfd: Path = Path("/dev/userfaultfd")
    kvm: Path = Path("/dev/kvm")
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    os_release: Path = Path("/etc/os-release")


def ok(name: str, found: str) -> Check:
    """Return the result of a check that is well."""
    return Check(name, Result.OK, found)


def warn(name: str, found: str, *, why: str, fix: str | None = None) -> Check:
    """Return the result of a check that found a problem which does not stop anything."""
    return Check(name, Result.WARN, found, why, fix)


def fail(name: str, found: str, *, why: str, fix: str | None = None) -> Check:
    """Return the result of a check without which the role cannot work."""
    return Check(name, Result.FAIL, found, why, fix)
