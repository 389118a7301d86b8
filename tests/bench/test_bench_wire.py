# SPDX-License-Identifier: MIT
"""``ghostbox bench --only link`` measures over wires that it makes and removes. No timing is asserted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ghostbox import paths
from ghostbox.bench import vm_guests, vm_session, wire
from ghostbox.bench.lab import Lab
from ghostbox.bench.narrow import RATES
from ghostbox.bench.scale import SHORT
from ghostbox.donors import client as donor_client
from ghostbox.system import processes
from helpers.pager import short_dir
from helpers.project import ROOT

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def place() -> Iterator[Path]:
    with short_dir() as found:
        yield found


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(paths.find(), SHORT) as found:
        if found.cable_missing:
            pytest.skip(f"cannot run here: {found.cable_missing}")
        yield found


def namespaces(place: Path) -> set[Path]:
    """Return network namespaces of the processes that a benchmark with this TMPDIR started: no other ones exist."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"TMPDIR={place}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.add((entry / "ns/net").readlink())
    return found


def wires_outside() -> list[str]:
    """Return the machine's own interfaces that are a benchmark's wire; other tests make and remove others."""
    return [entry.name for entry in Path("/sys/class/net").iterdir() if entry.name == wire.DEVICE]


def test_a_wire_carries_its_rate_in_each_direction_and_no_more(lab: Lab) -> None:
    wired = lab.wired("100mbit")
    for far in (False, True):
        found = wired.client_and_peer("wire", {"ms": 500}, far=far)
        # A token bucket lets 256 KiB, its size, pass beside its rate.
        assert 0 < found["bytes"] <= 100e6 / 8 * found["seconds"] + (256 << 10)


def test_the_donor_is_at_the_far_end_and_the_pager_at_the_near_one(lab: Lab) -> None:
    wired = lab.wired("1gbit")
    own = Path("/proc/self/ns/net").readlink()
    donor = wired.donor()
    with wired.pager(donor, 16 << 20) as pager:
        ends = [Path(f"/proc/{pid}/ns/net").readlink() for pid in (donor.pid, pager.pid)]
    assert len({own, *ends}) == 3
    assert wired.cable is not None
    assert donor.host == wired.cable.there.address


def test_donors_of_guests_and_their_disks_are_over_a_wire_that_this_machine_is_at_itself(lab: Lab, place: Path) -> None:
    own = Path("/proc/self/ns/net").readlink()
    with lab.from_here("1gbit") as wired:
        assert wired.cable is not None
        far = wired.cable.there.address
        with wired.nbdkit(1 << 20) as disk, vm_session.lent(1, 64 << 20, lab.paths, vm_guests.place(wired)) as lent:
            assert disk.host == far
            with donor_client.DonorClient(lent[0].address) as client:
                assert client.status().size_bytes == 64 << 20
            assert [each.address.partition(":")[0] for each in lent] == [far]
            ends = {Path(f"/proc/{pid}/ns/net").readlink() for pid in (disk.pid, lent[0].pid)}
            assert len(ends) == 1
            assert own not in ends
        assert Path(f"/sys/class/net/{wire.DEVICE_HERE}").exists()
    processes.wait_until(
        lambda: not Path(f"/sys/class/net/{wire.DEVICE_HERE}").exists(), timeout_s=20, what="the end of the wire"
    )


def test_a_wire_is_for_guests(ghostbox_cli: Cli) -> None:
    done = ghostbox_cli("bench", "--short", "--wire", "1gbit")
    assert done.returncode == 2
    assert "--wire is for --vm" in done.stderr
    assert "without --vm, `--only link` measures over wires" in done.stderr


def test_every_row_has_its_ratio_and_nothing_is_left(ghostbox_cli: Cli, lab: Lab, place: Path) -> None:
    done = ghostbox_cli("bench", "--short", "--only", "link", "--json", env={"TMPDIR": str(place)})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    found = [(row["scenario"], row["reference_name"]) for row in report["rows"] if row["ratio"]["median"] > 0]
    assert found == [
        (f"link/{rate}/{name}", reference)
        for rate in RATES
        for name, reference in (
            ("faults", "floor"),
            ("sequential", "raw TCP"),
            ("sequential", "nbdcopy"),
            ("writes", "raw TCP"),
        )
    ]
    used = report["figures"]["link/1gbit/writes"]["pager"]
    assert used["host_cpu_s"][0] > 0
    assert used["donor_cpu_s"][0] > 0
    assert wires_outside() == []
    assert not list(place.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_ends_the_wire_is_gone(number: signal.Signals, lab: Lab, place: Path) -> None:
    argv = [sys.executable, "-m", "ghostbox", "bench", "--short", "--rounds", "100", "--only", "link/1gbit/faults"]
    env = {**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        processes.wait_until(lambda: len(namespaces(place)) == 3, timeout_s=60, what="this namespace and two more")
        running.send_signal(number)
        running.wait(60)
    processes.wait_until(lambda: not namespaces(place), timeout_s=20, what="the end of all that was in them")


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ("unshare", "a wire needs network namespaces of the kernel (refused)"),
        ("ip", "a wire needs veth of the kernel (refused)"),
        ("tc", "a wire needs tbf of the kernel (refused)"),
    ],
)
def test_what_the_kernel_has_not_costs_these_rows_only(
    ghostbox_cli: Cli, lab: Lab, place: Path, tool: str, message: str
) -> None:
    tools = place / "bin"
    tools.mkdir()
    (tools / tool).write_text("#!/bin/sh\necho refused >&2\nexit 2\n")
    (tools / tool).chmod(0o755)
    env = {"TMPDIR": str(place), "PATH": f"{tools}:{os.environ['PATH']}"}
    done = ghostbox_cli("bench", "--short", "--only", "link/1gbit,memserver-memory", "--json", env=env)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [row["scenario"] for row in rows if row["ratio"]] == ["memserver-memory"]
    assert all(row["measured"] is None and message in row["note"] for row in rows if not row["ratio"])


def test_a_missing_tool_is_named_with_its_package(ghostbox_cli: Cli, lab: Lab, place: Path) -> None:
    env = {"TMPDIR": str(place), "PATH": "/nonexistent"}
    done = ghostbox_cli("bench", "--short", "--only", "link/1gbit", env=env)
    assert done.returncode == 0, done.stderr
    assert "unshare is not installed: install util-linux" in " ".join(done.stdout.split())  # `ip` is in /usr/sbin


def test_without_root_the_rows_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert Lab(paths.find(), SHORT).cable_missing == "a wire between network namespaces needs root"


def test_on_real_donors_there_is_no_wire(ghostbox_cli: Cli) -> None:
    done = ghostbox_cli("bench", "--short", "--donor", "tower", "--only", "link")
    assert done.returncode == 2
    assert "--only: nothing is called 'link'" in done.stderr
