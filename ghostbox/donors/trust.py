# SPDX-License-Identifier: MIT
"""Decide how this host talks to a donor: over TLS, on this machine alone, or without encryption, with consent.

paired with this host               TLS 1.3, the donor known by its certificate, this host by its credential
not paired, on loopback             plain HTTP: it does not leave this machine
not paired, consent (`consent`)     plain HTTP
not paired                          `Untrusted`: nothing is sent
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from ghostbox import paths
from ghostbox.donors import pairings
from ghostbox.donors.address import Address, parse_address
from ghostbox.donors.pairings import Pairing
from ghostbox.errors import DonorError, Untrusted, UsageError
from ghostbox.system import consent

PAIR_HINT = "on the donor: ghostbox token create; here, paste the line that it prints: ghostbox donor add TOKEN"


class Means(enum.StrEnum):
    """Names how a host and a donor talk. ``LOCAL``: in the clear, on this machine; ``INSECURE``: over a network."""

    TLS = "tls"
    LOCAL = "local"
    INSECURE = "insecure"


@dataclass(frozen=True)
class Channel:
    """Describes how to talk to a donor; with TLS ``fingerprint`` is the SHA-256 of the donor's certificate.

    ``authorization`` is the header by which the donor knows this host; it is empty before they are paired. ``asking``:
    the host asks to be paired, and the certificate is the one that it has seen when it began.
    """

    means: Means
    fingerprint: str = ""
    authorization: str = field(default="", repr=False, metadata={"secret": True})
    asking: bool = False

    @property
    def is_tls(self) -> bool:
        """Tell whether the channel is encrypted."""
        return self.means is Means.TLS


def channel_to(address: Address) -> Channel:
    """Return how to talk to the donor at an address.

    Raises:
        Untrusted: the donor is not paired with this host, is not on this machine, and the user has not agreed.
        GhostboxError: the file with the pairings cannot be read.
    """
    pairing = pairings.at(paths.find(), address)
    if pairing is not None:
        return to_paired(pairing)
    if address.is_loopback:
        return Channel(Means.LOCAL)
    if consent.given(address.key):
        return Channel(Means.INSECURE)
    raise not_paired(address)


def to_paired(pairing: Pairing) -> Channel:
    """Return how to talk to a donor that this host is paired with."""
    return Channel(Means.TLS, pairing.fingerprint, f"Bearer {pairing.client}.{pairing.credential}")


def to_be_paired(fingerprint: str) -> Channel:
    """Return how to ask the donor with this certificate for a pairing."""
    return Channel(Means.TLS, fingerprint)


def to_ask(fingerprint: str, number: str = "", nonce: str = "") -> Channel:
    """Return how to ask a donor to be paired without a token; ``number`` and ``nonce`` show whose request it is."""
    return Channel(Means.TLS, fingerprint, f"Bearer {number}.{nonce}" if number else "", asking=True)


def ask_hint(address: Address) -> str:
    """Return what to do about a donor that is not, or not any more, paired with this host: one command mends it."""
    return f"ask its owner to pair: ghostbox donor add {address}; or by a token: {PAIR_HINT}"


def not_paired(address: Address) -> Untrusted:
    """Return the error for a donor that is not paired with this host."""
    return Untrusted(
        f"donor {address} is not paired with this host",
        why="what is sent to it would be neither encrypted nor protected",
        hint=f"{ask_hint(address)}; or, on a network that you trust wholly, add --insecure",
    )


def means_of(address: str) -> Means | None:
    """Return how this host talks to the donor at ``address``; None if it may not, or ``address`` is none."""
    try:
        return channel_to(parse_address(address)).means
    except (UsageError, DonorError):
        return None


def means_of_uri(uri: str) -> Means:
    """Return how the bytes of an export go, given its NBD URI."""
    parts = urlsplit(uri)
    if parts.scheme == "nbds":
        return Means.TLS
    host = parts.hostname
    return Means.LOCAL if host is None or Address(host.replace("%25", "%")).is_loopback else Means.INSECURE
