# SPDX-License-Identifier: MIT
"""What a host may have of a secure donor, by its role or for itself: when it leases, at every write, and live."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ghostbox.donors import token
from ghostbox.memserver import audit
from ghostbox.memserver.owner import Owner
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers import forked, gnutls, paired
from helpers import nbd_raw as nbd
from helpers.donor import RunningDonor, running_donor
from helpers.nbd_raw import RawClient
from helpers.paired import Host, lend

PAGE = 4096
POLICY = b"this client has as many connections open as it may have (max_connections)"


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    """Yield a secure donor for all tests; each pairs a host of its own."""
    importlib.import_module("ghostbox.cli.memserver")  # no fork has to do it
    with running_donor(tmp_path_factory.mktemp("donor"), size="64M", secure="") as running:
        yield running


def owner(donor: RunningDonor) -> Owner:
    return Owner(donor.control_socket.with_name("owner.sock"), donor.address)


def pair(donor: RunningDonor, name: str, role: str = "user") -> Host:
    return paired.pair(owner(donor).create_token(600, None, role).token, host=name)


def cli(donor: RunningDonor, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the donor's owner."""
    done = forked.run("memserver", *words, "--name", "donor", cwd=Path("/"), env=donor.env)
    done.stderr = " ".join(done.stderr.split())
    return done


def done(donor: RunningDonor, *words: str) -> Any:
    """Run a command that must succeed; return what it prints as JSON."""
    ended = cli(donor, *words, "--json")
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def opened(donor: RunningDonor, name: str, key: str) -> RawClient:
    """Return an NBD client that has shown the key of an export."""
    client = RawClient(donor.nbd_port)
    assert client.option(nbd.STARTTLS) == [(nbd.ACK, b"")]
    client.socket = gnutls.Session.client(client.socket, name, key)  # type: ignore[assignment]
    return client


def connect(donor: RunningDonor, name: str, key: str) -> RawClient:
    client = opened(donor, name, key)
    client.go(name)
    return client


def write_error(client: RawClient, page: int, n_pages: int = 1) -> int:
    return client.command(nbd.WRITE, page * PAGE, n_pages * PAGE, payload=b"x" * n_pages * PAGE).error


def error_of(answer: httpx.Response) -> tuple[int, str, str, str]:
    said = answer.json()["error"]
    return answer.status_code, said["code"], said["message"], said["hint"]


def in_plane(donor: RunningDonor, host: Host) -> dict[str, Any] | None:
    """Return what the data plane knows of a host."""
    clients = processes.control_request(donor.control_socket, "status")["clients"]
    return next((each for each in clients if each["client"] == host.client), None)


def hits(donor: RunningDonor, host: Host) -> dict[str | None, str | None]:
    """Return the reasons of the audit log's lines of limits that were hit, by the limit."""
    entries = audit.read(audit.path(donor.state_dir))
    return {each.code: each.reason for each in entries if (each.event, each.client) == ("limit-hit", host.client)}


# --- when a lease is made ---


def test_a_guest_leases_a_quarter_and_two_leases_and_is_told_who_can_change_that(donor: RunningDonor) -> None:
    guest = pair(donor, "visitor", "guest")
    over = error_of(lend(guest, "v1", 17 * MIB))
    assert over[:3] == (
        507, "over-limit", "lease 'v1': 17 MiB asked; this host may lease 16 MiB here, 0 B of that is leased",
    )  # fmt: skip
    assert over[3].endswith("the donor's owner can raise the limit: ghostbox memserver client set visitor --memory")
    for name in ("v1", "v2"):
        assert lend(guest, name).status_code == 201
        with guest.http() as http:
            status = http.get("/v1/status").json()
        assert status["free_bytes"] == (15 * MIB if name == "v1" else 0)
    assert status["role"] == "guest"
    assert status["limits"] == {
        "memory_bytes": 16 * MIB, "leases": 2, "connections": 16, "bytes_per_s": 32 * MIB,
    }  # fmt: skip
    many = error_of(lend(guest, "v3"))
    assert many[:3] == (507, "over-limit", "lease 'v3': this host may have 2 leases here, and has 2")
    refused = [each.reason for each in audit.read(audit.path(donor.state_dir)) if each.client == guest.client]
    assert over[2] in refused
    assert done(donor, "client", "set", "visitor", "--leases", "3")["own"] == ["leases"]
    assert lend(guest, "v3").status_code == 201
    plane = in_plane(donor, guest)
    assert plane is not None
    assert (plane["max_resident_bytes"], plane["max_connections"], plane["max_bytes_per_s"]) == (
        16 * MIB, 16, 32 * MIB,
    )  # fmt: skip


