# SPDX-License-Identifier: MIT
"""Pair this host with a donor without a token: ask, show the code, wait until the donor's owner has decided.

    certificate seen ─► credential and nonce on disk ─► commitment sent ─► donor's nonce on disk ─► own nonce opened
      ─► code shown ─► waiting ─► approved there ─► same words on both screens? ─► paired

A command that is killed at any moment is finished by the same command: each step is on disk before the next one, and
the donor answers a repeated step in the same way. One that gives up (Ctrl-C, time is over, the user says no) takes the
request back, as far as the donor can be reached, so that its owner approves nothing that nobody waits for. Until the
end the donor has of the credential no more than the SHA-256: a program that only pretends to be the donor learns
nothing by which it could be this host elsewhere.

The user is asked at the end, too, not only the donor's owner: whoever is between could approve by itself.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from ghostbox import __version__
from ghostbox.donors import code, failures, pairing_requests, pairings, pinning, trust
from ghostbox.donors.address import Address, parse_address
from ghostbox.donors.client import DonorClient, host_name
from ghostbox.donors.models import PairingAnswer
from ghostbox.donors.pairing_requests import PairingRequestEntry
from ghostbox.donors.pairings import Pairing
from ghostbox.donors.request_models import PairingAsk
from ghostbox.errors import (
    DeadlineExceeded,
    GhostboxError,
    Interrupted,
    PairingRefused,
    Refused,
    Untrusted,
    UsageError,
)
from ghostbox.paths import Paths
from ghostbox.session.progress import Progress, Stage
from ghostbox.system import consent
from ghostbox.units import format_duration

_log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 3.0
_ANSWER_TIMEOUT_S = 15.0
_WITHDRAW_TIMEOUT_S = 3.0
_LOOK_EVERY_S = 1.0
_ENDED = ("not-paired", "revoked")  # what a donor answers to a host whose pairing it does not know, or has ended


@dataclass(frozen=True)
class Dialogue:
    """Is how the user takes part.

    ``show`` gets the donor's address and the code, before the wait. ``agrees`` asks whether both screens show it; None:
    nobody can be asked. ``timeout_s`` is how long to wait for the donor's owner.
    """

    show: Callable[[str, str], None]
    agrees: Callable[[str], bool] | None
    timeout_s: float


def wanted(address: str, paths: Paths) -> str | None:
    """Return the certificate of the donor at an address, if this host has to ask it to be paired; else None.

    It has to, if the donor speaks TLS and is not paired with this host, or does not know it any more.

    Raises:
        NoAnswer: nothing answers there.
        Untrusted: the donor serves without TLS, which the user has not agreed to.
    """
    place = parse_address(address)
    paired = pairings.at(paths, place)
    if paired is not None:
        return paired.fingerprint if _has_ended(paired, address) else None
    may_be_plain = place.is_loopback or consent.given(place.key)
    if may_be_plain and _is_plain(address):
        return None
    found = pinning.fingerprint_at(place, _CONNECT_TIMEOUT_S)
    if found is None and not may_be_plain:
        _check_reachable(place)
        raise failures.asks_in_vain(place)
    return found


def _is_plain(address: str) -> bool:
    """Tell whether a donor that may be used without TLS needs none."""
    try:
        with DonorClient(address, timeout_s=_ANSWER_TIMEOUT_S, connect_timeout_s=_CONNECT_TIMEOUT_S) as client:
            client.status()
    except Untrusted:
        return False
    except GhostboxError:
        return True  # those who use the donor say what is wrong
    return True


def _has_ended(paired: Pairing, address: str) -> bool:
    """Tell whether a donor does not know this host any more; other errors are for those who use the donor."""
    try:
        with _client(address, trust.to_paired(paired)) as client:
            client.status()
    except Untrusted as err:
        return err.code in _ENDED
    except GhostboxError:
        return False
    return False


def _check_reachable(place: Address) -> None:
    try:
        socket.create_connection((place.host, place.port), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as err:
        raise failures.unreachable(place, failures.system_reason(err) or "no answer in time") from err


def pair(address: str, fingerprint: str, paths: Paths, dialogue: Dialogue, progress: Progress) -> Pairing:
    """Ask the donor with this certificate to be paired, and wait for its owner.

    Args:
        address: where the donor is.
        fingerprint: of the certificate that it has shown there.
        paths: where the request is kept.
        dialogue: how the user takes part.
        progress: receives the wait.

    Raises:
        UsageError: nobody can be asked whether the words are the same.
        PairingRefused: the owner has denied this host, or did not decide within an hour; or too many hosts ask.
        Untrusted: the donor shows another certificate than when it was asked.
        DeadlineExceeded, Interrupted: the request is taken back, or waits at a donor that could not be told so.
        Refused: the words differ.
        NoAnswer: the donor does not answer.
    """
    if dialogue.agrees is None:
        raise UsageError(
            "whether both screens show the same words cannot be asked without a terminal",
            hint="add --yes; or pair by a token, which needs no look at screens: on the donor, ghostbox token create",
        )
    address = str(parse_address(address))
    try:
        entry = _asked(address, fingerprint, paths)
        dialogue.show(address, entry.words)
        with progress.stage("pair") as stage:
            stage.say(f"waits for the donor's owner: {entry.words}")
            answer = _answer(entry, address, paths, dialogue.timeout_s, stage)
            stage.say(f"approved by donor '{answer.name}'")
        agrees = dialogue.agrees(entry.words)
    except KeyboardInterrupt as err:
        is_back, hint = _given_up(address, paths)
        what = "the request is taken back" if is_back else "the request waits"
        raise Interrupted(f"interrupted: {what} at donor {address}", hint=hint) from err
    if not agrees:
        _withdraw(entry, address)
        pairing_requests.drop(paths, entry)
        raise Refused(
            f"the words differ: this host is not paired with donor {address}",
            why="somebody may be between this host and the donor, or you looked at another donor's screen",
            hint=f"if the donor has approved a request of this host: ghostbox memserver revoke {host_name()}, there",
        )
    made = pairings.complete(paths, entry.pairing(), answer, address)
    pairing_requests.drop(paths, entry)
    return made


def _asked(address: str, fingerprint: str, paths: Paths) -> PairingRequestEntry:
    """Return this host's request, which the donor has and whose commitment is opened."""
    before = pairing_requests.at(paths, address)
    if before is not None and before.fingerprint != fingerprint:
        pairing_requests.drop(paths, before)
        raise failures.other_certificate(parse_address(address), trust.to_ask(before.fingerprint))
    entry = pairing_requests.begin(paths, address, fingerprint)
    is_former = bool(entry.number)
    with _client(address, trust.to_ask(fingerprint)) as client:
        try:
            if not is_former:
                entry = pairing_requests.answered(paths, entry, client.ask(_first_word(entry, paths)))
            client.open(entry.number, entry.nonce)
        except Untrusted as err:
            if _is_final(err):
                pairing_requests.drop(paths, entry)
            raise
        except PairingRefused:
            pairing_requests.drop(paths, entry)
            if not is_former:
                raise
        else:
            return entry
    return _asked(address, fingerprint, paths)  # the request of an earlier command is no more: ask anew


