# SPDX-License-Identifier: MIT
"""Keep the donors that this host is paired with, and the host's own id, in the state directory.

``pairings.json`` holds credentials, and is readable by its owner alone. An entry is written before a donor is asked for
the pairing (`begin`), with the credential that the host has made; it is ``pending`` until the donor has answered
(`complete`). So a command that is killed in between leaves nothing that the same token cannot finish.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter

from ghostbox.donors.address import Address, parse_address
from ghostbox.donors.models import PairingAnswer
from ghostbox.donors.token import Token
from ghostbox.errors import GhostboxError, UsageError, hint_for
from ghostbox.paths import Paths, make_directory
from ghostbox.system import locks, state_files
from ghostbox.system.documents import Part
from ghostbox.system.state_files import ListFile

_CREDENTIAL_BYTES = 32
_ID_BYTES = 8


@dataclass(frozen=True)
class Pairing(Part):
    """Describes a donor that this host is paired with.

    ``addresses`` are those of its control API, the last good one first; ``fingerprint`` is the SHA-256 of its
    certificate, ``client`` this host's id at the donor (empty while the pairing is pending), ``credential`` what this
    host shows to it. ``donor`` is the memserver's id. ``token_id`` is the token that made the pairing.
    """

    addresses: tuple[str, ...]
    fingerprint: str
    token_id: str
    credential: str = field(repr=False, metadata={"secret": True})
    client: str = ""
    donor: str = ""
    name: str = ""
    machine: str = ""
    version: str = ""
    role: str = ""
    max_memory_bytes: int | None = None
    paired_at: str = ""

    @property
    def is_pending(self) -> bool:
        """Tell whether the donor has not answered yet."""
        return not self.client

    def is_at(self, address: Address) -> bool:
        """Tell whether the donor was reached at an address."""
        return any(parse_address(each).key == address.key for each in self.addresses)


_LISTED = TypeAdapter(tuple[Pairing, ...])


def load(paths: Paths) -> tuple[Pairing, ...]:
    """Return the donors that this host is paired with.

    Raises:
        GhostboxError: the file cannot be read or makes no sense.
    """
    return tuple(each for each in _file(paths).load() if not each.is_pending)


def at(paths: Paths, address: Address) -> Pairing | None:
    """Return the pairing with the donor at an address; the newest, if several donors have been there.

    Raises:
        GhostboxError: the file cannot be read or makes no sense.
    """
    return next((each for each in load(paths) if each.is_at(address)), None)


def meant(paths: Paths, word: str) -> tuple[Pairing, ...]:
    """Return the pairings that a user's word means: the address of a donor, or its name."""
    try:
        address = parse_address(word)
    except UsageError:
        address = None
    return tuple(each for each in load(paths) if each.name == word or (address is not None and each.is_at(address)))


def begin(paths: Paths, token: Token) -> Pairing:
    """Return the pairing that a token is to make, or has made; a new one is written, as pending.

    Raises:
        GhostboxError: the file cannot be read or written.
    """
    fingerprint, token_id = token.fingerprint.hex(), token.id.hex()
    new = Pairing(token.addresses, fingerprint, token_id, secrets.token_hex(_CREDENTIAL_BYTES))
    found = new

    def changed(known: Sequence[Pairing]) -> list[Pairing]:
        nonlocal found
        same = [each for each in known if (each.fingerprint, each.token_id) == (fingerprint, token_id)]
        found = same[0] if same else new
        # A pending pairing of another token with this donor will not be finished.
        kept = [each for each in known if not (each.is_pending and each.fingerprint == fingerprint)]
        return list(known) if same else [new, *kept]

    _change(paths, changed)
    return found


def complete(paths: Paths, pending: Pairing, answer: PairingAnswer, address: str) -> Pairing:
    """Write down what a donor has answered at ``address``; earlier pairings with the donor are forgotten.

    A donor that was installed again has another certificate and another id: its name and its address tell.
    """
    made = replace(
        pending,
        addresses=(address,),
        client=answer.client,
        donor=answer.donor,
        name=answer.name,
        machine=answer.machine,
        version=answer.version,
        role=answer.role,
        max_memory_bytes=answer.max_memory_bytes,
        paired_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )

    def is_former(each: Pairing) -> bool:
        installed_again = not each.is_pending and each.name == made.name and each.is_at(parse_address(address))
        return each.fingerprint == made.fingerprint or installed_again

    _change(paths, lambda known: [made, *(each for each in known if not is_former(each))])
    return made


def drop(paths: Paths, gone: Sequence[Pairing]) -> None:
    """Strike pairings out."""
    keys = {(each.fingerprint, each.token_id) for each in gone}
    _change(paths, lambda known: [each for each in known if (each.fingerprint, each.token_id) not in keys])


def prefer(paths: Paths, pairing: Pairing, address: str) -> None:
    """Note the address at which a donor was found; it becomes the first of the donor's addresses."""

    def changed(known: Sequence[Pairing]) -> list[Pairing]:
        found = [each for each in known if each.fingerprint == pairing.fingerprint]
        key = parse_address(address).key
        moved = [
            replace(each, addresses=(address, *(other for other in each.addresses if parse_address(other).key != key)))
            for each in found
        ]
        return [*moved, *(each for each in known if each not in found)]

    _change(paths, changed)


def host_id(paths: Paths) -> str:
    """Return the random id of this host, hexadecimal; it is made once, and kept over pairings.

    Raises:
        GhostboxError: the file cannot be read or written.
    """
    file = paths.state / "host-id"
    try:
        make_directory(file.parent)
        with locks.held(file.with_suffix(".lock"), wait=True):
            return _read_id(file) or _make_id(file)
    except OSError as err:
        raise GhostboxError(f"cannot keep the id of this host in {file}: {err.strerror}", hint=hint_for(err)) from err


def _read_id(file: Path) -> str | None:
    """Return the id in a file; None if the file does not exist, or has no id."""
    try:
        found = file.read_text(encoding="ascii").strip()
    except (FileNotFoundError, UnicodeDecodeError):
        return None
    is_id = len(found) == 2 * _ID_BYTES and set(found) <= set("0123456789abcdef")
    return found if is_id else None


def _make_id(file: Path) -> str:
    made = secrets.token_hex(_ID_BYTES)
    state_files.replace(file, f"{made}\n".encode())
    return made


def _change(paths: Paths, changed: Callable[[Sequence[Pairing]], Sequence[Pairing]]) -> None:
    _file(paths).change(changed)


def _file(paths: Paths) -> ListFile[Pairing]:
    path = paths.state / "pairings.json"
    mend = f"mend the file, or rm {path} and pair again: ghostbox donor add TOKEN, with a new token of each donor"
    return ListFile(path, "pairings", _LISTED, mend)
