# SPDX-License-Identifier: MIT
"""A real donor's HTTP API makes, lists, refuses and releases leases."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from ghostbox import donors
from ghostbox.donors import Assignment
from ghostbox.donors.client import DonorClient, NoAnswer
from ghostbox.donors.models import Holder
from ghostbox.errors import DonorError, DonorTooSmall, LeaseExists, NotFound
from ghostbox.system.processes import wait_until
from ghostbox.units import MIB
from helpers.donor import RunningDonor, running_donor
from helpers.nbd import held_connection, read_export, write_export

ANA = Holder("tower", "ana")
BEN = Holder("attic", "ben")


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    with running_donor(tmp_path_factory.mktemp("donor"), size="64M") as running:
        yield running


@pytest.fixture
def client(donor: RunningDonor) -> Iterator[DonorClient]:
    """Yield a client of the donor; every lease that a test leaves is released after the test."""
    with DonorClient(donor.address) as connected:
        yield connected
        for lease in connected.leases():
            connected.release_lease(lease.name, force=True)


def test_status_tells_sizes_and_ports(donor: RunningDonor, client: DonorClient) -> None:
    client.create_lease("one", 16 * MIB, ANA)
    status = client.status()
    assert (status.name, status.address, status.nbd_port) == ("donor", donor.address, donor.nbd_port)
    assert (status.size_bytes, status.exported_bytes, status.free_bytes) == (64 * MIB, 16 * MIB, 48 * MIB)
    assert (status.leases, status.draining) == (1, False)
    assert status.incarnation == donor.ready["incarnation"]


def test_a_lease_is_an_export_of_its_name_and_size(donor: RunningDonor, client: DonorClient, tmp_path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    lease = client.create_lease("one", 4 * MIB, ANA)
    assert (lease.name, lease.export, lease.size_bytes, lease.holder) == ("one", "one", 4 * MIB, ANA)
    assert (lease.resident_bytes, lease.connections) == (0, 0)
    assert uuid.UUID(lease.incarnation).version == 4
    assert before <= lease.created_at <= datetime.now(UTC)
    uri = donors.nbd_uri(donor.address, lease)
    assert uri == donor.uri("one")
    assert read_export(uri, tmp_path / "out") == bytes(4 * MIB)


def test_leases_are_listed_by_name(client: DonorClient) -> None:
    client.create_lease("b", MIB, BEN)
    client.create_lease("a", MIB, ANA)
    assert [(lease.name, lease.holder) for lease in client.leases()] == [("a", ANA), ("b", BEN)]
    assert client.lease("b").holder == BEN


def test_two_vms_leases_on_one_donor_hold_their_own_bytes(
    donor: RunningDonor, client: DonorClient, tmp_path: Path
) -> None:
    content = {"one": b"\x11" * (2 * MIB), "two": b"\x22" * (2 * MIB)}
    for name, holder in (("one", ANA), ("two", BEN)):
        client.create_lease(name, 2 * MIB, holder)
        (tmp_path / name).write_bytes(content[name])
        write_export(donor.uri(name), tmp_path / name)
    for name, expected in content.items():
        assert read_export(donor.uri(name), tmp_path / "out") == expected


def test_a_lease_after_another_never_shows_its_bytes(donor: RunningDonor, client: DonorClient, tmp_path: Path) -> None:
    first = client.create_lease("one", 2 * MIB, ANA)
    (tmp_path / "secret").write_bytes(b"secret42" * (2 * MIB // 8))
    write_export(donor.uri("one"), tmp_path / "secret")
    assert client.lease("one").resident_bytes == 2 * MIB
    client.release_lease("one")
    second = client.create_lease("one", 2 * MIB, BEN)
    assert second.incarnation != first.incarnation
    assert read_export(donor.uri("one"), tmp_path / "out") == bytes(2 * MIB)


def test_a_taken_name_is_refused_and_its_holder_named(client: DonorClient) -> None:
    client.create_lease("one", 2 * MIB, ANA)
    with pytest.raises(LeaseExists) as caught:
        client.create_lease("one", MIB, BEN)
    assert caught.value.message.endswith(": a lease named 'one' exists: 2 MiB, held by tower/ana")
    assert caught.value.hint == "choose another name, or release it first"
    assert client.lease("one").holder == ANA


def test_more_than_is_free_is_refused_with_the_figures(donor: RunningDonor, client: DonorClient) -> None:
    client.create_lease("one", 40 * MIB, ANA)
    with pytest.raises(DonorTooSmall) as caught:
        client.create_lease("two", 32 * MIB, BEN)
    assert caught.value.message.startswith(f"donor {donor.address}: ")
    assert re.search(r"\b(24|25165824)\b.*", caught.value.message), caught.value.message
    assert caught.value.hint == "ask for less, or add another donor"
    assert [lease.name for lease in client.leases()] == ["one"]


def test_a_lease_in_use_is_released_only_by_force(donor: RunningDonor, client: DonorClient) -> None:
    client.create_lease("one", MIB, ANA)
    with held_connection(donor.uri("one")):
        assert client.lease("one").connections == 1
        with pytest.raises(DonorError) as caught:
            client.release_lease("one")
        assert caught.value.hint == "stop the VM that uses it, or force the release: its memory is lost then"
        client.release_lease("one", force=True)
        assert client.leases() == []
        assert client.status().free_bytes == 64 * MIB  # the lease's memory is free, so its connection is closed


def test_a_lease_that_is_not_there_is_not_found(client: DonorClient) -> None:
    for request in (client.lease, client.release_lease):
        with pytest.raises(NotFound, match="no lease named 'none'"):
            request("none")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, "name: String should match pattern"),
        ({"name": "x" * 129}, "name: String should match pattern"),
        ({"size_bytes": 4097}, "size_bytes: Input should be a multiple of 4096"),
        ({"size_bytes": 0}, "size_bytes: Input should be greater than or equal to 4096"),
        ({"size_bytes": -4096}, "size_bytes: Input should be greater than or equal to 4096"),
        ({"size_bytes": 2**63}, "size_bytes: Input should be less than or equal to"),
        ({"size_bytes": "4096"}, "size_bytes: Input should be a valid integer"),
        ({"size_bytes": True}, "size_bytes: Input should be a valid integer"),
        ({"holder": None}, "holder: Input should be a valid dictionary"),
        ({"holder": {"host": "\x1b[2J", "vm": "v"}}, "holder.host: String should match"),
        ({"other": 1}, "other: Extra inputs are not permitted"),
    ],
)
def test_a_request_that_is_wrong_says_where(donor: RunningDonor, change: dict[str, Any], message: str) -> None:
    body = {"name": "x", "size_bytes": 4096, "holder": {"host": "h", "vm": "v"}}
    answer = httpx.post(f"http://{donor.address}/v1/leases", json={**body, **change})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "hint"}
    assert error["code"] == "invalid"
    assert message in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "code"),
    [
        ("GET", "/", b"", 404, "unknown-route"),
        ("GET", "/v2/status", b"", 404, "unknown-route"),
        ("GET", "/v1/leases/", b"", 404, "unknown-route"),
        ("PUT", "/v1/leases", b"", 405, "method-not-allowed"),
        ("POST", "/v1/leases", b"{not json", 422, "invalid"),
        ("POST", "/v1/leases", b'{"\\ud800": 1}', 422, "invalid"),  # half of a character, which UTF-8 has not
        ("POST", "/v1/leases", b"x" * 100_000, 413, "too-large"),
        ("GET", "/v1/leases/no%20name", b"", 422, "invalid"),
        ("DELETE", "/v1/leases/x?force=perhaps", b"", 422, "invalid"),
        ("DELETE", "/v1/leases/x", b"", 404, "not-found"),
    ],
)
def test_every_failure_has_the_same_form(
    donor: RunningDonor, method: str, path: str, content: bytes, status: int, code: str
) -> None:
    headers = {"Content-Type": "application/json"} if content else {}
    answer = httpx.request(method, f"http://{donor.address}{path}", content=content, headers=headers)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"}
    assert set(answer.json()["error"]) == {"code", "message", "hint"}
    assert answer.json()["error"]["code"] == code


def test_the_description_is_true(donor: RunningDonor, client: DonorClient) -> None:
    base = f"http://{donor.address}"
    described = httpx.get(f"{base}/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    leases = {"/v1/leases", "/v1/leases/{name}"}
    trust = {"/v1/version", "/v1/pairings", "/v1/pairings/self", "/v1/pairing-requests", "/v1/pairing-requests/self"}
    owners = {"/v1/drain", "/v1/tokens", "/v1/tokens/{number}", "/v1/roles", "/v1/roles/{name}", "/v1/clients"}
    clients = {f"/v1/clients/{{number}}{more}" for more in ("", "/suspension", "/limits")}
    requests = {f"/v1/pairing-requests/{{number}}{more}" for more in ("", "/approval")}
    assert set(described["paths"]) == {"/v1/status", *leases, *trust, *owners, *clients, *requests}
    assert "HTTPValidationError" not in described["components"]["schemas"]
    any_route = {"400", "401", "403", "413", "500", "503"}
    assert {"201", "409", "422", "507"} | any_route == set(described["paths"]["/v1/leases"]["post"]["responses"])
    one = described["paths"]["/v1/leases/{name}"]
    assert {"204", "404", "409", "422"} | any_route == set(one["delete"]["responses"])
    client.create_lease("one", MIB, ANA)
    answers = {
        "DonorStatus": httpx.get(f"{base}/v1/status").json(),
        "LeaseFields": httpx.get(f"{base}/v1/leases/one").json(),
        "ErrorBody": httpx.get(f"{base}/v1/leases/two").json(),
    }
    for schema, answer in answers.items():
        properties = described["components"]["schemas"][schema]["properties"]
        assert set(answer) == set(properties)
        assert all("description" in item or "$ref" in item for item in properties.values())


def test_acquire_makes_all_leases(donor: RunningDonor, client: DonorClient) -> None:
    wanted = [Assignment(donor.address, f"vm-{number}", MIB, ANA) for number in range(3)]
    leases = donors.acquire(wanted)
    assert [lease.name for lease in leases] == ["vm-0", "vm-1", "vm-2"]
    assert {lease.donor_address for lease in leases} == {donor.address}
    donors.release(leases)
    donors.release(leases)  # the lease is gone already: no error
    assert client.leases() == []


def test_acquire_makes_none_if_one_fails(donor: RunningDonor, client: DonorClient) -> None:
    client.create_lease("vm-1", MIB, BEN)
    wanted = [Assignment(donor.address, f"vm-{number}", MIB, ANA) for number in range(3)]
    with pytest.raises(LeaseExists):
        donors.acquire(wanted)
    assert [(lease.name, lease.holder) for lease in client.leases()] == [("vm-1", BEN)]


def test_acquire_with_a_donor_that_is_not_there_leaves_nothing(donor: RunningDonor, client: DonorClient) -> None:
    wanted = [Assignment(donor.address, "vm", MIB, ANA), Assignment("127.0.0.1:1", "vm", MIB, ANA)]
    with pytest.raises(NoAnswer, match=r"cannot reach donor 127\.0\.0\.1:1"):
        donors.acquire(wanted)
    assert client.leases() == []


_ACQUIRE = """
import sys
from ghostbox import donors
from ghostbox.donors.models import Holder
donors.acquire([donors.Assignment(address, "vm", 1 << 20, Holder("h", "v")) for address in sys.argv[1:]])
"""


def test_acquire_interrupted_releases_what_it_made(donor: RunningDonor, client: DonorClient) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the server accepts the connection and never answers
        addresses = [donor.address, f"127.0.0.1:{silent.getsockname()[1]}"]
        host = subprocess.Popen([sys.executable, "-c", _ACQUIRE, *addresses], env=donor.env, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: len(client.leases()) == 1, timeout_s=20, what="the lease")
            host.send_signal(signal.SIGINT)
            wait_until(lambda: client.leases() == [], timeout_s=20, what="the lease's release")
        finally:
            host.kill()
            host.wait(10)


def test_query_answers_in_order(donor: RunningDonor, tmp_path: Path) -> None:
    with running_donor(tmp_path, name="other", size="32M") as other:
        found = donors.query([other.address, donor.address])
    assert [status.name for status in found] == ["other", "donor"]


def test_the_nbd_port_given_as_control_port_is_recognised(donor: RunningDonor) -> None:
    with DonorClient(donor.nbd_address) as client, pytest.raises(NoAnswer, match="is an NBD server, not a donor's"):
        client.status()