def _first_word(entry: PairingRequestEntry, paths: Paths) -> PairingAsk:
    number = pairings.host_id(paths)
    return PairingAsk(
        commitment=code.commitment(entry.nonce, entry.credential_sha256, number),
        credential_sha256=entry.credential_sha256,
        host=host_name(),
        host_id=number,
        version=__version__,
    )


def _answer(entry: PairingRequestEntry, address: str, paths: Paths, timeout_s: float, stage: Stage) -> PairingAnswer:
    """Wait until the donor's owner has approved the request."""
    try:
        found = _wait(entry, address, timeout_s, stage)
    except (PairingRefused, Untrusted):
        pairing_requests.drop(paths, entry)
        raise
    if found is None:
        is_back, hint = _given_up(address, paths)
        raise DeadlineExceeded(
            f"the owner of donor {address} has not decided within {format_duration(timeout_s)}",
            why="the request is taken back" if is_back else "the request waits there",
            hint=hint,
        )
    return found


def _given_up(address: str, paths: Paths) -> tuple[bool, str]:
    """Take this host's request back; return whether that was done, and what to do next.

    The entry stays: the same command within a minute goes on with it, and the donor has one request of this host.
    """
    entry = pairing_requests.at(paths, address)
    if entry is None or not entry.number or _withdraw(entry, address):
        return True, f"ask again: ghostbox donor add {address}"
    return False, (
        f"it waits there for an hour: ghostbox donor add {address} goes on with it; on the donor: ghostbox memserver"
        f" approve {host_name()}, or deny"
    )


def _withdraw(entry: PairingRequestEntry, address: str) -> bool:
    """Tell the donor, if it can be told, that this host does not ask any more; return whether it was."""
    channel = trust.to_ask(entry.fingerprint, entry.number, entry.nonce)
    try:
        with DonorClient(
            address, timeout_s=_WITHDRAW_TIMEOUT_S, connect_timeout_s=_WITHDRAW_TIMEOUT_S, channel=channel
        ) as client:
            client.withdraw()
    except (GhostboxError, KeyboardInterrupt) as err:  # an impatient user interrupts this, too
        _log.debug("the request at donor %s could not be taken back: %s", address, err)
        return False
    return True


def _wait(entry: PairingRequestEntry, address: str, timeout_s: float, stage: Stage) -> PairingAnswer | None:
    """Look again and again how the request stands; return the pairing, or None if nobody decided in time.

    A donor that does not answer for a while (its memserver is started again) is asked on.
    """
    deadline = time.monotonic() + timeout_s
    with _client(address, trust.to_ask(entry.fingerprint, entry.number, entry.nonce)) as client:
        while True:
            try:
                said = client.request_state()
                stage.say(f"waits for the donor's owner: {entry.words}")
                if said.pairing is not None:
                    return said.pairing
                if said.state == "denied":
                    raise PairingRefused(
                        f"the owner of donor {address} has denied this host",
                        hint="if that was a mistake, ask again: ghostbox donor add " + address,
                    )
            except GhostboxError as err:
                if isinstance(err, PairingRefused) or _is_final(err):
                    raise
                stage.say(err.message)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            time.sleep(min(_LOOK_EVERY_S, left_s))


def _is_final(err: GhostboxError) -> bool:
    """Tell whether an error ends a request: the donor says so itself, or another certificate is there."""
    if not isinstance(err, Untrusted):
        return False
    return err.code is not None or failures.cause(err, pinning.ForeignCertificate) is not None


def _client(address: str, channel: trust.Channel) -> DonorClient:
    return DonorClient(address, timeout_s=_ANSWER_TIMEOUT_S, connect_timeout_s=_CONNECT_TIMEOUT_S, channel=channel)