# --- in the data plane, live ---


def test_over_a_limit_that_was_lowered_new_pages_get_enospc_and_all_else_goes_on(donor: RunningDonor) -> None:
    host = pair(donor, "full")
    key = lend(host, "full").json()["tls_psk"]
    with connect(donor, "full", key) as client:
        assert write_error(client, 0, 2) == 0
        lowered = cli(donor, "client", "set", "full", "--memory", "8K")
        assert lowered.stdout.strip() == (f"full ({host.client}), role user: memory 8 KiB, leases 64, connections 256")
        assert "note: full has leased 1 MiB, more than 8 KiB: its leases stay, and what is in them (8 KiB) can" in (
            lowered.stderr
        )
        assert write_error(client, 2) == nbd.ENOSPC
        assert write_error(client, 0, 2) == 0  # what is there may be written again
        assert client.read(0, 3 * PAGE) == b"x" * 2 * PAGE + bytes(PAGE)
        processes.wait_until(lambda: "memory" in hits(donor, host), timeout_s=20, what="the line of the audit log")
        assert hits(donor, host)["memory"] == "1 writes got ENOSPC: its leases have 8 KiB of 8 KiB"
        assert error_of(lend(host, "more", PAGE))[1] == "over-limit"
        shown = next(each for each in done(donor, "clients") if each["id"] == host.client)
        assert (shown["limits"]["memory_bytes"], shown["own"], shown["leased_bytes"]) == (
            2 * PAGE,
            ["memory_bytes"],
            MIB,
        )
        assert (shown["use"]["resident_bytes"], shown["use"]["writes_refused"]) == (2 * PAGE, 1)
        table = cli(donor, "clients").stdout
        assert "1 MiB of 8 KiB*" in table
        assert "full: refused: 1 writes over its memory" in table
        assert done(donor, "client", "set", "full", "--memory", "default")["notes"] == []
        assert write_error(client, 2) == 0


def test_connections_over_the_limit_are_refused_until_it_is_raised(donor: RunningDonor) -> None:
    host = pair(donor, "busy")
    key = lend(host, "busy").json()["tls_psk"]
    with connect(donor, "busy", key) as one, opened(donor, "busy", key) as two:
        done(donor, "client", "set", host.client, "--connections", "1")
        assert two.option(nbd.GO, nbd.info_data("busy")) == [(nbd.ERR_POLICY, POLICY)]
        assert one.read(0, 16) == bytes(16)
        processes.wait_until(lambda: "connections" in hits(donor, host), timeout_s=20, what="the line")
        assert hits(donor, host)["connections"] == "1 connections were refused: 1 of 1 are open"
        done(donor, "client", "set", "busy", "--connections", "none")
        assert two.go("busy")


def seconds_to_read(client: RawClient) -> float:
    """Return how long it takes to read two MiB, 64 KiB at a time."""
    began = time.monotonic()
    for index in range(32):
        client.read(index % 16 * (64 << 10), 64 << 10)
    return time.monotonic() - began


def test_bandwidth_of_a_role_holds_for_its_hosts_at_once(donor: RunningDonor) -> None:
    assert done(donor, "role", "set", "lab", "--memory", "8M")["own"] == ["memory_bytes"]
    host = pair(donor, "slow", "lab")
    key = lend(host, "slow").json()["tls_psk"]
    with connect(donor, "slow", key) as client:
        free_s = seconds_to_read(client)
        role = done(donor, "role", "set", "lab", "--bandwidth", "1M")
        assert (role["hosts"], role["limits"]["bytes_per_s"], role["limits"]["memory_bytes"]) == (1, MIB, 8 * MIB)
        assert seconds_to_read(client) > 2 * free_s
    plane = in_plane(donor, host)
    assert plane is not None
    assert plane["counters"]["delays"] > 0
    busy = cli(donor, "role", "delete", "lab", "--output", "json")
    assert json.loads(busy.stderr)["error"]["message"] == "role 'lab' is in use: host slow"
    assert done(donor, "client", "set", "slow", "--role", "user")["role"] == "user"
    assert done(donor, "role", "delete", "lab") == {"name": "lab", "deleted": True}
    plane = in_plane(donor, host)
    assert plane is not None
    assert plane["max_bytes_per_s"] is None


