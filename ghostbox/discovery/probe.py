# SPDX-License-Identifier: MIT
"""Look at the control port of a donor that this host may know nothing of: its round trip, certificate and version.

Nothing that is learnt here is trusted: the certificate is only shown, and compared with what was announced or paired.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import time
from dataclasses import dataclass

from ghostbox.donors import pinning, trust
from ghostbox.donors.address import Address
from ghostbox.donors.client import DonorClient
from ghostbox.errors import GhostboxError

_CONNECTIONS = 3
_LONGEST_VERSION = 32


@dataclass(frozen=True)
class Shown:
    """Holds what a TLS server shows to everybody. ``version`` is empty if it tells none: it is no donor."""

    fingerprint: str
    version: str


def round_trip_us(address: Address, timeout_s: float, *, tls: bool) -> float:
    """Return the median time of three TCP connections in microseconds: one round trip each.

    With ``tls`` a handshake follows each, so that the donor does not take them for clients that speak no TLS.

    Raises:
        OSError: a connection cannot be made within ``timeout_s``.
    """
    times = []
    for _ in range(_CONNECTIONS):
        began = time.perf_counter()
        with socket.create_connection((address.host, address.port), timeout=timeout_s) as connection:
            times.append(time.perf_counter() - began)
            if tls:
                with contextlib.suppress(OSError), pinning.pinned(None).wrap_socket(connection):
                    pass
    return statistics.median(times) * 1e6


def shown_by(address: Address, timeout_s: float) -> Shown | None:
    """Return what a TLS server shows; None if nothing speaks TLS 1.3 there."""
    fingerprint = pinning.fingerprint_at(address, timeout_s)
    return None if fingerprint is None else Shown(fingerprint, _version(address, fingerprint, timeout_s))


def _version(address: Address, fingerprint: str, timeout_s: float) -> str:
    """Return the version that a donor tells to everybody, or nothing."""
    channel = trust.to_be_paired(fingerprint)
    try:
        with DonorClient(str(address), timeout_s=timeout_s, connect_timeout_s=timeout_s, channel=channel) as client:
            return client.version()[:_LONGEST_VERSION]
    except GhostboxError:
        return ""
