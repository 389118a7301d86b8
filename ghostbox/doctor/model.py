# SPDX-License-Identifier: MIT
"""A check's outcome, and the machine it looks at."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from ghostbox.config import Config
from ghostbox.paths import Paths


class Result(enum.StrEnum):
    """OK; WARN: it works, less well; FAIL: it does not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    """The outcome of one check. ``why`` and ``fix`` are set where the result is not OK."""

    name: str
    result: Result
    found: str
    why: str | None = None
    fix: str | None = None


@dataclass(frozen=True)
class Machine:
    """What is looked at; the paths are other ones only in tests."""

    config: Config
    paths: Paths
    userfaultfd: Path = Path("/dev/userfaultfd")
    kvm: Path = Path("/dev/kvm")
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    os_release: Path = Path("/etc/os-release")


def ok(name: str, found: str) -> Check:
    """Return a check that is well."""
    return Check(name, Result.OK, found)


def warn(name: str, found: str, *, why: str, fix: str | None = None) -> Check:
    """Return a check that is not as it should be, and does not stop anything."""
    return Check(name, Result.WARN, found, why, fix)


def fail(name: str, found: str, *, why: str, fix: str | None = None) -> Check:
    """Return a check without which the role cannot work."""
    return Check(name, Result.FAIL, found, why, fix)
