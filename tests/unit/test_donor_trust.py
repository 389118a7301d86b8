# SPDX-License-Identifier: MIT
"""A host talks to a paired donor over TLS, and to nobody else in its place (tests/integration has real donors)."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox import __version__, donors, paths
from ghostbox.cli.output import plain
from ghostbox.donors import Assignment, failures, pairings, trust
from ghostbox.donors.address import parse_address
from ghostbox.donors.client import DonorClient, NoAnswer
from ghostbox.donors.models import Holder, PairingAnswer
from ghostbox.donors.pairings import Pairing
from ghostbox.donors.token import Token
from ghostbox.donors.trust import Means
from ghostbox.errors import DonorError, DonorTooSmall, Untrusted
from ghostbox.system import consent
from ghostbox.units import MIB
from helpers.tls_server import TlsServer, certificate, tls_server

STATUS = {
    "name": "attic", "id": "d1", "machine": "m1", "version": __version__, "incarnation": "i", "nbd_port": 1,
    "size_bytes": MIB, "exported_bytes": 0, "free_bytes": MIB, "resident_bytes": 0, "leases": 0, "draining": False,
}  # fmt: skip
KEY = "5a" * 32
LEASE = {
    "name": "one", "export": "one", "size_bytes": MIB, "resident_bytes": 0, "incarnation": "m", "connections": 0,
    "holder": {"host": "h", "vm": "v"}, "created_at": "2026-11-29T00:00:00Z", "idle_s": 0, "tls_psk": KEY,
}  # fmt: skip
ANSWERS = {"GET /v1/status": (200, STATUS), "POST /v1/leases": (201, LEASE), "DELETE /v1/leases/one": (200, LEASE)}


@pytest.fixture
def own(ghostbox_dirs: Path, monkeypatch: pytest.MonkeyPatch) -> paths.Paths:
    monkeypatch.setattr(consent, "_rules", [])  # tests of other modules agree to donors in namespaces
    monkeypatch.setattr(failures, "_PROBE_TIMEOUT_S", 0.05)  # no server here is one for NBD, which would greet
    return paths.find()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TlsServer]:
    with tls_server(tmp_path, ANSWERS) as running:
        yield running


def paired(own: paths.Paths, address: str, fingerprint: bytes) -> Pairing:
    """Pair without asking anybody."""
    token = Token((address,), fingerprint, b"\1" * 8, b"\2" * 16)
    answer = PairingAnswer(
        client="c" * 16, donor="d1", name="attic", machine="m1", version="1", role="user", max_memory_bytes=None
    )
    return pairings.complete(own, pairings.begin(own, token), answer, address)


def refusal(address: str) -> Untrusted:
    """Return the error of a request to a donor."""
    with pytest.raises(Untrusted) as caught, DonorClient(address) as client:
        client.status()
    return caught.value


def test_a_paired_donor_is_asked_over_tls_and_knows_the_host_by_its_credential(
    own: paths.Paths, server: TlsServer
) -> None:
    pairing = paired(own, server.address, server.fingerprint)
    with DonorClient(server.address) as client:
        assert client.channel.means is Means.TLS
        assert client.status().name == "attic"
    assert [each.authorization for each in server.requests] == [f"Bearer {pairing.client}.{pairing.credential}"]


def test_an_impostor_gets_no_byte(own: paths.Paths, tmp_path: Path) -> None:
    """The certificate is compared after the handshake and before the request: the impostor sees the end at once."""
    file, key, _ = certificate(tmp_path, "impostor")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            connection, _ = listener.accept()
            try:
                with context.wrap_socket(connection, server_side=True, suppress_ragged_eofs=True) as sealed:
                    heard.append(sealed.recv(65536))
            except ConnectionError:  # the host has gone without reading what TLS sends after its handshake (tickets)
                heard.append(b"")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        paired(own, address, b"\3" * 32)
        err = refusal(address)
        thread.join(10)
    assert heard == [b""]
    assert err.message == f"donor {address} has another key than the one that this host was paired with"
    assert "nothing was sent to it" in str(err.why)
    assert "pair again: on the donor: ghostbox token create; here, paste the line" in str(err.hint)


def test_a_donor_installed_again_is_not_trusted_until_it_is_paired_again(own: paths.Paths, tmp_path: Path) -> None:
    with tls_server(tmp_path, ANSWERS) as before:
        paired(own, before.address, before.fingerprint)
        port = int(before.address.rpartition(":")[2])
    with tls_server(tmp_path, ANSWERS, port=port) as after:
        assert "has another key" in refusal(after.address).message
        assert after.requests == []
        paired(own, after.address, after.fingerprint)
        with DonorClient(after.address) as client:
            assert client.status().name == "attic"
    assert len(pairings.load(own)) == 1


def test_a_donor_with_an_older_tls_is_refused_in_words(own: paths.Paths, tmp_path: Path) -> None:
    with tls_server(tmp_path, ANSWERS, newest=ssl.TLSVersion.TLSv1_2) as old:
        paired(own, old.address, old.fingerprint)
        err = refusal(old.address)
    assert err.message.startswith(f"donor {old.address} is paired with this host, but what answers there makes no")
    assert err.why == "it does not offer TLS 1.3, and this host takes nothing older"
    assert old.requests == []


def test_a_paired_donor_without_tls_is_refused_with_the_versions_and_gets_no_credential(
    own: paths.Paths, tmp_path: Path
) -> None:
    with tls_server(tmp_path, {"GET /v1/status": (200, {**STATUS, "version": "0.0.9"})}, plain=True) as open_donor:
        paired(own, open_donor.address, open_donor.fingerprint)
        err = refusal(open_donor.address)
    assert err.message == f"donor {open_donor.address} is paired with this host, and now answers without TLS"
    assert f"donor 0.0.9, host {__version__}" in str(err.why)
    assert f"ghostbox donor forget {open_donor.address}" in str(err.hint)
    assert {each.authorization for each in open_donor.requests} == {None}


def test_a_secure_donor_asked_without_tls_says_how_to_pair(own: paths.Paths, server: TlsServer) -> None:
    err = refusal(server.address)
    assert err.message == f"donor {server.address} serves only hosts that are paired with it, and this host is not"
    ask = f"ask its owner to pair: ghostbox donor add {server.address}"
    assert err.hint == trust.ask_hint(parse_address(server.address)) == f"{ask}; or by a token: {trust.PAIR_HINT}"
    assert server.requests == []


def test_a_donor_elsewhere_is_not_asked_without_pairing_or_consent(own: paths.Paths) -> None:
    err = refusal("192.0.2.7")
    assert err.message == "donor 192.0.2.7:10810 is not paired with this host"
    ask = trust.ask_hint(parse_address("192.0.2.7"))
    assert err.hint == f"{ask}; or, on a network that you trust wholly, add --insecure"
    consent.by(lambda address: address == "192.0.2.7:10810")
    assert trust.means_of("192.0.2.7") is Means.INSECURE
    assert trust.means_of("192.0.2.8") is None
    consent.withdraw()
    assert trust.means_of("192.0.2.7") is None
    consent.give()
    assert trust.means_of("192.0.2.8") is Means.INSECURE


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "127.9.9.9:1", "127.2:7", "[::1]:10810", "localhost", "[::ffff:127.0.0.1]"]
)
def test_loopback_needs_neither(own: paths.Paths, address: str) -> None:
    assert trust.means_of(address) is Means.LOCAL


@pytest.mark.parametrize("address", ["127.0.0.1.example", "tower", "[fe80::1%lo]", "128.0.0.1"])
def test_names_and_other_addresses_are_not_loopback(own: paths.Paths, address: str) -> None:
    assert trust.means_of(address) is None


@pytest.mark.parametrize(
    ("status", "code", "message", "hint"),
    [
        (401, "not-paired", "does not know this host any more", "ask its owner to pair: ghostbox donor add "),
        (403, "revoked", "has revoked the pairing with this host", "ask its owner to pair: ghostbox donor add "),
        (403, "suspended", "has suspended this host", "on the donor: ghostbox memserver resume "),
    ],
)
def test_a_donor_that_refuses_the_host_is_an_error_with_what_mends_it(
    own: paths.Paths, server: TlsServer, status: int, code: str, message: str, hint: str
) -> None:
    paired(own, server.address, server.fingerprint)
    server.answers["GET /v1/status"] = (status, {"error": {"code": code, "message": "no", "hint": None}})
    err = refusal(server.address)
    assert err.message == f"donor {server.address} {message}"
    assert hint in str(err.hint)
    assert err.code == code


def test_over_the_limit_is_too_small_with_the_donors_figures(own: paths.Paths, server: TlsServer) -> None:
    paired(own, server.address, server.fingerprint)
    said = {"code": "over-limit", "message": "this host may have 8 MiB here", "hint": "ask its owner"}
    server.answers["POST /v1/leases"] = (507, {"error": said})
    with DonorClient(server.address) as client, pytest.raises(DonorTooSmall, match="this host may have 8 MiB here"):
        client.create_lease("one", MIB, Holder("h", "v"))


def test_another_version_is_named_where_an_answer_is_not_understood(own: paths.Paths, server: TlsServer) -> None:
    paired(own, server.address, server.fingerprint)
    server.answers |= {"GET /v1/status": (200, {"of": "the future"}), "GET /v1/version": (200, {"version": "9.1"})}
    with DonorClient(server.address) as client, pytest.raises(NoAnswer) as caught:
        client.status()
    assert caught.value.message.endswith("and this host are of versions that do not understand each other")
    assert caught.value.why == f"donor 9.1, host {__version__}"


def test_a_lease_without_a_key_is_refused_and_given_back(own: paths.Paths, server: TlsServer) -> None:
    """Otherwise a donor could have a host send its pages in the clear."""
    paired(own, server.address, server.fingerprint)
    server.answers |= {
        "POST /v1/leases": (201, {**LEASE, "tls_psk": None}),
        "GET /v1/leases/one": (200, {**LEASE, "tls_psk": None}),
    }
    with pytest.raises(Untrusted, match="gives no key for lease one: its memory would be used without TLS"):
        donors.acquire([Assignment(server.address, "one", MIB, Holder("h", "v"))])
    assert server.requests[-1].method == "DELETE"


@pytest.mark.parametrize(
    "lie",
    [
        {"export": "one?tls-psk-file=/etc/shadow"},
        {"export": "other"},
        {"name": "other"},
        {"tls_psk": f"{KEY}\nother:{KEY}"},
        {"tls_psk": "5a"},
    ],
)
def test_what_a_donor_says_of_a_lease_does_not_get_into_uris_and_files(
    own: paths.Paths, server: TlsServer, lie: dict[str, Any]
) -> None:
    paired(own, server.address, server.fingerprint)
    server.answers["POST /v1/leases"] = (201, {**LEASE, **lie})
    with DonorClient(server.address) as client, pytest.raises(NoAnswer, match="it is not a GhostBox donor"):
        client.create_lease("one", MIB, Holder("h", "v"))


def test_keys_and_credentials_are_in_no_output(own: paths.Paths, server: TlsServer) -> None:
    pairing = paired(own, server.address, server.fingerprint)
    with DonorClient(server.address) as client:
        lease = client.create_lease("one", MIB, Holder("h", "v"))
        shown = [repr(lease), repr(pairing), repr(client.channel), json.dumps(plain([lease, pairing, client.channel]))]
    assert lease.tls_psk == KEY
    for text in shown:
        assert KEY not in text
        assert pairing.credential not in text
        assert "attic" in text or "Means" in text


def test_a_damaged_file_of_pairings_is_an_error_and_never_no_pairing(own: paths.Paths, server: TlsServer) -> None:
    """Otherwise a donor that was paired could be used without TLS."""
    pairing = paired(own, server.address, server.fingerprint)
    file = own.state / "pairings.json"
    assert file.stat().st_mode & 0o777 == 0o600
    file.write_text(file.read_text()[:-20])
    with pytest.raises(Exception, match="cannot read .*pairings.json") as caught:
        DonorClient(server.address)
    assert not isinstance(caught.value, DonorError)
    assert pairing.credential not in str(caught.value)
