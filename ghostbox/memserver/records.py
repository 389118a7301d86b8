# SPDX-License-Identifier: MIT
"""The lease records of a donor: one JSON file, replaced as a whole, so that it is never half written.

The memory itself lives in the data plane; the records say whose it is. They exist so that the control plane can be
restarted, and to tell memory that is still there from memory that was lost (another incarnation).
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)

_VERSION = 1
_MAX_LOST = 64


@dataclass(frozen=True)
class Holder:
    """Who uses a lease: the host, and the VM on it."""

    host: str
    vm: str

    def __str__(self) -> str:
        return f"{self.host}/{self.vm}"


UNKNOWN_HOLDER = Holder("unknown", "unknown")


@dataclass(frozen=True)
class LeaseRecord:
    """One lease. ``incarnation`` is None between the decision to make the export and its being made."""

    name: str
    size_bytes: int
    holder: Holder
    created_at: str
    incarnation: str | None


@dataclass(frozen=True)
class PlaneRecord:
    """The data plane process that holds the memory; the start time tells it from a later process of the same id.

    ``control_socket`` is where it listens, in the runtime directory of the login that started it: that of a later one
    may be another. None if an earlier version started it.
    """

    pid: int
    start_ticks: int
    boot_id: str
    incarnation: str
    control_socket: str | None = None


@dataclass(frozen=True)
class Records:
    """All that is kept.

    ``lost`` holds leases whose memory is gone, until their name is used again. ``drain_asked``: ``ghostbox memserver
    drain`` was run; that holds for as long as the data plane lives. ``control`` are the addresses (host, port) of the
    control API that holders of leases may know.
    """

    plane: PlaneRecord | None = None
    leases: dict[str, LeaseRecord] = field(default_factory=dict)
    lost: dict[str, LeaseRecord] = field(default_factory=dict)
    drain_asked: bool = False
    control: tuple[tuple[str, int], ...] = ()

    def with_lease(self, lease: LeaseRecord) -> Records:
        """Return the records with ``lease`` added or replaced."""
        lost = {name: record for name, record in self.lost.items() if name != lease.name}
        return replace(self, leases={**self.leases, lease.name: lease}, lost=lost)

    def without_lease(self, name: str) -> Records:
        """Return the records without the lease called ``name``."""
        return replace(self, leases={key: lease for key, lease in self.leases.items() if key != name})

    def with_lost(self, lease: LeaseRecord) -> Records:
        """Return the records with ``lease`` moved to the lost ones, of which the latest are kept."""
        lost = {key: record for key, record in self.lost.items() if key != lease.name}
        kept = dict([*lost.items(), (lease.name, lease)][-_MAX_LOST:])
        return replace(self.without_lease(lease.name), lost=kept)


def now() -> str:
    """Return the time for ``created_at``: UTC, ISO 8601, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def load(path: Path) -> Records:
    """Read the records; a missing file is an empty one.

    A damaged file is put aside and said so: exports that live on are then found without a holder, and kept.
    """
    try:
        document = json.loads(path.read_text())
        plane = document["plane"]
        return Records(
            plane=None if plane is None else PlaneRecord(**plane),
            leases={lease["name"]: _lease(lease) for lease in document["leases"]},
            lost={lease["name"]: _lease(lease) for lease in document["lost"]},
            drain_asked=bool(document.get("drain_asked", False)),
            control=tuple((str(host), int(port)) for host, port in document.get("control", ())),
        )
    except FileNotFoundError:
        return Records()
    except (ValueError, KeyError, TypeError) as err:
        aside = path.with_suffix(".damaged")
        path.replace(aside)
        _log.error("lease records %s are damaged (%s): put aside as %s", path, err, aside)
        return Records()


def _lease(fields: dict[str, Any]) -> LeaseRecord:
    return LeaseRecord(**{**fields, "holder": Holder(**fields["holder"])})


def save(path: Path, records: Records) -> None:
    """Replace the file, as `write` does."""
    document = {
        "version": _VERSION,
        "plane": None if records.plane is None else asdict(records.plane),
        "leases": [asdict(lease) for lease in records.leases.values()],
        "lost": [asdict(lease) for lease in records.lost.values()],
        "drain_asked": records.drain_asked,
        "control": [list(address) for address in records.control],
    }
    write(path, document)


def write(path: Path, document: dict[str, Any]) -> None:
    """Replace the file at once: after a crash it is the old or the new one (rename(2)), and on disk (fsync(2))."""
    draft = path.with_suffix(".new")
    with draft.open("w") as file:
        json.dump(document, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
