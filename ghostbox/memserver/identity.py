# SPDX-License-Identifier: MIT
"""Who this memserver is: an id that stays the same over restarts, by which hosts tell it from another at its address.

It is made at the first start and kept in the state directory, together with what tells this machine from others: a
directory that was copied to another machine does not make two donors of one id.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import GhostboxError, hint_for
from ghostbox.memserver import records

_log = logging.getLogger(__name__)
_MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True)
class Identity:
    """What a memserver is called, and who it is."""

    name: str
    id: str


def donor_id(state: Path, *, machine_id: Path = _MACHINE_ID) -> str:
    """Return the id of the memserver whose state directory this is; 16 hexadecimal digits.

    Raises:
        GhostboxError: a new one cannot be kept.
    """
    path, machine = state / "identity.json", _digest(machine_id)
    try:
        kept = json.loads(path.read_text())
        found, its_machine = str(kept["id"]), kept["machine"]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as err:
        _log.error("%s cannot be read (%s): this memserver gets a new id", path, err)
    else:
        if its_machine == machine:
            return found
        _log.warning("%s was made on another machine: this memserver gets an id of its own", path)
    made = secrets.token_hex(8)
    _keep(path, {"id": made, "machine": machine})
    return made


def _digest(machine_id: Path) -> str:
    """Return what may be shown of a machine's id, machine-id(5); the same for all machines that have none."""
    try:
        text = machine_id.read_bytes()
    except OSError:
        text = b""
    return hashlib.sha256(b"ghostbox" + text).hexdigest()[:16]


def _keep(path: Path, document: dict[str, str]) -> None:
    try:
        records.write(path, document)
    except OSError as err:
        raise GhostboxError(
            f"cannot write {path}: {err.strerror}", hint=hint_for(err, "see that it can be written")
        ) from err
