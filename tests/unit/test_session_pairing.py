# SPDX-License-Identifier: MIT
"""Pairing by a token survives lost answers and kills; what a host knows of a donor follows it to another address."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox import __version__, paths
from ghostbox.donors import failures, pairings
from ghostbox.donors.address import parse_address
from ghostbox.donors.client import NoAnswer
from ghostbox.donors.token import Token
from ghostbox.errors import DonorError, TokenRefused, Untrusted
from ghostbox.session import pairing
from helpers.tls_server import Answer, Seen, TlsServer, tls_server

CLIENT = "0123456789abcdef"
PAIRED = {
    "client": CLIENT, "donor": "d1", "name": "attic", "machine": "m1", "version": __version__, "role": "user",
    "max_memory_bytes": 4096,
}  # fmt: skip


@pytest.fixture
def own(ghostbox_dirs: Path, monkeypatch: pytest.MonkeyPatch) -> paths.Paths:
    monkeypatch.setattr(failures, "_PROBE_TIMEOUT_S", 0.05)  # no server here is one for NBD, which would greet
    return paths.find()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TlsServer]:
    with tls_server(tmp_path, {"POST /v1/pairings": (201, PAIRED)}) as running:
        yield running


def token_of(server: TlsServer, *before: str, number: int = 1) -> Token:
    return Token((*before, server.address), server.fingerprint, bytes([number]) * 8, b"\7" * 16)


def refused(code: str) -> Answer:
    return 429 if code == "too-many" else 403, {"error": {"code": code, "message": f"the {code} text", "hint": None}}


def stored(own: paths.Paths) -> list[dict[str, Any]]:
    return list(json.loads((own.state / "pairings.json").read_text())["pairings"])


def test_the_donor_gets_a_digest_and_the_host_keeps_the_credential(own: paths.Paths, server: TlsServer) -> None:
    made = pairing.pair(token_of(server), own)
    body = json.loads(server.requests[0].body)
    assert body["credential_sha256"] == hashlib.sha256(bytes.fromhex(made.credential)).hexdigest()
    assert (body["token_id"], body["secret"]) == ("01" * 8, "07" * 16)
    assert body["host_id"] == pairings.host_id(own) == (own.state / "host-id").read_text().strip()
    assert made.credential not in server.requests[0].body
    found = pairings.at(own, parse_address(server.address))
    assert found == made
    assert (found.client, found.name, found.max_memory_bytes, found.role) == (CLIENT, "attic", 4096, "user")
    assert (own.state / "host-id").stat().st_mode & 0o777 == 0o600


def test_the_credential_is_on_disk_before_the_donor_is_asked(own: paths.Paths, server: TlsServer) -> None:
    seen: list[dict[str, Any]] = []

    def look(_request: Seen) -> tuple[int, Any]:
        seen.extend(stored(own))
        return 201, PAIRED

    server.answers["POST /v1/pairings"] = look
    made = pairing.pair(token_of(server), own)
    assert [(each["credential"], each["client"]) for each in seen] == [(made.credential, "")]


def test_a_lost_answer_is_asked_for_again_with_the_same_credential(own: paths.Paths, server: TlsServer) -> None:
    server.answers["POST /v1/pairings"] = lambda _request: None
    with pytest.raises(NoAnswer):
        pairing.pair(token_of(server), own)
    assert pairings.load(own) == ()  # what is pending is not used
    server.answers["POST /v1/pairings"] = (201, PAIRED)
    made = pairing.pair(token_of(server), own)
    digests = {json.loads(each.body)["credential_sha256"] for each in server.requests}
    assert len(digests) == 1
    assert len(stored(own)) == 1
    before = len(server.requests)
    assert pairing.pair(token_of(server), own) == made  # once more changes nothing
    assert len(server.requests) == before


def test_a_command_that_is_killed_while_it_asks_is_finished_by_the_next(own: paths.Paths, server: TlsServer) -> None:
    token = token_of(server)
    command = [sys.executable, "-m", "ghostbox", "donor", "add", "-"]
    running = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)

    def kill(_request: Seen) -> None:
        running.send_signal(signal.SIGKILL)
        running.wait(10)

    server.answers["POST /v1/pairings"] = kill
    assert running.stdin is not None
    running.stdin.write(token.text() + "\n")
    running.stdin.close()
    assert running.wait(60) == -signal.SIGKILL
    assert [each["client"] for each in stored(own)] == [""]
    server.answers["POST /v1/pairings"] = (201, PAIRED)
    pairing.pair(token, own)
    first, second = (json.loads(each.body) for each in server.requests)
    assert first == second


@pytest.mark.parametrize("code", ["token-unknown", "token-expired", "token-used"])
def test_a_refused_token_leaves_nothing_and_names_what_makes_a_new_one(
    own: paths.Paths, server: TlsServer, code: str
) -> None:
    server.answers["POST /v1/pairings"] = refused(code)
    with pytest.raises(TokenRefused, match=f"the {code} text") as caught:
        pairing.pair(token_of(server), own)
    assert "ghostbox token create" in str(caught.value.hint)
    assert stored(own) == []


def test_a_donor_that_has_too_many_requests_may_be_asked_again(own: paths.Paths, server: TlsServer) -> None:
    server.answers["POST /v1/pairings"] = refused("too-many")
    with pytest.raises(DonorError, match="the too-many text"):
        pairing.pair(token_of(server), own)
    server.answers["POST /v1/pairings"] = (201, PAIRED)
    pairing.pair(token_of(server), own)
    first, second = (json.loads(each.body) for each in server.requests)
    assert first == second


def test_the_next_address_is_tried_and_the_one_that_answers_is_kept(own: paths.Paths, server: TlsServer) -> None:
    made = pairing.pair(token_of(server, "127.0.0.1:1", "no address"), own)
    assert made.addresses == (server.address,)


def test_a_donor_that_answers_nowhere_is_named_with_all_reasons(own: paths.Paths, server: TlsServer) -> None:
    token = Token(("127.0.0.1:1", "127.0.0.2:1"), server.fingerprint, b"\1" * 8, b"\2" * 16)
    with pytest.raises(NoAnswer, match="the donor of this token answers at none of its addresses") as caught:
        pairing.pair(token, own)
    assert str(caught.value.why).count("connection refused") == 2
    assert "then the same command again" in str(caught.value.hint)


def test_a_forged_token_reaches_no_other_donor(own: paths.Paths, server: TlsServer) -> None:
    token = Token((server.address,), b"\5" * 32, b"\1" * 8, b"\2" * 16)
    with pytest.raises(Untrusted, match="is not the one that made the token: it has another key"):
        pairing.pair(token, own)
    assert server.requests == []


def test_a_donor_that_knows_no_pairings_is_of_another_version(own: paths.Paths, server: TlsServer) -> None:
    del server.answers["POST /v1/pairings"]
    server.answers["GET /v1/version"] = (200, {"version": "0.0.1"})
    with pytest.raises(NoAnswer, match="of versions that do not understand each other") as caught:
        pairing.pair(token_of(server), own)
    assert caught.value.why == f"donor 0.0.1, host {__version__}"


def test_a_donor_with_a_strange_id_for_the_host_is_refused(own: paths.Paths, server: TlsServer) -> None:
    """The id becomes part of a header."""
    server.answers["POST /v1/pairings"] = (201, {**PAIRED, "client": "0123456789abcdef\r\nX: y"})
    with pytest.raises(NoAnswer, match="it is not a GhostBox donor"):
        pairing.pair(token_of(server), own)
    assert pairings.load(own) == ()


def test_a_new_token_replaces_the_pairing_with_the_same_donor(own: paths.Paths, server: TlsServer) -> None:
    first = pairing.pair(token_of(server), own)
    second = pairing.pair(token_of(server, number=2), own)
    assert pairings.load(own) == (second,)
    assert first.credential != second.credential


def test_a_paired_donor_is_known_at_another_address_by_its_certificate(
    own: paths.Paths, server: TlsServer, tmp_path: Path
) -> None:
    pairing.pair(token_of(server), own)
    moved = server.address.replace("127.0.0.1", "localhost")
    assert pairing.recognize(server.address, own) is None  # known there already
    found = pairing.recognize(moved, own)
    assert found is not None
    assert found.name == "attic"
    [now] = pairings.load(own)
    assert now.addresses == (moved, server.address)
    with tls_server(tmp_path, {}, name="other") as other:
        assert pairing.recognize(other.address, own) is None
    assert pairing.recognize("127.0.0.1:1", own) is None


def test_to_forget_ends_the_pairing_at_the_donor_too(own: paths.Paths, server: TlsServer) -> None:
    made = pairing.pair(token_of(server), own)
    server.answers["DELETE /v1/pairings/self"] = refused("busy")
    with pytest.raises(DonorError, match="the busy text"):
        pairing.unpair([made], own)
    assert pairings.load(own) == (made,)
    server.answers["DELETE /v1/pairings/self"] = (200, {})
    assert pairing.unpair([made], own) == []
    assert pairings.load(own) == ()
    assert server.requests[-1].authorization == f"Bearer {made.client}.{made.credential}"


@pytest.mark.parametrize("code", ["not-paired", "revoked"])
def test_a_donor_that_has_ended_it_already_needs_no_word(own: paths.Paths, server: TlsServer, code: str) -> None:
    made = pairing.pair(token_of(server), own)
    server.answers["DELETE /v1/pairings/self"] = refused(code)
    assert pairing.unpair([made], own) == []
    assert pairings.load(own) == ()


def test_a_donor_that_does_not_answer_is_forgotten_and_said_so(own: paths.Paths, server: TlsServer) -> None:
    made = pairing.pair(token_of(server), own)
    server.answers["DELETE /v1/pairings/self"] = lambda _request: None
    [note] = pairing.unpair([made], own)
    assert note.startswith(
        "donor 'attic' was not told and still knows this host; on the donor: ghostbox memserver revoke"
    )
    assert pairings.load(own) == ()
