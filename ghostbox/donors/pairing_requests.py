# SPDX-License-Identifier: MIT
"""Keep what this host needs to go on with requests to be paired: ``pairing-requests.json`` in the state directory.

The file holds credentials and nonces, and is readable by its owner alone. An entry is written before the donor is
asked, with the credential and the nonce that the host has drawn, and again with the donor's answer, before the
commitment is opened. So a command that is killed in between is finished by the next one. The entry goes with the
pairing, or with the donor's refusal. Donors are told apart by their certificates.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pydantic import TypeAdapter

from ghostbox.donors import code
from ghostbox.donors.address import parse_address
from ghostbox.donors.pairings import Pairing
from ghostbox.donors.request_models import PairingAsked
from ghostbox.paths import Paths
from ghostbox.system.documents import Part
from ghostbox.system.state_files import ListFile

_CREDENTIAL_BYTES = 32


@dataclass(frozen=True)
class PairingRequestEntry(Part):
    """Describes a request of this host.

    ``fingerprint`` is the SHA-256 of the certificate that the donor at ``address`` has shown; ``number`` and
    ``donor_nonce`` are the donor's answer, empty before it.
    """

    address: str
    fingerprint: str
    credential: str = field(repr=False, metadata={"secret": True})
    nonce: str = field(repr=False, metadata={"secret": True})
    number: str = ""
    donor_nonce: str = ""

    @property
    def credential_sha256(self) -> str:
        """Return what the donor gets of the credential."""
        return code.digest(self.credential)

    @property
    def words(self) -> str:
        """Return the code, which this host shows once the donor has answered."""
        return code.words(self.fingerprint, self.credential_sha256, self.nonce, self.donor_nonce)

    def pairing(self) -> Pairing:
        """Return the pairing that the request is to become, as pending."""
        return Pairing((self.address,), self.fingerprint, self.number, self.credential)


_LISTED = TypeAdapter(tuple[PairingRequestEntry, ...])


def load(paths: Paths) -> tuple[PairingRequestEntry, ...]:
    """Return the requests that are not finished.

    Raises:
        GhostboxError: the file cannot be read or makes no sense.
    """
    return _file(paths).load()


def at(paths: Paths, address: str) -> PairingRequestEntry | None:
    """Return the request to the donor at an address."""
    key = parse_address(address).key
    return next((each for each in load(paths) if parse_address(each.address).key == key), None)


def begin(paths: Paths, address: str, fingerprint: str) -> PairingRequestEntry:
    """Return the request to the donor with this certificate; a new one is written, with a credential and a nonce."""
    drawn = (secrets.token_hex(_CREDENTIAL_BYTES), secrets.token_hex(code.NONCE_BYTES))
    found = PairingRequestEntry(address, fingerprint, *drawn)

    def changed(known: Sequence[PairingRequestEntry]) -> list[PairingRequestEntry]:
        nonlocal found
        same = [each for each in known if each.fingerprint == fingerprint]
        found = same[0] if same else found
        return list(known) if same else [found, *known]

    _file(paths).change(changed)
    return found


def answered(paths: Paths, entry: PairingRequestEntry, answer: PairingAsked) -> PairingRequestEntry:
    """Write the donor's answer down; from now on its nonce is fixed, and the host may open its own."""
    now = replace(entry, number=answer.id, donor_nonce=answer.nonce)
    _file(paths).change(lambda known: [now, *(each for each in known if each.fingerprint != entry.fingerprint)])
    return now


def drop(paths: Paths, entry: PairingRequestEntry) -> None:
    """Strike a request out."""
    _file(paths).change(lambda known: [each for each in known if each.fingerprint != entry.fingerprint])


def _file(paths: Paths) -> ListFile[PairingRequestEntry]:
    path = paths.state / "pairing-requests.json"
    return ListFile(path, "requests", _LISTED, f"the file only holds requests that wait for donors: rm {path}")
