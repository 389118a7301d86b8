# SPDX-License-Identifier: MIT
"""Put together what a secure donor has besides: certificate, clients, tokens, requests to be paired."""

from __future__ import annotations

import ipaddress
import logging
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

import psutil

from ghostbox.memserver import certificate
from ghostbox.memserver.app import Trust
from ghostbox.memserver.clients import ClientStore, NewToken, open_store
from ghostbox.memserver.http_server import peer_text
from ghostbox.memserver.owner_api import token_text
from ghostbox.memserver.requests import RequestStore

_log = logging.getLogger(__name__)
FIRST_TOKEN_S = 600.0
"""How long the token that a memserver prints at its start can be used."""
CLIENTS = "clients.sqlite3"
"""The name of the file of clients in the state directory."""
_MOST_ADDRESSES = 8
_NETWORK = Path("/sys/class/net")


@dataclass
class Secure:
    """Holds the certificate and the store of a secure donor; ``port`` is the control port, once it is known."""

    store: ClientStore
    requests: RequestStore
    tls: ssl.SSLContext
    fingerprint: bytes
    bind: str
    port: int = 0

    @property
    def trust(self) -> Trust:
        """Return what the application needs of it."""
        return Trust(self.store, self.line, self.requests)

    def line(self, token: NewToken) -> str:
        """Return the line to paste for a new token."""
        return token_text(token, self.fingerprint, addresses(self.bind, self.port))

    def first_line(self) -> str:
        """Return the line of a new token, valid for `FIRST_TOKEN_S`.

        Raises:
            RequestRefused: the file of clients cannot be written.
        """
        return self.line(self.store.create_token(FIRST_TOKEN_S))


def open_secure(state: Path, donor_id: str, bind: str, *, trusts_network: bool = False) -> Secure:
    """Open, or make, certificate and clients of the memserver ``donor_id`` with this state directory.

    Args:
        state: the directory.
        donor_id: whose files these must be.
        bind: where the donor listens.
        trusts_network: whoever asks to be paired is paired.

    Raises:
        GhostboxError: a file of them is damaged, or cannot be read or written.
    """
    clients, file = state / CLIENTS, state / "certificate.pem"
    if file.exists() and not clients.exists():
        _log.error("%s is gone: no host is paired with this donor any more (ghostbox token create)", clients)
    store = open_store(clients, donor_id)
    try:
        found = certificate.ensure(state, donor_id)
        requests = RequestStore(store, found.fingerprint, trusts_network=trusts_network)
        return Secure(store, requests, certificate.server_context(found), found.fingerprint, bind)
    except BaseException:
        store.close()
        raise


def addresses(bind: str, port: int) -> tuple[str, ...]:
    """Return the addresses (``host:port``) by which hosts may reach a donor that listens on ``bind``.

    For a wildcard address these are the machine's own of that family, those of network cards first.
    """
    if not ipaddress.ip_address(bind).is_unspecified:
        return (peer_text(bind, port),)
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    states = psutil.net_if_stats()
    found = [
        (not (_NETWORK / name / "device").exists(), name, each.address)
        for name, each_of in psutil.net_if_addrs().items()
        for each in each_of
        if each.family == family and name in states and states[name].isup and _is_reachable(each.address)
    ]
    loopback = "::1" if ":" in bind else "127.0.0.1"
    hosts = [address for _, _, address in sorted(found)][:_MOST_ADDRESSES] or [loopback]
    return tuple(peer_text(host, port) for host in hosts)


def _is_reachable(address: str) -> bool:
    """Tell whether another machine may reach an address: link-local ones need an interface of that machine."""
    found = ipaddress.ip_address(address)
    return not (found.is_loopback or found.is_link_local)
