# SPDX-License-Identifier: MIT
"""Who this memserver is: an id that stays the same over restarts, by which hosts tell it from another at its address.

It is made at the first start and kept in the state directory, together with what tells this machine from others: a
directory that was copied to another machine does not make two donors of one id.

And on which machine it runs. Two copies of a page on one machine are no better than one, so hosts must know two donors
of a machine for what they are, whatever their names and addresses. What they have in common is the kernel: with it
they die. So the machine is told by the kernel's boot id, random(4), and not by /etc/machine-id: containers on one
kernel have a machine-id each, and machines that were cloned often have the same one. After a reboot it is another, as
is the memory. Virtual machines on one physical machine have a kernel each: their owner can tell what they share
(``memserver.machine``). What is sent is a digest: it says of two donors whether they are on one machine, and no more.
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
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Identity:
    """What a memserver is called, who it is, and on which machine."""

    name: str
    id: str
    machine: str


def machine_digest(name: str | None = None, *, boot_id: Path = _BOOT_ID) -> str:
    """Return what this machine is told from others by; 16 hexadecimal digits. ``name`` is what its owner calls it."""
    told_by = b"boot" + boot_id.read_bytes().strip() if name is None else b"name" + name.encode()
    return hashlib.sha256(b"ghostbox machine " + told_by).hexdigest()[:16]


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
