# SPDX-License-Identifier: MIT
"""An attacker on the way between a host and a secure donor sees no secret, and what it sends again has no effect.

tests/integration/pager/test_pager_tls.py strips STARTTLS; tests/integration/memserver/test_tls.py looks for memory.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox.donors import token
from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.units import MIB
from helpers import gnutls, secure_host
from helpers import nbd_raw as nbd
from helpers.donor import RunningDonor, running_donor
from helpers.nbd_raw import RawClient
from helpers.paired import Host, lend, new_token, pair
from helpers.recording_relay import recording_relay

PIECE_BYTES = 16


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    with running_donor(tmp_path_factory.mktemp("donor"), name="donor", secure="") as running:
        yield running


@pytest.fixture(scope="module")
def ana(donor: RunningDonor) -> Host:
    return pair(new_token(donor))


def control_port(donor: RunningDonor) -> int:
    return int(donor.address.rpartition(":")[2])


def secured(port: int, name: str, key: str) -> RawClient:
    """Return a client that has opened an export with its key."""
    client = RawClient(port)
    assert client.option(nbd.STARTTLS) == [(nbd.ACK, b"")]
    client.socket = gnutls.Session.client(client.socket, name, key)  # type: ignore[assignment]
    client.go(name)
    return client


def send(sock: socket.socket, recorded: bytes) -> None:
    """Send recorded bytes, and wait until the other end closes the connection."""
    with contextlib.suppress(ConnectionError):
        sock.sendall(recorded)
        sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(ConnectionError):
        while sock.recv(4096):
            pass


def forms(secret: bytes) -> list[bytes]:
    """Return the forms of some bytes: as they are, in hexadecimal, in base64 wherever they begin and end in it."""
    found = [secret, secret.hex().encode(), secret.hex().upper().encode()]
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        found += [encode(bytes(shift) + secret)[4 if shift else 0 : -4] for shift in range(3)]
    return found


def is_in(secret: bytes, seen: bytes) -> bool:
    pieces = [secret[at : at + PIECE_BYTES] for at in range(0, len(secret), PIECE_BYTES)]
    return any(form in seen for piece in pieces for form in forms(piece))


# --- what is seen ---


def test_an_observer_of_pairing_leasing_and_releasing_sees_no_secret(
    donor: RunningDonor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, host = token.parse(new_token(donor)), secure_host.Host(tmp_path / "host")
    for kind in ("STATE", "RUNTIME", "CACHE"):
        monkeypatch.setenv(f"GHOSTBOX_{kind}_DIR", str(host.root / kind.lower()))
    with recording_relay(control_port(donor)) as relay:
        address = f"127.0.0.1:{relay.port}"
        code, _, err = host.cli("donor", "add", "-", stdin=dataclasses.replace(given, addresses=(address,)).text())
        assert code == 0, err
        [pairing] = host.pairings()
        with DonorClient(address) as client:
            made = client.create_lease("seen", MIB, Holder("tower", "ana"))
            assert client.lease("seen").tls_psk == made.tls_psk
            client.release_lease("seen")
        assert host.cli("donor", "forget", "donor")[0] == 0
        seen = bytes(relay.seen)
    assert len(relay.sent) >= 3, "the commands' connections, and this process's"
    key = bytes.fromhex(made.tls_psk or "")
    for secret in (given.secret, bytes.fromhex(pairing["credential"]), key):
        assert len(secret) >= PIECE_BYTES
        assert not is_in(secret, seen)


@pytest.mark.parametrize("before", [b"", b"a", b"ab", b"abc"])
def test_a_secret_would_be_seen_in_each_form(before: bytes) -> None:
    secret = bytes(range(240, 256)) * 2
    for text in (base64.b64encode(before + secret), base64.urlsafe_b64encode(before + secret + b"c")):
        assert is_in(secret, b"x" + text + b"y")
    assert is_in(secret, before + secret.hex().upper().encode())
    assert not is_in(secret, before + bytes(64))


# --- what is sent again ---


def test_a_control_connection_that_is_sent_again_has_no_effect(donor: RunningDonor, ana: Host) -> None:
    assert lend(ana, "again").status_code == 201
    with recording_relay(control_port(donor)) as relay:
        with Host(f"127.0.0.1:{relay.port}", ana.client, ana.credential).http() as http:
            assert http.delete("/v1/leases/again").status_code == 204
        [recorded] = relay.sent
    assert lend(ana, "again").status_code == 201
    with socket.create_connection(("127.0.0.1", control_port(donor)), 20) as sock:
        send(sock, bytes(recorded))
    with ana.http() as http:
        assert http.get("/v1/leases/again").status_code == 200


def test_a_data_connection_that_is_sent_again_has_no_effect(donor: RunningDonor, ana: Host) -> None:
    made: dict[str, Any] = lend(ana, "data").json()
    name, key = made["export"], made["tls_psk"]
    old, new = b"old." * 1024, b"new." * 1024
    with recording_relay(donor.nbd_port) as relay, secured(relay.port, name, key) as client:
        client.write(0, old)
        recorded = bytes(relay.sent[0])
    with secured(donor.nbd_port, name, key) as client:
        assert client.read(0, len(old)) == old
        client.write(0, new)
    before_tls = 4 + 16  # the client's flags, and STARTTLS
    with RawClient(donor.nbd_port, client_flags=None) as attacker:
        attacker.socket.sendall(recorded[:before_tls])
        assert attacker.option_reply() == (nbd.STARTTLS, nbd.ACK, b"")
        send(attacker.socket, recorded[before_tls:])
    with secured(donor.nbd_port, name, key) as client:
        assert client.read(0, len(new)) == new
