# SPDX-License-Identifier: MIT
"""Put into words why a donor cannot be used: unreachable, no donor, another donor, not paired, another version.

A message of TLS or of the HTTP library never reaches the user: it is the cause of the error, and ``-vv`` shows it.
"""

from __future__ import annotations

import socket
import ssl
from typing import TypeVar

from ghostbox import __version__
from ghostbox.donors.address import CONTROL_PORT, Address
from ghostbox.donors.models import ErrorDetail
from ghostbox.donors.trust import PAIR_HINT, Channel, ask_hint
from ghostbox.errors import (
    DonorError,
    DonorTooSmall,
    GhostboxError,
    LeaseExists,
    NoAnswer,
    NotFound,
    PairingRefused,
    TokenRefused,
    Untrusted,
)

_NBD_GREETING = b"NBDMAGIC"  # NBD specification, "fixed newstyle negotiation"
_PROBE_TIMEOUT_S = 1.0
_OLD_TLS = frozenset({"TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "WRONG_SSL_VERSION"})

E = TypeVar("E", bound=BaseException)


def cause(err: BaseException, kind: type[E]) -> E | None:
    """Return the first error of a kind among an error and its causes."""
    found: BaseException | None = err
    while found is not None and not isinstance(found, kind):
        found = found.__cause__ or found.__context__
    return found


def unreachable(address: Address, why: str) -> NoAnswer:
    """Return the error for an address that takes no connection."""
    return NoAnswer(
        f"cannot reach donor {address}",
        why=why,
        hint="start a memserver there: ghostbox memserver, with --bind on an address that this host reaches",
    )


def silent(address: Address) -> NoAnswer:
    """Return the error for a donor that takes a request and does not answer."""
    return NoAnswer(
        f"donor {address} took the connection and did not answer in time",
        hint="the memserver there may hang: see its log, or its terminal",
    )


def no_donor(address: Address, why: str) -> NoAnswer:
    """Return the error for a server that is no donor."""
    return NoAnswer(
        f"something answers at {address}, but it is not a GhostBox donor",
        why=why,
        hint=f"check the port: a donor's control API is usually at {CONTROL_PORT}",
    )


def nbd_server(address: Address) -> NoAnswer:
    """Return the error for the port of a donor's NBD server."""
    return NoAnswer(
        f"{address} is an NBD server, not a donor's control API",
        hint=f"give the control port, usually {CONTROL_PORT}: {address.url_host}:{CONTROL_PORT}",
    )


def wants_tls(address: Address) -> Untrusted:
    """Return the error for a donor that serves paired hosts alone, asked by a host that is not paired."""
    return Untrusted(
        f"donor {address} serves only hosts that are paired with it, and this host is not",
        hint=ask_hint(address),
    )


def other_certificate(address: Address, channel: Channel) -> Untrusted:
    """Return the error for a server with another key than the donor's, with which the host wanted to talk."""
    if channel.asking:
        return Untrusted(
            f"donor {address} shows another certificate than when this host asked to be paired",
            why="it was installed again, another machine has its address, or somebody is on the way between; the"
            " request is given up",
            hint=f"look at the donor itself, and ask again: ghostbox donor add {address}",
        )
    if not channel.authorization:
        return Untrusted(
            f"the memserver at {address} is not the one that made the token: it has another key",
            why="nothing was sent to it",
            hint="paste the line of the memserver that runs there now: ghostbox token create prints a new one",
        )
    return Untrusted(
        f"donor {address} has another key than the one that this host was paired with",
        why="it was installed again, or another machine has its address, or somebody is on the way between;"
        " nothing was sent to it",
        hint=f"if it was installed again, pair again: {PAIR_HINT}",
    )


def tls_failed(address: Address, err: ssl.SSLError) -> Untrusted:
    """Return the error for a server that does TLS, but not in a way that this host takes."""
    if err.reason in _OLD_TLS:
        why = "it does not offer TLS 1.3, and this host takes nothing older"
    else:
        why = "it speaks neither TLS 1.3 nor the donors' API, or the connection was cut while it began"
    return Untrusted(
        f"donor {address} is paired with this host, but what answers there makes no secure connection",
        why=why,
        hint=f"see that a memserver listens there, of this version ({__version__}), and nothing is on the way between",
    )


def plain_there(address: Address, version: str) -> Untrusted:
    """Return the error for a paired donor that now answers without TLS; ``version`` is what it says of itself."""
    return Untrusted(
        f"donor {address} is paired with this host, and now answers without TLS",
        why=f"its memserver was started with --insecure, or is too old to know pairings: {_versions(version)}",
        hint="start the memserver there without --insecure (on loopback: with --secure); or, to use it without TLS:"
        f" ghostbox donor forget {address}, then --insecure",
    )


def skewed(address: Address, version: str) -> NoAnswer:
    """Return the error for a donor of another version, whose answers this host does not understand."""
    return NoAnswer(
        f"donor {address} and this host are of versions that do not understand each other",
        why=_versions(version),
        hint="install one version of GhostBox on both machines",
    )


def asks_in_vain(address: Address) -> Untrusted:
    """Return the error for a donor that serves without TLS, and so pairs with nobody."""
    return Untrusted(
        f"donor {address} is not paired with this host, and serves without TLS: it pairs with nobody",
        why="what is sent to it would be neither encrypted nor protected",
        hint=f"{PAIR_HINT}; or, on a network that you trust wholly, add --insecure",
    )


def _versions(theirs: str) -> str:
    return f"donor {theirs}, host {__version__}"


def refusal(address: Address, said: ErrorDetail, own_name: str) -> GhostboxError:
    """Return the error for a donor's refusal; ``own_name`` is this host's name, which the donor's owner knows."""
    distrust = _distrust(address, said.code, own_name)
    if distrust is not None:
        distrust.code = said.code
        return distrust
    message, hint = f"donor {address}: {said.message}", said.hint
    if said.code == "exists":
        return LeaseExists(message, hint=hint)
    if said.code in ("too-small", "over-limit"):
        return DonorTooSmall(message, hint=hint)
    if said.code in ("not-found", "unknown-route"):
        return NotFound(message, hint=hint or f"ghostbox donor leases {address}")
    if said.code.startswith("request-"):
        return PairingRefused(message, hint=hint)
    if said.code == "unavailable":
        return NoAnswer(message, hint=hint)
    if said.code.startswith("token-"):
        return TokenRefused(message, hint=hint or f"a new token is made there: {PAIR_HINT}")
    return DonorError(message, hint=hint)


def _distrust(address: Address, code: str, own_name: str) -> Untrusted | None:
    if code == "not-paired":
        return Untrusted(f"donor {address} does not know this host any more", hint=ask_hint(address))
    if code == "revoked":
        why = "the memory that it lent to this host is gone"
        return Untrusted(
            f"donor {address} has revoked the pairing with this host",
            why=why,
            hint=ask_hint(address),
        )
    if code == "suspended":
        return Untrusted(
            f"donor {address} has suspended this host",
            hint=f"its owner lets the host in again by, on the donor: ghostbox memserver resume {own_name}",
        )
    return None


def system_reason(err: BaseException) -> str:
    """Return the system's reason for a failed connection: "Connection refused", "Name or service not known"."""
    found: BaseException | None = err
    while found is not None:
        if isinstance(found, socket.gaierror):
            return f"the name cannot be resolved: {found.strerror}"
        if isinstance(found, OSError) and found.strerror:
            refused = isinstance(found, ConnectionRefusedError)
            return "connection refused: nothing listens on that port" if refused else found.strerror.lower()
        found = found.__cause__ or found.__context__
    return str(err)


def greets_as_nbd(address: Address) -> bool:
    """Tell whether an NBD server listens at an address: it sends its greeting first."""
    try:
        with socket.create_connection((address.host, address.port), timeout=_PROBE_TIMEOUT_S) as sock:
            return sock.recv(len(_NBD_GREETING), socket.MSG_WAITALL) == _NBD_GREETING
    except OSError:
        return False
