# SPDX-License-Identifier: MIT
"""Schemathesis asks a secure donor what its OpenAPI description allows and forbids, as nobody and as a paired host.

The donor is a real process, and is asked over TLS. Schemathesis runs in a process of its own, since it changes
Hypothesis; it makes the same requests in each run, and does not look at the donor's certificate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pydantic import BaseModel

from ghostbox.memserver.access import OPEN
from ghostbox.memserver.lock import owner_socket
from ghostbox.memserver.owner import Owner
from helpers.donor import RunningDonor, running_donor
from helpers.paired import Host, lend, new_token, pair

pytestmark = pytest.mark.timeout(120)

SETTINGS = """
base-url = "https://{address}"
tls-verify = false
color = false
continue-on-failure = true
request-timeout = 20
seed = 14
headers = {headers}
[generation]
deterministic = true
max-examples = 5
database = "none"
[checks.not_a_server_error]
expected-statuses = ["2xx", "4xx", "507"]
"""
"""507 is the answer to a lease that does not fit."""
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@dataclass(frozen=True)
class Asked:
    """Is a request that was made, and its answer's status."""

    method: str
    path: str
    status: int


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    with running_donor(tmp_path_factory.mktemp("donor"), secure="") as running:
        yield running


@pytest.fixture(scope="module")
def ben(donor: RunningDonor) -> Host:
    """Return another host, with a lease."""
    host = pair(new_token(donor), host="attic")
    assert lend(host, "ben-1").status_code == 201
    return host


@pytest.fixture(scope="module")
def ana(donor: RunningDonor, ben: Host) -> Host:
    """Return the host as which is asked, with a lease."""
    host = pair(new_token(donor, "--max-memory", "2M"))
    new_token(donor)  # one that nobody has used
    assert lend(host, "ana-1").status_code == 201
    return host


def ask(donor: RunningDonor, place: Path, headers: dict[str, str], *words: str) -> list[Asked]:
    """Have schemathesis make its requests, which find no fault, and return them."""
    given = ", ".join(f'"{name}" = "{value}"' for name, value in headers.items())
    (place / "schemathesis.toml").write_text(SETTINGS.format(address=donor.address, headers=f"{{{given}}}"))
    argv = [sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--report-har-path", "all.har"]
    argv += ["--phases", "coverage,fuzzing", "--checks", CHECKS, *words]
    env = {**os.environ, "NO_PROXY": "*"}
    done = subprocess.run(argv, cwd=place, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    entries = json.loads((place / "all.har").read_text())["log"]["entries"]
    return [
        Asked(each["request"]["method"], urlsplit(each["request"]["url"]).path, each["response"]["status"])
        for each in entries
    ]


def kept(donor: RunningDonor) -> dict[str, Any]:
    """Return what the donor keeps of leases, tokens and clients, but for the time at which a client was seen."""
    owner = Owner(owner_socket(donor.control_socket.parent), donor.address)
    passing = {"idle_s", "seen_at", "address"}
    found: dict[str, Sequence[BaseModel]] = {
        "leases": owner.leases(),
        "tokens": owner.tokens(),
        "clients": owner.clients(),
    }
    shown = {kind: [each.model_dump(exclude=passing) for each in items] for kind, items in found.items()}
    return {**shown, "draining": owner.status().draining}


@pytest.fixture
def place(ana: Host, tmp_path: Path) -> Path:
    """Return a directory with the donor's description of its API."""
    with ana.http() as http:
        (tmp_path / "openapi.json").write_text(http.get("/openapi.json").text)
    return tmp_path


def test_whatever_nobody_asks_is_answered_as_described_and_changes_nothing(donor: RunningDonor, place: Path) -> None:
    before = kept(donor)
    asked = ask(donor, place, {})
    assert kept(donor) == before
    assert {each.status for each in asked if (each.method, each.path) not in OPEN} == {401}
    assert {each.status for each in asked if (each.method, each.path) in OPEN} >= {200, 403, 404, 422}


def test_whatever_a_paired_host_asks_is_answered_as_described_and_changes_nothing_of_others(
    donor: RunningDonor, place: Path, ana: Host
) -> None:
    before = kept(donor)
    credential = {"Authorization": f"Bearer {ana.client}.{ana.credential}"}
    asked = ask(donor, place, credential, "--exclude-path", "/v1/pairings/self")
    after = kept(donor)
    for each in (before, after):
        each["leases"] = [lease for lease in each["leases"] if lease["name"] == "ben-1"]
        for client in each["clients"]:
            if client["id"] == ana.client:
                del client["leases"], client["leased_bytes"]
    assert after == before
    assert {each.status for each in asked} >= {200, 201, 403, 404, 422, 507}
    with ana.http() as http:
        assert http.get("/v1/status").status_code == 200
