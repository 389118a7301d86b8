# SPDX-License-Identifier: MIT
"""Talk to a secure donor as a host does, by httpx and real TLS, with any credential that a test chooses.

host = pair(token_text)
with host.http() as http:
    http.get("/v1/status")
"""

from __future__ import annotations

import hashlib
import json
import secrets
import ssl
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from ghostbox.donors import token
from ghostbox.donors.token import Token
from ghostbox.units import MIB
from helpers import forked, gnutls
from helpers.donor import RunningDonor


@dataclass(frozen=True)
class Host:
    """Is a host that a test has paired, or made up."""

    address: str
    client: str
    credential: str = field(repr=False)

    def http(self) -> httpx.Client:
        """Return a client that shows the host's credential."""
        return connect(self.address, {"Authorization": f"Bearer {self.client}.{self.credential}"})


def connect(address: str, headers: dict[str, str] | None = None, *, source: str | None = None) -> httpx.Client:
    """Return a client of the control API at ``host:port`` which looks at no certificate, and calls from ``source``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    way = httpx.HTTPTransport(verify=context, trust_env=False, local_address=source)
    return httpx.Client(base_url=f"https://{address}", headers=headers, transport=way, trust_env=False, timeout=30)


def request_of(given: Token, credential: str, *, host: str = "tower", **changed: Any) -> dict[str, Any]:
    """Return the body of a request to be paired."""
    digest = hashlib.sha256(bytes.fromhex(credential)).hexdigest()
    body = {"token_id": given.id.hex(), "secret": given.secret.hex(), "credential_sha256": digest}
    return {**body, "host": host, "host_id": "00" * 8, "version": "test", **changed}


def pair(text: str, *, host: str = "tower", address: str | None = None) -> Host:
    """Pair by a token's text, at its first address unless another is given."""
    given, credential = token.parse(text), secrets.token_hex(32)
    at = address or given.addresses[0]
    with connect(at) as http:
        answer = http.post("/v1/pairings", json=request_of(given, credential, host=host))
    assert answer.status_code == 201, answer.text
    return Host(at, answer.json()["client"], credential)


def fingerprint(address: str) -> bytes:
    """Return the SHA-256 of the certificate that the server at ``host:port`` shows."""
    with connect(address) as http, http.stream("GET", "/v1/version") as answer:
        shown = answer.extensions["network_stream"].get_extra_info("ssl_object").getpeercert(True)
    return hashlib.sha256(shown).digest()


def ghostbox(donor: RunningDonor, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the donor's machine, as its owner."""
    return forked.run_with(donor.env, *words, "--name", "donor")


def new_token(donor: RunningDonor, *words: str) -> str:
    """Have the donor's owner make a token, with further options, and return its text."""
    done = ghostbox(donor, "token", "create", "--json", *words)
    assert done.returncode == 0, done.stderr
    made: dict[str, str] = json.loads(done.stdout)
    return made["token"]


def lend(host: Host, name: str, size_bytes: int = MIB) -> httpx.Response:
    """Ask for a lease, as the host's VM ``ana``."""
    body = {"name": name, "size_bytes": size_bytes, "holder": {"host": "tower", "vm": "ana"}}
    with host.http() as http:
        return http.post("/v1/leases", json=body)


def nbds(donor: RunningDonor, place: Path, name: str, key: str) -> str:
    """Return the URI by which an NBD client with a key opens an export; the key's file is in ``place``."""
    keys = gnutls.key_file(place / f"{name}-{key[:8]}.psk", **{name: key})
    return f"nbds://{name}@{donor.nbd_address}/{name}?tls-psk-file={keys}"
