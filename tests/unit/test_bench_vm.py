# SPDX-License-Identifier: MIT
"""The logic of ``ghostbox bench --vm``: its domain, its rows, what it refuses."""

from __future__ import annotations

import dataclasses
import os
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from ghostbox import bench, config, paths, plan
from ghostbox.bench import plot, vm, vm_domain, vm_guests, vm_scale, vm_session
from ghostbox.bench.lab import Lab
from ghostbox.bench.model import Outcome, Report, Results, Row, make_row
from ghostbox.bench.scale import SHORT
from ghostbox.bench.vm_domain import NbdDisk
from ghostbox.errors import GuestError, Refused, UsageError
from ghostbox.placement import Offer
from ghostbox.plan import BootPlan, HostFacts, ImagePlan, Virt, VmPlan
from ghostbox.ssh import Result
from ghostbox.units import GIB, MIB

DISKS = (NbdDisk("ghostbox-swap", 10001, "bench"), NbdDisk("ghostbox-files", 10002, "bench"))
COUNTERS = ("pgpromote_success", "pgdemote_kswapd", "pgdemote_direct", "pgdemote_khugepaged", "pswpin", "pswpout")


def load_config(settings: dict[str, object]) -> config.Config:
    return config.load(settings, None)


def make_plan() -> VmPlan:
    image = ImagePlan("debian", Path("/i/disk.qcow2"), BootPlan(Path("/i/vmlinuz"), None, "quiet"))
    offer = Offer("127.0.0.1:10810", 16 * GIB)
    facts = HostFacts(
        Virt.TCG, "", "11111111-2222-3333-4444-555555555555", "52:54:00:01:02:03", 2222, (offer,), image, Path("/s.so")
    )
    where = paths.Paths(*(Path(f"/{name}") for name in "srcen"))
    return plan.make(load_config({"vm.name": "bench-1-swap"}), where, facts)


def scenarios(*, tiered: bool = True) -> dict[str, Any]:
    lab = Lab(paths.find(), SHORT)
    setup = vm_guests.Setup(lab, load_config, vm_scale.FULL, lambda _text: None, tiered)
    return {scenario.name: scenario for scenario in vm.scenarios(setup)}


def outcome(rate: float, moved: int) -> Outcome:
    phase = {"per_s": rate, "vmstat": dict.fromkeys(COUNTERS, moved)}
    return Outcome(vm._figures(dict.fromkeys((*vm_scale.READS, "sort"), phase)))


def rows(results: Results, *, tiered: bool = True) -> list[Row]:
    scenario = scenarios(tiered=tiered)["guest/1.2"]
    return [make_row(scenario, spec, results) for spec in scenario.rows]


def test_reference_has_one_node_no_shim_and_its_disks() -> None:
    local = dataclasses.replace(make_plan(), memory_bytes=352 * MIB, remote_memory_bytes=0)
    root = ET.fromstring(vm_domain.build(local, DISKS))
    assert root.findtext("memory") == str(352 * 1024)
    assert root.find("memoryBacking") is None
    assert root.find("cpu/numa") is None
    assert "LD_PRELOAD" not in ET.tostring(root, encoding="unicode")
    found = root.findall("devices/disk[@type='network']")
    assert [disk.findtext("serial") for disk in found] == ["ghostbox-swap", "ghostbox-files"]
    assert [disk.find("source/host").get("port") for disk in found] == ["10001", "10002"]  # type: ignore[union-attr]
    assert DISKS[0].guest_path == "/dev/disk/by-id/virtio-ghostbox-swap"


def test_rows_stand_beside_swap_with_the_targets_and_beside_the_same_guest_without_tiering() -> None:
    results = Results({"ghostbox": [outcome(900, 3)], "tiering off": [outcome(1800, 0)], "swap": [outcome(100, 30)]})
    found = rows(results)
    judged = {row.what.partition(",")[0]: row for row in found if row.target}
    assert [(row.target.ratio, row.reached) for row in judged.values() if row.target] == [
        (2, True), (8, True), (5, True), (5, True), (2, True),
    ]  # fmt: skip
    assert {row.reference_name for row in judged.values()} == {"swap"}
    assert judged["scan again and again"].ratio is not None
    assert judged["scan again and again"].ratio.median == 9
    costs = [row for row in found if row.reference_name == "tiering off"]
    assert [row.ratio.median for row in costs if row.ratio] == [0.5] * 4
    moved = {row.what.partition(",")[0]: row for row in found if row.unit == "pages"}
    assert moved["pages promoted"].reference_name == "swapped in"
    # 4 phases, 3 pages each; demoted pages are counted in three ways.
    assert [row.measured.median for row in moved.values() if row.measured] == [12, 36]


