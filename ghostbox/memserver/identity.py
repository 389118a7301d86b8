# SPDX-License-Identifier: MIT
"""Give a memserver an id that stays the same over restarts; hosts tell two memservers at one address apart by it.

The id is made at the first start and kept in the state directory, with a digest of the machine's id: if the directory
was copied to another machine, the copy gets a new id.
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import GhostboxError, hint_for
from ghostbox.system import documents, state_files

_log = logging.getLogger(__name__)
_VERSION = 1
_MACHINE_ID = Path("/etc/machine-id")


@dataclass(frozen=True)
class Identity:
    """Holds a memserver's name, its id, and the digest of its machine."""

    name: str
    id: str
    machine: str


def donor_id(state: Path, *, machine_id: Path = _MACHINE_ID, known: Callable[[], str | None] = lambda: None) -> str:
    """Return the id of the memserver with this state directory: 16 hexadecimal digits.

    Args:
        state: the directory.
        machine_id: the file with the machine's id.
        known: returns the id that this memserver's data plane or list of clients has, if there is one. A file that is
            gone or damaged is made anew with it: hosts know the donor by it.

    Raises:
        Refused: a newer version wrote the file.
        GhostboxError: a new id cannot be written.
    """
    path, machine = state / "identity.json", _digest(machine_id)
    is_copy = False
    try:
        kept = documents.check(json.loads(path.read_text()), path, _VERSION)
        found, its_machine = str(kept["id"]), kept["machine"]
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as err:
        _log.error("%s cannot be read (%s): it is made anew", path, err)
    else:
        if its_machine == machine:
            return found
        _log.warning("%s was made on another machine: this memserver gets an id of its own", path)
        is_copy = True  # of the whole directory: its list of clients is the other memserver's, too
    made = (None if is_copy else known()) or secrets.token_hex(8)
    _keep(path, {documents.VERSION: _VERSION, "id": made, "machine": machine})
    return made


def _digest(machine_id: Path) -> str:
    """Return a digest of the machine's id, machine-id(5), that may be shown; equal for all machines without an id."""
    try:
        text = machine_id.read_bytes()
    except OSError:
        text = b""
    return hashlib.sha256(b"ghostbox" + text).hexdigest()[:16]


def _keep(path: Path, document: dict[str, str | int]) -> None:
    try:
        state_files.write(path, document)
    except OSError as err:
        raise GhostboxError(
            f"cannot write {path}: {err.strerror}", hint=hint_for(err, "see that it can be written")
        ) from err
