# SPDX-License-Identifier: MIT
"""``ghostbox bench --donor`` measures on memory of real donors, and releases the memory. No timing is asserted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers.donor import RunningDonor, running_donor
from helpers.netns import INSECURE, machines
from helpers.project import ROOT

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    with running_donor(tmp_path_factory.mktemp("donor"), size="64M") as running:
        yield running


def leases(running: RunningDonor) -> list[str]:
    with DonorClient(running.address) as client:
        return [lease.name for lease in client.leases()]


def report(ghostbox_cli: Cli, *words: str) -> dict[str, Any]:
    done = ghostbox_cli("bench", "--short", "--json", *words)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_pager_is_measured_on_a_lease_that_is_gone_afterwards(ghostbox_cli: Cli, donor: RunningDonor) -> None:
    found = report(ghostbox_cli, "--donor", donor.address, "--only", "faults,sequential,threads,writes,overcommit/50")
    without = [row for row in found["rows"] if row["ratio"] is None]
    assert all("cgroup" in row["note"] for row in without), without
    assert {row["scenario"] for row in found["rows"]} == {"faults", "sequential", "threads", "writes", "overcommit/50"}
    assert any("an NBD read of 4 KiB over the link" in row["note"] for row in found["rows"])
    predicted = {each["what"]: each for each in found["predictions"]}
    assert set(predicted) == {"cold random fault, p50", "cold sequential read", "slowdown of Zipf 0.9, 50 % local"}
    assert all(each["predicted"] > 0 < each["measured"] for each in predicted.values())
    assert leases(donor) == []


def test_the_memory_can_be_on_several_donors(ghostbox_cli: Cli, donor: RunningDonor, tmp_path: Path) -> None:
    with running_donor(tmp_path, size="32M", name="second") as second:
        both = ("--donor", donor.address, "--donor", second.address)
        found = report(ghostbox_cli, *both, "--only", "faults,sequential")
        assert leases(second) == leases(donor) == []
    rows = {(row["what"], row["reference_name"]): row for row in found["rows"]}
    assert rows["cold random fault, p50", "floor"]["ratio"]
    notes = " ".join(row["note"] for row in found["rows"] if row["ratio"] is None)
    assert "nbdfuse takes one export: give one --donor" in notes
    assert "nbdcopy takes one export: give one --donor" in notes
    assert found["figures"]["link"]["link"]["rtt_p50_us"][0] > 0


def test_a_donor_on_another_machine(ghostbox_cli: Cli, tmp_path: Path) -> None:
    with (
        machines(1) as (machine,),
        running_donor(tmp_path, prefix=machine.prefix, bind=machine.address, insecure="") as far,
    ):
        words = ("bench", "--short", "--only", "faults", "--donor", far.address)
        done = ghostbox_cli(*words, env=INSECURE)
        assert done.returncode == 0, done.stderr
        assert "PREDICTED AS PLAN DOES" in done.stdout
        assert leases(far) == []


def test_on_loopback_the_prediction_stands_beside_what_was_measured_too(ghostbox_cli: Cli) -> None:
    done = ghostbox_cli("bench", "--short", "--only", "sequential")
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("PREDICTED AS PLAN DOES")[2].splitlines()
    assert table[0].split() == ["PREDICTED", "MEASURED", "RATIO"]
    assert table[1].startswith("cold sequential read")


def test_what_nothing_is_predicted_for_measures_no_link(ghostbox_cli: Cli) -> None:
    found = report(ghostbox_cli, "--only", "memserver-memory")
    assert found["predictions"] == []
    assert "link" not in found["figures"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_however_it_ends_the_leases_are_given_back(donor: RunningDonor, number: signal.Signals) -> None:
    words = ["bench", "--short", "--rounds", "100", "--only", "threads", "--donor", donor.address]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "ghostbox", *words]
    with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        processes.wait_until(lambda: leases(donor) != [], timeout_s=60, what="a lease")
        running.send_signal(number)
        assert running.wait(60) == 130
    assert leases(donor) == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--donor", "127.0.0.1:1"], 1, "cannot reach donor 127.0.0.1:1"),
        (["--donor", "fe80::1"], 2, "write an IPv6 address in brackets"),
        (["--donor", "tower", "--only", "server"], 2, "--only: nothing is called 'server'"),
        (["--donor", "tower", "--vm"], 2, "--donor and --vm exclude each other"),
    ],
)
def test_errors(ghostbox_cli: Cli, words: list[str], code: int, message: str) -> None:
    done = ghostbox_cli("bench", "--short", *words)
    assert done.returncode == code
    assert message in done.stderr


def test_a_donor_without_room(ghostbox_cli: Cli, donor: RunningDonor) -> None:
    with DonorClient(donor.address) as client:
        client.create_lease("held", 4 * MIB, Holder("tower", "ana"))
        try:
            done = ghostbox_cli("bench", "--short", "--only", "faults", "--donor", donor.address)
        finally:
            client.release_lease("held")
    assert done.returncode == 5
    assert "64 MiB" in done.stderr
    assert leases(donor) == []
