# SPDX-License-Identifier: MIT
"""A secure donor over its ports: who is let in, who is not, and what each of them learns."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ghostbox.donors import token
from ghostbox.memserver import audit
from ghostbox.memserver.access import OPEN
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers import outside, paired
from helpers.donor import RunningDonor, running_donor
from helpers.nbd import read_export, write_export
from helpers.paired import Host, connect, ghostbox, lend, nbds, new_token, pair, request_of

NOT_PAIRED = {
    "error": {
        "code": "not-paired",
        "message": "this host is not paired with this donor",
        "hint": "pair this host: here, ghostbox donor add with the donor's name or address, which its owner approves;"
        " or on the donor, ghostbox token create, and here, ghostbox donor add with what that prints",
    }
}


@pytest.fixture
def donor(tmp_path: Path) -> Iterator[RunningDonor]:
    with running_donor(tmp_path, secure="") as running:
        yield running


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


# --- pairing and leases ---


def test_a_host_that_is_paired_by_a_token_leases_memory_with_a_key(donor: RunningDonor, tmp_path: Path) -> None:
    text = new_token(donor)
    assert paired.fingerprint(donor.address) == token.parse(text).fingerprint
    host = pair(text)
    made = lend(host, "one", 4 * MIB)
    assert made.status_code == 201
    key = made.json()["tls_psk"]
    assert re.fullmatch(r"[0-9a-f]{64}", key)
    with host.http() as http:
        assert http.get("/v1/leases/one").json()["tls_psk"] == key
        assert http.get("/v1/leases").json()[0]["tls_psk"] is None
        assert http.get("/v1/status").headers["GhostBox-Donor"]
    content = os.urandom(4 * MIB)
    (tmp_path / "in").write_bytes(content)
    at = nbds(donor, tmp_path, "one", key)
    write_export(at, tmp_path / "in")
    assert read_export(at, tmp_path / "out") == content
    plain = subprocess.run(["nbdinfo", donor.uri("one")], capture_output=True, text=True, check=False, timeout=60)
    assert plain.returncode != 0
    wrong = nbds(donor, tmp_path, "one", "00" * 32)
    assert subprocess.run(["nbdinfo", wrong], capture_output=True, check=False, timeout=60).returncode != 0


def test_the_key_stays_when_control_plane_and_data_plane_are_started_again(donor: RunningDonor, tmp_path: Path) -> None:
    host = pair(new_token(donor))
    key = lend(host, "one").json()["tls_psk"]
    at = nbds(donor, tmp_path, "one", key)
    (tmp_path / "in").write_bytes(os.urandom(MIB))
    write_export(at, tmp_path / "in")
    donor.kill_control_plane()
    donor.restart()
    assert donor.ready["adopted"]
    assert read_export(at, tmp_path / "out") == (tmp_path / "in").read_bytes()
    with host.http() as http:
        assert http.get("/v1/leases/one").json()["tls_psk"] == key
    os.kill(donor.data_plane_pid, 9)
    donor.wait_for_log("restarted with empty memory; 1 leases lost their content")
    assert read_export(at, tmp_path / "out") == bytes(MIB)
    with host.http() as http:
        assert http.get("/v1/leases/one").json()["tls_psk"] == key


def test_a_repeated_request_to_be_paired_has_the_same_answer(donor: RunningDonor) -> None:
    given, credential = token.parse(new_token(donor)), secrets.token_hex(32)
    with connect(donor.address) as http:
        answers = [http.post("/v1/pairings", json=request_of(given, credential)) for _ in range(2)]
        other = http.post("/v1/pairings", json=request_of(given, secrets.token_hex(32)))
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    assert code_of(other) == (403, "token-used")


def test_forged_revoked_and_expired_tokens_are_refused(donor: RunningDonor) -> None:
    given = token.parse(new_token(donor))
    short = token.parse(new_token(donor, "--expires", "1ms", "--role", "guest"))
    credential = secrets.token_hex(32)
    with connect(donor.address) as http:
        forged = http.post("/v1/pairings", json=request_of(given, credential, secret="00" * 16))
        assert code_of(forged) == (403, "token-unknown")
        assert code_of(http.post("/v1/pairings", json=request_of(short, credential))) == (403, "token-expired")
        listed = {each["id"]: each["state"] for each in json.loads(ghostbox(donor, "token", "list", "--json").stdout)}
        assert listed == {given.id.hex(): "open", short.id.hex(): "expired"}
        assert ghostbox(donor, "token", "revoke", given.id.hex(), "--output", "json").returncode == 0
        gone = http.post("/v1/pairings", json=request_of(given, credential))
        assert code_of(gone) == (403, "token-unknown")
        assert "GhostBox-Donor" not in gone.headers
    again = ghostbox(donor, "token", "revoke", given.id.hex())
    assert again.returncode == 4
    assert f"error: no token '{given.id.hex()}'" in again.stderr


def test_a_host_that_tries_too_often_is_refused_before_its_token_is_looked_at(donor: RunningDonor) -> None:
    given = token.parse(new_token(donor))
    with connect(donor.address) as http:
        for _ in range(10):
            wrong = http.post("/v1/pairings", json=request_of(given, "00" * 32, secret="00" * 16))
            assert code_of(wrong) == (403, "token-unknown")
        assert code_of(http.post("/v1/pairings", json=request_of(given, "00" * 32))) == (429, "too-many")


def test_leases_of_one_client_are_nothing_that_another_learns_of(donor: RunningDonor) -> None:
    ana, ben = pair(new_token(donor)), pair(new_token(donor), host="attic")
    lend(ana, "one")
    with ben.http() as http:
        never, held = http.get("/v1/leases/never"), http.get("/v1/leases/one")
        assert code_of(never) == code_of(held) == (404, "not-found")
        assert held.json()["error"]["message"] == "no lease named 'one'"
        assert code_of(http.delete("/v1/leases/one?force=true")) == (404, "not-found")
        assert http.get("/v1/leases").json() == []
    taken = lend(ben, "one")
    assert code_of(taken) == (409, "exists")
    assert taken.json()["error"]["message"] == "a lease named 'one' exists"
    with ana.http() as http:
        assert [lease["name"] for lease in http.get("/v1/leases").json()] == ["one"]
        assert http.delete("/v1/leases/one").status_code == 204


def test_a_client_leases_no_more_than_its_limit(donor: RunningDonor) -> None:
    host = pair(new_token(donor, "--max-memory", "8M"))
    assert lend(host, "one", 5 * MIB).status_code == 201
    with host.http() as http:
        assert http.get("/v1/status").json()["free_bytes"] == 3 * MIB
    over = lend(host, "two", 4 * MIB)
    assert code_of(over) == (507, "over-limit")
    said = over.json()["error"]["message"]
    assert said == "lease 'two': 4 MiB asked; this host may lease 8 MiB here, 5 MiB of that is leased"
    assert lend(host, "two", 3 * MIB).status_code == 201
    assert ("lease-refused", "over-limit") in [
        (entry.event, entry.code) for entry in audit.read(audit.path(donor.state_dir))
    ]


def test_a_host_ends_its_pairing_once_it_holds_no_lease(donor: RunningDonor) -> None:
    host = pair(new_token(donor))
    lend(host, "one")
    with host.http() as http:
        assert code_of(http.delete("/v1/pairings/self")) == (409, "busy")
        http.delete("/v1/leases/one")
        assert http.delete("/v1/pairings/self").status_code == 204
        assert code_of(http.get("/v1/status")) == (401, "not-paired")


def test_drains_are_the_owners_alone(donor: RunningDonor) -> None:
    host = pair(new_token(donor))
    lend(host, "one")
    with host.http() as http:
        for method in ("PUT", "DELETE"):
            assert code_of(http.request(method, "/v1/drain")) == (403, "owner-only")
        assert code_of(http.post("/v1/tokens", json={})) == (403, "owner-only")
        assert code_of(http.get("/v1/clients")) == (403, "owner-only")
    done = ghostbox(donor, "memserver", "drain", "--timeout", "100ms")
    assert done.returncode == 124
    assert "1 leases are still held" in done.stderr
    assert "one: 1 MiB, held by tower/ana" in done.stderr
    with host.http() as http:
        assert http.get("/v1/status").json()["drain_causes"] == ["asked"]
    assert ghostbox(donor, "memserver", "drain", "--undo").returncode == 0


# --- the view from outside ---


BAD_CREDENTIALS = {
    "none": {},
    "unknown": {"Authorization": f"Bearer {'0' * 16}.{'0' * 64}"},
    "malformed": {"Authorization": "Bearer x"},
    "basic": {"Authorization": "Basic dXNlcjpwYXNz"},
}


@pytest.mark.parametrize("credential", BAD_CREDENTIALS)
def test_whatever_an_unpaired_host_asks_for_it_learns_the_version_and_nothing_else(
    donor: RunningDonor, tmp_path: Path, credential: str
) -> None:
    with connect(donor.address, BAD_CREDENTIALS[credential]) as http:
        for method, path in map(str.split, outside.routes(tmp_path)):
            answer = http.request(method, path)
            assert "GhostBox-Donor" not in answer.headers
            if (method, path) == ("GET", "/v1/version"):
                assert list(answer.json()) == ["version"]
            elif path == "/v1/pairing-requests/self" and method in ("GET", "DELETE"):
                assert code_of(answer) == (404, "request-unknown")
            elif (method, path) in OPEN:
                assert code_of(answer) == (422, "invalid")
            else:
                assert (answer.status_code, answer.json()) == (401, NOT_PAIRED), (method, path)


def test_a_wrong_credential_of_a_client_is_none(donor: RunningDonor) -> None:
    host = pair(new_token(donor))
    with Host(host.address, host.client, "0" * 64).http() as http:
        answer = http.get("/v1/status")
    assert (answer.status_code, answer.json()) == (401, NOT_PAIRED)


@pytest.mark.parametrize(("way", "reason"), [("plain", "HTTP_REQUEST"), ("TLS 1.2", "UNSUPPORTED_PROTOCOL")])
def test_plain_http_and_tls_1_2_get_no_answer_and_are_written_down(donor: RunningDonor, way: str, reason: str) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    scheme = "http" if way == "plain" else "https"
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{scheme}://{donor.address}/v1/version", verify=old, trust_env=False)

    def reasons() -> list[str | None]:
        return [entry.reason for entry in audit.read(audit.path(donor.state_dir)) if entry.code == "no-tls"]

    processes.wait_until(lambda: bool(reasons()), timeout_s=20, what="the line of the audit log")
    assert reasons() == [f"no TLS 1.3: {reason}"]


def test_connections_that_never_shake_hands_are_bounded(tmp_path: Path) -> None:
    bounds = ("prlimit", "--nofile=80:80")  # the limit leaves 16 connections
    with running_donor(tmp_path, secure="", prefix=bounds) as donor:
        host, _, port = donor.address.rpartition(":")
        sockets = [socket.create_connection((host, int(port))) for _ in range(20)]
        donor.wait_for_log("control API: refused a connection, 16 are open")
        for each in sockets:
            each.close()
        processes.wait_until(lambda: _answers(donor.address), timeout_s=20, what="room for another connection")


def _answers(address: str) -> bool:
    try:
        with connect(address) as http:
            return http.get("/v1/version").status_code == 200
    except httpx.TransportError:
        return False