def test_a_token_of_another_role_changes_a_host_that_is_paired_already(donor: RunningDonor) -> None:
    host = pair(donor, "again")
    lend(host, "again")
    given = token.parse(owner(donor).create_token(600, None, "guest").token)
    with host.http() as http:
        assert http.post("/v1/pairings", json=paired.request_of(given, "ab" * 32, host="again")).status_code == 201
    plane = in_plane(donor, host)
    assert plane is not None
    assert (plane["max_connections"], plane["max_bytes_per_s"]) == (16, 32 * MIB)


# --- roles ---


def test_roles_are_listed_with_their_limits_and_what_the_owner_has_set(donor: RunningDonor) -> None:
    again = [done(donor, "role", "set", "guest", "--leases", "5", "--bandwidth", "none") for _ in range(2)]
    assert again[0] == again[1]
    rows = [line.split() for line in cli(donor, "role", "list").stdout.splitlines()]
    assert rows[1][:2] == ["admin", "no"]
    assert rows[3] == ["guest", "16", "MiB", "5*", "16", "no", "limit*", str(again[0]["hosts"])]
    done(donor, "role", "set", "guest", "--leases", "default", "--bandwidth", "default")
    found = {role["name"]: role for role in done(donor, "role", "list")}
    assert found["guest"]["own"] == []
    assert found["admin"]["limits"] == {
        "memory_bytes": None, "leases": None, "connections": None, "bytes_per_s": None,
    }  # fmt: skip
    events = [each.reason for each in audit.read(audit.path(donor.state_dir)) if each.event == "role-set"]
    assert "role guest: memory 16 MiB, leases 5, connections 16" in events


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("role delete x", 4, "error: no role 'x'"),
        ("role delete admin", 1, "error: role 'admin' is built in, and stays"),
        ("role set Guest --memory 8G", 1, "name: String should match pattern"),
        ("role set x --memory 8", 2, "8 bytes are too few; write its unit: 8G"),
        ("role set x --memory much", 2, "'much' is not a size"),
        ("role set x --bandwidth 100K", 2, "100K is less than 1 MiB, the least limit; 'none' is no limit"),
        ("role set x --connections 0", 2, "0 is less than 1, the least limit; 'none' is no limit"),
        ("client set nobody --role guest", 4, "error: no host 'nobody' is paired with this donor"),
        ("client set nobody", 2, "error: nothing is to change for 'nobody'"),
    ],
)
def test_what_cannot_be_is_said(donor: RunningDonor, words: str, code: int, message: str) -> None:
    ended = cli(donor, *words.split())
    assert message in ended.stderr
    assert ended.returncode == code


def test_an_unknown_role_is_refused_to_hosts_and_to_tokens(donor: RunningDonor) -> None:
    pair(donor, "plain")
    ended = cli(donor, "client", "set", "plain", "--role", "boss")
    assert (ended.returncode, "error: no role 'boss'" in ended.stderr) == (4, True)
    made = forked.run("token", "create", "--role", "boss", "--name", "donor", cwd=Path("/"), env=donor.env)
    assert (made.returncode, "error: no role 'boss'" in made.stderr) == (4, True)
    assert "ghostbox memserver role set boss makes it" in " ".join(made.stderr.split())


# --- restarts; these end the data plane, and are the last ---


def test_limits_outlive_both_programs_and_go_with_the_client(donor: RunningDonor) -> None:
    host = pair(donor, "kept")
    lend(host, "kept")
    done(donor, "client", "set", "kept", "--memory", "2M", "--bandwidth", "5M", "--connections", "7")
    expected = (2 * MIB, 5 * MIB, 7)

    def kept() -> tuple[int, int, int]:
        plane = in_plane(donor, host)
        assert plane is not None
        return plane["max_resident_bytes"], plane["max_bytes_per_s"], plane["max_connections"]

    # A limit that the data plane was not told of, as if the control plane had been killed before that.
    processes.control_request(donor.control_socket, "client-set", client=host.client, max_connections=9)
    donor.kill_control_plane()
    donor.restart()
    assert donor.ready["adopted"]
    assert kept() == expected
    pid = donor.data_plane_pid
    os.kill(pid, signal.SIGKILL)
    donor.wait_for_log("restarted with empty memory")
    assert donor.data_plane_pid != pid
    assert kept() == expected
    owner(donor).suspend(host.client)
    owner(donor).resume(host.client)
    assert kept() == expected
    owner(donor).revoke(host.client)
    assert in_plane(donor, host) is None
    gone = cli(donor, "client", "set", host.client, "--memory", "1G")
    assert "error: the pairing of kept was revoked for good" in gone.stderr
