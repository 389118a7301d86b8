# SPDX-License-Identifier: MIT
"""Pair this host with a donor by a token, recognize a paired donor at another address, and end a pairing.

The host makes its credential itself and writes it down before it asks (`pairings`): a command that is killed at any
moment is finished by the next one with the same token, since the donor answers a repeated request in the same way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ghostbox import __version__
from ghostbox.donors import pairings, pinning, trust
from ghostbox.donors.address import parse_address
from ghostbox.donors.client import DonorClient, host_name
from ghostbox.donors.models import PairingAnswer, PairingRequest
from ghostbox.donors.pairings import Pairing
from ghostbox.donors.token import Token
from ghostbox.donors.trust import Channel
from ghostbox.errors import GhostboxError, NoAnswer, TokenRefused, Untrusted, UsageError
from ghostbox.paths import Paths

_CONNECT_TIMEOUT_S = 3.0
_ANSWER_TIMEOUT_S = 15.0
_ENDED = ("not-paired", "revoked")  # what a donor answers to a host whose pairing it does not know, or has ended


def pair(token: Token, paths: Paths) -> Pairing:
    """Pair this host with the donor that made a token; a token that this host has used already changes nothing.

    A host that is paired with the donor shows that: its leases there stay its own, under the new credential.

    Raises:
        TokenRefused: the token is unknown to the donor, was used by another host, or is too old.
        NoAnswer: the donor answers at none of the token's addresses; the same command may be repeated.
        GhostboxError: the pairing cannot be written down; then the donor was not asked.
    """
    entry = pairings.begin(paths, token)
    if not entry.is_pending:
        return entry
    request = PairingRequest(
        token_id=entry.token_id,
        secret=token.secret.hex(),
        credential_sha256=hashlib.sha256(bytes.fromhex(entry.credential)).hexdigest(),
        host=host_name(),
        host_id=pairings.host_id(paths),
        version=__version__,
    )
    former = next((each for each in pairings.load(paths) if each.fingerprint == entry.fingerprint), None)
    try:
        address, answer = _ask_as(former, token, request)
    except TokenRefused:
        pairings.drop(paths, [entry])
        raise
    return pairings.complete(paths, entry, answer, address)


def _ask_as(former: Pairing | None, token: Token, request: PairingRequest) -> tuple[str, PairingAnswer]:
    """Ask as the host of an earlier pairing, if there is one that the donor did not end; return address and answer."""
    if former is not None:
        try:
            return _ask(token.addresses, trust.to_paired(former), request)
        except Untrusted as err:
            if err.code not in _ENDED:
                raise
    return _ask(token.addresses, trust.to_be_paired(token.fingerprint.hex()), request)


def _ask(addresses: Sequence[str], channel: Channel, request: PairingRequest) -> tuple[str, PairingAnswer]:
    """Ask the donor at its addresses, one after the other; return the one that answers, and the answer."""
    errors: list[GhostboxError] = []
    times = (_ANSWER_TIMEOUT_S, _CONNECT_TIMEOUT_S)
    for address in addresses:
        try:
            with DonorClient(address, timeout_s=times[0], connect_timeout_s=times[1], channel=channel) as client:
                return str(client.address), client.pair(request)
        except (NoAnswer, UsageError) as err:
            if isinstance(err, Untrusted) and err.code is not None:
                raise  # the donor itself refuses, at each of its addresses
            errors.append(err)
    if len(errors) == 1:
        raise errors[0]
    raise NoAnswer(
        "the donor of this token answers at none of its addresses",
        why="\n".join(f"{err.message}: {err.why}" if err.why else err.message for err in errors),
        hint="see that its memserver runs, and that this host reaches it; then the same command again",
    )


def recognize(address: str, paths: Paths) -> Pairing | None:
    """Return the pairing with the donor at an address that is new to this host, and note the address; None without one.

    The donor is known by its certificate. Nothing is sent to it.
    """
    place = parse_address(address)
    known = pairings.load(paths)
    if not known or any(each.is_at(place) for each in known):
        return None
    fingerprint = pinning.fingerprint_at(place, _CONNECT_TIMEOUT_S)
    found = next((each for each in known if each.fingerprint == fingerprint), None)
    if found is not None:
        pairings.prefer(paths, found, str(place))
    return found


def unpair(gone: Sequence[Pairing], paths: Paths) -> list[str]:
    """End pairings, at the donors, too; return notes on donors that could not be told.

    Raises:
        DonorError: a donor refuses, since this host still has leases there; the pairing stays.
    """
    notes = []
    for pairing in gone:
        told = _tell(pairing)
        pairings.drop(paths, [pairing])
        if not told:
            notes.append(
                f"donor '{pairing.name}' was not told and still knows this host; on the donor:"
                f" ghostbox memserver revoke {host_name()}"
            )
    return notes


def _tell(pairing: Pairing) -> bool:
    """Tell a donor that the pairing ends; return False if it does not answer at any of its addresses."""
    channel = trust.to_paired(pairing)
    times = (_ANSWER_TIMEOUT_S, _CONNECT_TIMEOUT_S)
    for address in pairing.addresses:
        try:
            with DonorClient(address, timeout_s=times[0], connect_timeout_s=times[1], channel=channel) as client:
                client.end_pairing()
            return True
        except Untrusted as err:
            if err.code in _ENDED:
                return True
        except NoAnswer:
            continue
    return False
