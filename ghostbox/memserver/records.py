# SPDX-License-Identifier: MIT
"""Keep the lease records of a donor in one JSON file, which is replaced as a whole, so that it is never half written.

The memory itself is in the data plane; the records name its holders. By the records a control plane can be restarted,
and tells memory that is still there from memory that was lost (another incarnation).
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ghostbox.donors.models import Holder
from ghostbox.errors import GhostboxError, hint_for
from ghostbox.system import documents, forms, state_files
from ghostbox.system.documents import Part

_log = logging.getLogger(__name__)

_VERSION = 1
_MAX_LOST = 64


UNKNOWN_HOLDER = Holder("unknown", "unknown")


@dataclass(frozen=True)
class LeaseRecord(Part):
    """Holds one lease. ``incarnation`` is None between the decision to make the export and the export's answer.

    ``client`` is the id of the paired host that asked for it, ``tls_psk`` the export's key, hexadecimal; both are None
    where there is no pairing.
    """

    name: str
    size_bytes: int
    holder: Holder
    created_at: str
    incarnation: str | None
    client: str | None = None
    tls_psk: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class PlaneRecord(Part):
    """Identifies the data plane process that holds the memory, by its id, its start time and the machine's boot.

    ``control_socket`` is in the runtime directory of the login that started the process; a later login may have
    another. It is None if an earlier version started the process. ``tls``: it answers nothing without TLS; None if that
    is not known.
    """

    pid: int
    start_ticks: int
    boot_id: str
    incarnation: str
    control_socket: str | None = None
    tls: bool | None = None


_LEASES = TypeAdapter(tuple[LeaseRecord, ...])
_PLANE = TypeAdapter(PlaneRecord)


@dataclass(frozen=True)
class Records(Part):
    """Holds all that is recorded.

    ``lost`` has leases whose memory is gone, until their name is used again. ``drain_asked``: ``ghostbox memserver
    drain`` was run; that holds as long as the data plane runs. ``control`` are the addresses (host, port) of the
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
        """Return the records with ``lease``, less its key, moved to the lost leases, of which the latest are kept."""
        lost = {key: record for key, record in self.lost.items() if key != lease.name}
        kept = dict([*lost.items(), (lease.name, replace(lease, tls_psk=None))][-_MAX_LOST:])
        return replace(self.without_lease(lease.name), lost=kept)


def now() -> str:
    """Return the time for ``created_at``: UTC, ISO 8601, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def load(path: Path) -> Records:
    """Read the records; a missing file counts as an empty one.

    A damaged file is put aside, and that is logged. Nothing is lost by that but names and a drain that was asked for: a
    data plane that runs is found without its record (`DataPlane.adopt`), and exports without a record are kept.

    Raises:
        Refused: a newer version wrote the records.
        GhostboxError: the file cannot be read, or not be put aside.
    """
    try:
        return _read(documents.check(json.loads(path.read_text()), path, _VERSION))
    except FileNotFoundError:
        return Records()
    except OSError as err:
        raise GhostboxError(
            f"cannot read the lease records {path}: {err.strerror}", hint=hint_for(err, "see that it can be read")
        ) from err
    except (ValueError, KeyError, TypeError) as err:
        aside = path.with_suffix(".damaged")
        _put_aside(path, aside)
        _log.error("lease records %s are damaged (%s): put aside as %s", path, err, aside)
        return Records()


def _read(document: dict[str, Any]) -> Records:
    plane = document["plane"]
    return Records(
        plane=None if plane is None else forms.read(_PLANE, plane),
        leases={lease.name: lease for lease in forms.read(_LEASES, document["leases"])},
        lost={lease.name: lease for lease in forms.read(_LEASES, document["lost"])},
        drain_asked=bool(document.get("drain_asked", False)),
        control=tuple((str(host), int(port)) for host, port in document.get("control", ())),
        further={key: value for key, value in documents.unknown(document, Records).items() if key != documents.VERSION},
    )


def _put_aside(path: Path, aside: Path) -> None:
    try:
        path.replace(aside)
    except OSError as err:
        raise GhostboxError(
            f"cannot put the damaged lease records {path} aside: {err.strerror}",
            hint=hint_for(err, "see that their directory can be written"),
        ) from err


def save(path: Path, records: Records) -> None:
    """Replace the file, as `state_files.write` does."""
    document = {
        **documents.plain(records),
        documents.VERSION: _VERSION,
        "leases": documents.plain(list(records.leases.values())),
        "lost": documents.plain(list(records.lost.values())),
    }
    state_files.write(path, document)
