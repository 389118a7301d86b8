# SPDX-License-Identifier: MIT
"""The routes of a secure donor by which a host asks to be paired, over real HTTPS: taking back, and how often."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from ghostbox.donors import code
from ghostbox.memserver import audit
from ghostbox.memserver.lock import owner_socket
from ghostbox.memserver.owner import Owner
from helpers.donor import RunningDonor, running_donor
from helpers.paired import Host, connect, lend

OTHERS = [f"127.0.0.{number}" for number in range(2, 255)]
"""Addresses of this machine, from which a donor on loopback is reached."""


@pytest.fixture
def donor(tmp_path: Path) -> Iterator[RunningDonor]:
    with running_donor(tmp_path, name="donor", secure="") as running:
        yield running


@pytest.fixture
def owner(donor: RunningDonor) -> Owner:
    return Owner(owner_socket(donor.control_socket.parent), donor.address)


@dataclass(frozen=True)
class Asked:
    """Is a request that is open, with what its host has drawn."""

    address: str
    number: str
    nonce: str
    credential: str

    def http(self) -> httpx.Client:
        """Return a client that shows whose request it is."""
        return connect(self.address, {"Authorization": f"Bearer {self.number}.{self.nonce}"})


def word(nonce: str, credential: str) -> dict[str, str]:
    sha256 = code.digest(credential)
    committed = code.commitment(nonce, sha256, "11" * 8)
    said = {"commitment": committed, "credential_sha256": sha256, "host_id": "11" * 8}
    return {**said, "host": "tower", "version": "test"}


def ask(donor: RunningDonor) -> Asked:
    nonce, credential = secrets.token_hex(32), secrets.token_hex(32)
    with connect(donor.address) as http:
        answer = http.post("/v1/pairing-requests", json=word(nonce, credential))
        assert answer.status_code == 201, answer.text
        number = answer.json()["id"]
        opened = http.put("/v1/pairing-requests/self", json={"id": number, "nonce": nonce})
    assert opened.status_code == 200, opened.text
    return Asked(donor.address, number, nonce, credential)


def said(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def events(donor: RunningDonor) -> list[str]:
    return [entry.event for entry in audit.read(audit.path(donor.state_dir))]


# --- taking back ---


def test_only_who_asks_takes_the_request_back(donor: RunningDonor, owner: Owner) -> None:
    asked, other = ask(donor), ask(donor)
    with connect(donor.address, {"Authorization": f"Bearer {asked.number}.{other.nonce}"}) as stranger:
        assert said(stranger.delete("/v1/pairing-requests/self")) == (404, "request-unknown")
    with connect(donor.address) as nobody:
        assert said(nobody.delete("/v1/pairing-requests/self")) == (404, "request-unknown")
    assert [each.id for each in owner.requests()] == [asked.number, other.number]
    with asked.http() as http:
        assert (http.delete("/v1/pairing-requests/self").status_code, http.get("/v1/version").status_code) == (204, 200)
        assert said(http.get("/v1/pairing-requests/self")) == (404, "request-unknown")
    assert [each.id for each in owner.requests()] == [other.number]
    assert events(donor)[-1] == "pairing-withdrawn"


def test_an_approved_request_that_is_taken_back_ends_the_pairing_unless_leases_are_held(
    donor: RunningDonor, owner: Owner
) -> None:
    asked = ask(donor)
    client = owner.approve(asked.number, None, "user").client
    assert client is not None
    host = Host(donor.address, client, asked.credential)
    assert lend(host, "one").status_code == 201
    with asked.http() as http, host.http() as paired:
        assert said(http.delete("/v1/pairing-requests/self")) == (409, "busy")
        assert [each.id for each in owner.clients()] == [client]
        assert paired.delete("/v1/leases/one").status_code == 204
        assert http.delete("/v1/pairing-requests/self").status_code == 204
        assert owner.clients() == []
        assert said(paired.get("/v1/status")) == (401, "not-paired")
        assert said(http.delete("/v1/pairing-requests/self")) == (404, "request-unknown")
    assert events(donor)[-1] in ("pairing-ended", "request-refused")
    assert "pairing-ended" in events(donor)


def test_a_host_that_was_suspended_or_revoked_ends_nothing(donor: RunningDonor, owner: Owner) -> None:
    asked = ask(donor)
    client = owner.approve(asked.number, None, "user").client
    assert client is not None
    with asked.http() as http:
        owner.suspend(client)
        assert said(http.delete("/v1/pairing-requests/self")) == (403, "suspended")
        owner.revoke(client)
        assert said(http.delete("/v1/pairing-requests/self")) == (403, "revoked")
    assert [each.state for each in owner.clients()] == ["revoked"]


# --- how often ---


def until_too_many(send: Callable[[], httpx.Response]) -> list[httpx.Response]:
    """Send requests until one is refused because there were too many; return the others."""
    answers = [send()]
    while answers[-1].status_code != 429:
        assert len(answers) < 500
        answers.append(send())
    assert said(answers[-1]) == (429, "too-many")
    assert answers[-1].json()["error"]["message"] == "too many hosts try to pair at this moment"
    return answers[:-1]


def test_an_address_that_asks_too_often_is_refused_and_another_is_not(donor: RunningDonor) -> None:
    body = word("0a" * 32, "c1" * 32)
    with connect(donor.address) as http, connect(donor.address, source=OTHERS[0]) as other:
        answers = until_too_many(lambda: http.post("/v1/pairing-requests", json=body))
        assert len(answers) >= 10
        assert {each.status_code for each in answers} == {201}  # the same question again: one request
        assert other.post("/v1/pairing-requests", json=body).status_code == 201
    assert "pairing-refused" in events(donor)


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_an_address_that_looks_opens_or_takes_back_too_often_is_refused_and_another_is_not(
    donor: RunningDonor, method: str
) -> None:
    body = {"json": {"id": "0" * 16, "nonce": "0" * 64}} if method == "PUT" else {}
    with connect(donor.address) as http, connect(donor.address, source=OTHERS[0]) as other:
        answers = until_too_many(lambda: http.request(method, "/v1/pairing-requests/self", **body))  # type: ignore[arg-type]
        assert len(answers) >= 20
        assert {said(each) for each in answers} == {(404, "request-unknown")}
        assert said(other.request(method, "/v1/pairing-requests/self", **body)) == (404, "request-unknown")  # type: ignore[arg-type]
        assert said(http.post("/v1/pairing-requests", json={})) == (422, "invalid")
        assert http.post("/v1/pairing-requests", json=word("0a" * 32, "c1" * 32)).status_code == 201


@pytest.mark.timeout(240)
def test_all_addresses_together_have_a_limit_too(donor: RunningDonor) -> None:
    body, answers = word("0a" * 32, "c1" * 32), []
    for source in OTHERS:
        with connect(donor.address, source=source) as http:
            first = http.post("/v1/pairing-requests", json=body)
            answers += [first, *(http.post("/v1/pairing-requests", json=body) for _ in range(8))]
        if first.status_code == 429:
            break
    assert said(first) == (429, "too-many"), "an address that has not asked before"
    assert len(list(itertools.takewhile(lambda each: each.status_code == 201, answers))) >= 100