def test_where_a_guest_has_no_tiering_by_default_the_pages_moved_are_those_of_the_guest_with_it() -> None:
    results = Results({"ghostbox": [outcome(900, 0)], "tiering on": [outcome(600, 3)], "swap": [outcome(100, 30)]})
    found = rows(results, tiered=False)
    assert {row.ratio.median for row in found if row.target and row.ratio} == {9}
    costs = [row for row in found if row.reference_name == "tiering on"]
    assert [row.ratio.median for row in costs if row.ratio] == [1.5] * 4
    assert {row.note for row in costs} == {"the same guest with promotion and demotion"}
    assert [row.measured.median for row in found if row.unit == "pages" and row.measured] == [12, 36]
    assert [each.name for each in scenarios(tiered=False)["guest/1.2"].contenders] == ["ghostbox", "tiering on", "swap"]


def test_without_nbdkit_the_rows_say_why() -> None:
    results = Results(
        {"ghostbox": [outcome(1, 1)], "tiering off": [outcome(1, 1)]}, {"swap": "nbdkit is not installed"}
    )
    judged = [row for row in rows(results) if row.target]
    assert all(row.ratio is None and "nbdkit is not installed" in row.note for row in judged)


def test_sets_fit_into_either_guest_and_into_no_local_memory() -> None:
    for scale in (vm_scale.FULL, vm_scale.SHORT):
        system_bytes = 160 * MIB
        for work in scale.sets:
            size = scale.times_local(work.factor)
            assert scale.local_bytes < size < scale.memory_bytes + scale.remote_bytes - system_bytes


def test_picture_shows_the_ratios(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = Results({"ghostbox": [outcome(900, 3)], "tiering off": [outcome(1800, 0)], "swap": [outcome(100, 30)]})
    report = Report("0", {}, 1, True, rows(results), {}, {}, {})
    plot.draw(report, tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    assert "In the guest, beside swap over NBD" in text
    assert "Zipf 0.9 reads, set 1.2 × local RAM" in text


@pytest.mark.parametrize(("short", "hint"), [(True, None), (False, "ghostbox bench --vm --short")])
def test_too_little_memory_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, short: bool, hint: str | None
) -> None:
    for name in ("SHORT", "FULL"):
        monkeypatch.setattr(vm_scale, name, dataclasses.replace(vm_scale.SHORT, needed_bytes=1 << 60))
    options = bench.Options(rounds=1, short=short, vm=load_config)
    with pytest.raises(Refused, match="the benchmark needs 1048576 TiB, available are") as caught:
        bench.run(options, paths.find(), lambda _text: None)
    assert caught.value.hint == hint


def test_only_names_parts_of_the_guest_run() -> None:
    assert set(scenarios()) == {"guest/1.2", "guest/2", "weights"}


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("bench-{pid}-ghostbox", False),
        ("bench-999999999-ghostbox", True),
        ("bench-999999999-1", True),
        ("bench-mine", False),
        ("demo", False),
        ("my-bench-999999999-swap", False),
    ],
)
def test_only_what_a_dead_run_made_counts_as_left(name: str, left: bool) -> None:
    assert vm_session.is_left(name.format(pid=os.getpid())) is left


def test_without_vm_there_is_no_guest_part() -> None:
    with pytest.raises(UsageError, match="--only: nothing is called 'guest'"):
        bench.run(bench.Options(rounds=1, short=True, only=("guest",)), paths.find(), lambda _text: None)


class DyingSsh:
    """A guest in which a signal ends every load; its kernel log is given."""

    def __init__(self, log: str, status: int) -> None:
        self.log, self.status = log, status

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Result:
        """Answer as GuestSsh does."""
        return Result(0, self.log, "") if stdin == "dmesg" else Result(self.status, "", "")


@pytest.mark.parametrize(
    ("status", "how"),
    [(137, "was killed by a signal"), (-1, "ended without an exit status: by a signal, or its SSH session broke")],
)
def test_a_load_that_was_killed_names_what_the_guests_kernel_said(status: int, how: str) -> None:
    oom = "[9.1] Out of memory: Killed process 512 (ghostbox-guest-) total-vm:1048576kB"
    ssh: Any = DyingSsh(f"[1.0] Linux version\n{oom}\n[9.2] eth0: link is up", status)
    with pytest.raises(GuestError, match=f"the load in guest 'swap' {how}") as caught:
        vm_guests.Guest("swap", ssh).load("memory bytes=4096 fill")
    assert caught.value.why == f"the guest's kernel says:\n{oom}"


def test_a_load_that_was_killed_for_no_known_reason_shows_the_end_of_the_kernels_log() -> None:
    ssh: Any = DyingSsh("\n".join(f"[{n}.0] line" for n in range(9)), -1)
    with pytest.raises(GuestError) as caught:
        vm_guests.Guest("ghostbox", ssh).load("memory bytes=4096 fill")
    assert caught.value.why is not None
    assert caught.value.why.splitlines()[1:] == [f"[{n}.0] line" for n in range(4, 9)]
