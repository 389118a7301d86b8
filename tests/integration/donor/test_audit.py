# SPDX-License-Identifier: MIT
"""A real donor writes its audit log, and `ghostbox memserver audit` shows it."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import httpx
import pytest

from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.errors import GhostboxError
from ghostbox.memserver import audit
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers import forked
from helpers.donor import RunningDonor, running_donor

ANA = Holder("tower", "ana")


def _said(donor: RunningDonor) -> list[tuple[str | None, ...]]:
    """Return event, lease, code and reason of each line."""
    entries = audit.read(audit.path(donor.state_dir))
    return [(entry.event, entry.lease, entry.code, entry.reason) for entry in entries]


def _shown(donor: RunningDonor, *options: str) -> str:
    done = forked.run_with(donor.env, "memserver", "audit", "--name", "donor", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_leases_refusals_and_drains_are_written_with_their_holder_and_address(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor, DonorClient(donor.address) as client:
        client.create_lease("one", 16 * MIB, ANA)
        for name, size_bytes in (("one", MIB), ("large", 1024 * MIB)):
            with pytest.raises(GhostboxError):
                client.create_lease(name, size_bytes, Holder("attic", "ben"))
        client.drain()
        with pytest.raises(GhostboxError):
            client.create_lease("two", MIB, ANA)
        client.keep()
        client.release_lease("one", force=True)
        too_small = "export 'large': 1 GiB asked, 48 MiB of 64 MiB are free"
        assert _said(donor)[1:] == [
            ("lease-made", "one", None, None),
            ("lease-refused", "one", "exists", "a lease named 'one' exists: 16 MiB, held by tower/ana"),
            ("lease-refused", "large", "too-small", too_small),
            ("drain-begun", None, None, "asked"),
            ("lease-refused", "two", "draining", "this donor is being drained and gives no new leases"),
            ("drain-ended", None, None, "asked"),
            ("lease-ended", "one", None, "by force"),
        ]
        entries = [json.loads(line) for line in _shown(donor, "--json").splitlines()]
        assert (entries[0]["event"], entries[0]["reason"]) == ("started", f"listens on {donor.nbd_address}")
        assert all(entry["address"].startswith("127.0.0.1:") for entry in entries[1:])
        assert (entries[3]["host"], entries[3]["vm"], entries[3]["size_bytes"]) == ("attic", "ben", 1024 * MIB)
        assert "lease-made         lease one, 16 MiB; tower/ana from 127.0.0.1:" in _shown(donor)
        assert _shown(donor, "-n", "1", "--since", "1h").count("\n") == 1


def test_requests_that_make_no_sense_are_written_down(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        httpx.post(f"http://{donor.address}/v1/leases", json={"name": "../x"})
        httpx.get(f"http://{donor.address}/admin")
        (first, second) = _said(donor)[1:]
        assert first[:3] == ("request-refused", None, "invalid")
        assert str(first[3]).startswith("POST /v1/leases: name: String should match pattern")
        assert second == ("request-refused", None, "unknown-route", "GET /admin: Not Found")


def test_a_limit_that_is_hit_is_written_down(tmp_path: Path) -> None:
    bounds = ("prlimit", "--nofile=80:80")  # the limit leaves 16 connections
    with running_donor(tmp_path, prefix=bounds) as donor:
        host, _, port = donor.address.rpartition(":")
        sockets = [socket.create_connection((host, int(port))) for _ in range(17)]
        try:
            processes.wait_until(lambda: _said(donor)[-1][0] == "limit-hit", timeout_s=20, what="the line")
        finally:
            for each in sockets:
                each.close()
        assert _said(donor)[-1][3] == "control API: refused a connection, 16 are open"


def test_lost_leases_are_written_whichever_program_was_killed(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        with DonorClient(donor.address) as client:
            client.create_lease("one", MIB, ANA)
        os.kill(donor.data_plane_pid, signal.SIGKILL)
        donor.wait_for_log("the data plane was restarted")
        assert _said(donor)[-1] == ("lease-lost", "one", None, "the data plane died")
        donor.kill_control_plane()
        os.kill(donor.data_plane_pid, signal.SIGKILL)
        donor.restart()
        assert _said(donor)[-2:] == [
            ("lease-lost", "one", None, "the data plane that held it is gone"),
            ("started", None, None, f"listens on {donor.nbd_address}"),
        ]


def test_its_end_is_written_down_with_what_it_gave_up(tmp_path: Path) -> None:
    with running_donor(tmp_path, drain_timeout="0.1s") as donor:
        with DonorClient(donor.address) as client:
            client.create_lease("one", MIB, ANA)
        donor.interrupt()
        donor.wait()
        assert _said(donor)[-3:] == [
            ("drain-begun", None, None, "ending"),
            ("lease-lost", "one", None, "this donor ended"),
            ("ended", None, None, None),
        ]
