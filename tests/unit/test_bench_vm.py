# SPDX-License-Identifier: MIT
"""``ghostbox bench --vm`` makes its domain and its rows correctly, and refuses what it must."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import psutil
import pytest
from rich.console import Console

from ghostbox import bench, config, paths
from ghostbox.bench import plot, vm, vm_apps, vm_domain, vm_guests, vm_load, vm_scale, vm_session
from ghostbox.bench.lab import Lab
from ghostbox.bench.model import GuestSizes, Outcome, Predicted, Report, Results, Row, make_row
from ghostbox.bench.scale import SHORT
from ghostbox.bench.vm_domain import NbdDisk
from ghostbox.bench.vm_load import Phase
from ghostbox.cli import bench as bench_command
from ghostbox.errors import GuestError, Refused, UsageError
from ghostbox.plan import plan
from ghostbox.plan.placement import Offer
from ghostbox.plan.plan import BootPlan, HostFacts, ImagePlan, Virt, VmPlan
from ghostbox.system.ssh import Result
from ghostbox.units import GIB, MIB, PAGE_BYTES

Cli = Callable[..., "CompletedProcess[str]"]
DISKS = (NbdDisk("ghostbox-swap", 10001, "bench"), NbdDisk("ghostbox-files", 10002, "bench"))
COUNTERS = (
    *("pgpromote_success", "pgdemote_kswapd", "pgdemote_direct", "pgdemote_khugepaged", "pgmigrate_success"),
    *("pswpin", "pswpout"),
)


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


def scenarios() -> dict[str, Any]:
    lab = Lab(paths.find(), SHORT)
    setup = vm_guests.Setup(lab, load_config, vm_scale.FULL, lambda _text: None, emulated=True)
    return {scenario.name: scenario for scenario in vm.scenarios(setup)}


def line(word: str, rate: float, moved: int, *, last: bool) -> str:
    data: dict[str, object] = {"vmstat": dict.fromkeys(COUNTERS, moved), "movers_s": 0.1, "seconds": 2.0}
    if last:
        return json.dumps({"phase": word, "per_s": rate, "settled": True, "settled_s": 6.0, "windows": 1, **data})
    return json.dumps({"window": word, "count": rate * 2, **data})


def phases(rate: float, moved: int, fetched: int) -> list[Phase]:
    """Return all phases, each with two windows of which the second is the measured one.

    In each an access waits for ``fetched`` pages, and as many are read ahead.
    """
    lines = [('{"begun": true}', {"pager_missing_fetch": 0.0, "pager_read_bytes": 0.0})]
    for number, word in enumerate(map(vm_scale.FULL.word, vm_scale.ALL_PHASES)):
        for window, last in enumerate((False, False, True)):
            count = fetched * (2 * number + min(window + 1, 2))
            counters = {"pager_missing_fetch": float(count), "pager_read_bytes": count * 2.0 * PAGE_BYTES}
            lines.append((line(word, rate, moved, last=last), counters))
    return vm_load.collect(lines)


def outcome(rate: float, moved: int = 0, fetched: int = 0) -> Outcome:
    found = vm._figures(vm_scale.ALL_PHASES, phases(rate, moved, fetched), 100 * MIB)
    return Outcome({"programs_bytes": rate * MIB, **found})


def rows(results: Results) -> list[Row]:
    scenario = scenarios()["guest/1.2"]
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


RESULTS = Results(
    {"ghostbox": [outcome(900, 3, 7)], "swap": [outcome(100, 30)], "all local": [outcome(1000)]},
    {"zswap": "the guest's kernel has no zswap"},
)


def test_rows_stand_beside_swap_with_the_targets_and_beside_all_local_memory() -> None:
    found = [row for row in rows(RESULTS) if row.unit in ("/s", "B/s")]
    beside = {name: [row for row in found if row.reference_name == name] for name in ("swap", "all local")}
    assert [row.target.ratio for row in beside["swap"] if row.target] == [1.5, 1, 1, 1, 1, 1, 3, 4, 4, 4, 8, 2]
    assert {row.ratio.median for row in beside["swap"] if row.ratio} == {9}
    assert [row.reached for row in beside["swap"]] == [True] * 12
    assert {row.ratio.median for row in beside["all local"] if row.ratio} == {0.9}
    judged = [row for row in beside["all local"] if row.target]
    assert [row.target.ratio for row in judged if row.target] == [0.5] * 4
    without = [row for row in found if row.ratio is None]
    assert len(without) == 12
    assert all("no zswap" in row.note for row in without)


def test_figures_are_of_the_windows_that_were_measured() -> None:
    figures = outcome(900, 3, 7).figures
    assert figures["hot50_settled_s"] == 6
    assert figures["hot50_fetched"] == pytest.approx((7 + 3) / 1800 * 1000)  # the pager fetched, and 3 were swapped in
    assert figures["hot50_network"] == pytest.approx((2 * 7 + 3) / 1800 * 1000)  # as much again was read ahead
    assert figures["scan_fetched"] == pytest.approx((7 + 3) / (1800 / 4096) * 1000)  # a scan counts bytes
    assert figures["scanned50_fetched"] == figures["hot50_fetched"]  # the hot half of a set counts pages
    assert figures["hot50_moving"] == pytest.approx(3 * 4096 / (100 * MIB) / 2 * 60)
    assert figures["movers"] == pytest.approx(0.05)


def test_times_and_what_goes_on_for_ever_have_targets() -> None:
    found = {row.what: row for row in rows(RESULTS) if row.target and row.unit not in ("/s", "B/s")}
    assert len([what for what in found if "time until settled" in what]) == 4
    moving = found["parts of the set that tiering moves a minute, set 1.2 × local RAM"]
    assert (moving.reference_name, moving.reached) == ("1 % a minute", True)
    taken = found["processors of the guest that tiering takes, set 1.2 × local RAM"]
    assert taken.reference_name == "5 % of one"
    assert taken.ratio is not None and taken.ratio.median == pytest.approx(1)


def test_what_is_left_to_programs_stands_beside_what_swap_leaves_them() -> None:
    found = {row.what: row for row in rows(RESULTS)}["local RAM that programs can have, set 1.2 × local RAM"]
    assert (found.reference_name, found.target, found.ratio and found.ratio.median) == ("swap", None, 9)
    assert found.note.endswith("Hot sets of 50 and 80 % are 224 MiB and 358 MiB")


def test_without_nbdkit_the_rows_say_why() -> None:
    results = Results(
        {"ghostbox": [outcome(1)]}, {"swap": "nbdkit is not installed", "zswap": "nbdkit is not installed"}
    )
    judged = [row for row in rows(results) if row.target and "processors" not in row.what and "moves" not in row.what]
    beside = [row for row in judged if row.note.startswith(("swap:", "the guest that swaps"))]
    assert len(beside) == 24
    assert all(row.ratio is None and "nbdkit is not installed" in row.note for row in beside)


SCALES = (vm_scale.FULL, vm_scale.SHORT, *(vm_scale.FULL.resized(size * MIB) for size in (384, 640, 896, 2000)))


def test_sets_fit_into_either_guest_and_into_no_local_memory() -> None:
    for scale in SCALES:
        system_bytes = 160 * MIB
        for work in scale.sets:
            size = scale.times_local(work.factor)
            assert scale.local_bytes < size < scale.memory_bytes + scale.remote_bytes - system_bytes


def test_guests_of_twice_the_size_have_twice_the_rest() -> None:
    larger = vm_scale.FULL.resized(2 * vm_scale.FULL.local_bytes)
    assert (larger.remote_bytes, larger.needed_bytes) == (
        2 * vm_scale.FULL.remote_bytes,
        2 * vm_scale.FULL.needed_bytes,
    )
    assert larger.times_local(0.8) == pytest.approx(2 * vm_scale.FULL.times_local(0.8), abs=2 * MIB)


def test_what_programs_can_have_is_free_above_the_watermark_or_theirs() -> None:
    meminfo = "\n".join(
        f"Node 0 {line}"
        for line in ("MemTotal: 250000 kB", "MemFree: 100000 kB", "Active: 50000 kB", "Inactive: 7000 kB")
    )
    zones = "Node 0, zone DMA\n  pages free 9\n        low      100\nNode 0, zone Normal\n        low      200\n"
    other = "Node 1, zone Movable\n        low      7000\n"
    expected = (100000 + 50000 + 7000) * 1024 - 300 * PAGE_BYTES
    assert vm_load.programs_bytes(meminfo, zones + other) == expected


def test_a_kernels_own_files_say_what_programs_can_have() -> None:
    files = ("/sys/devices/system/node/node0/meminfo", "/proc/zoneinfo")
    found = vm_load.programs_bytes(*(Path(file).read_text() for file in files))
    assert 0 < found < psutil.virtual_memory().total


def test_guests_are_split_as_any_vm_is() -> None:
    for scale in SCALES:
        made = load_config(vm_guests._settings(scale, []))
        assert (made.vm.memory_bytes, made.pool.cache_bytes) == (scale.memory_bytes, scale.cache_bytes)
        assert scale.memory_bytes + scale.cache_bytes == scale.local_bytes
        plan.check_sizes(made)


def test_report_says_what_the_guests_had_and_what_was_predicted_well() -> None:
    found = [Predicted.of("hot50", "‰", 0.0, 3.0, 10.0), Predicted.of("zipf09", "‰", 100.0, 150.0)]
    sizes = GuestSizes(256 * MIB, 192 * MIB, GIB, "1gbit")
    machine = {"cpus": 2, "load_1min": 0.0, "kernel": "6.1"}
    console = Console(width=200, file=io.StringIO())
    console.print(bench_command.table(Report("0", machine, 1, False, [], {}, {}, {}, found, sizes)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"^hot50 +0\.0 ‰ +3\.0 ‰ +– +within 30 %", shown, re.MULTILINE)
    assert re.search(r"^zipf09 +100 ‰ +150 ‰ +1\.50 +not within 30 %", shown, re.MULTILINE)
    assert "1 of 2 predictions within 30 %" in shown
    assert "Guests: 256 MiB of node 0 and 192 MiB of cache, 1 GiB on donors over a wire of 1gbit." in shown


def test_picture_shows_the_ratios(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = Report("0", {}, 1, True, rows(RESULTS), {}, {}, {})
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
    assert set(scenarios()) == {"guest/1.2", "guest/2", "weights", "database", "redis", "tiering/1.2", "tiering/2"}


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


class Without:
    """Be a guest whose image lacks what the script needs: each script ends with status 77."""

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Result:
        """Answer as GuestSsh does."""
        return Result(77, "", "")


def test_without_redis_in_the_image_the_row_says_how_to_build_one_that_has_it() -> None:
    ssh: Any = Without()
    with pytest.raises(GuestError, match="^redis-server and redis-tools are not in the guest's image$") as caught:
        vm_apps._run(vm_guests.Guest("ghostbox", ssh), "sh -s", "", 1.0)
    assert caught.value.why is not None
    assert "ghostbox image build --name redis" in caught.value.why


@pytest.mark.parametrize("words", [("--image", "redis"), ("--local", "896M")])
def test_what_guests_are_made_of_is_for_guests(quick_cli: Cli, words: tuple[str, str]) -> None:
    done = quick_cli("bench", *words)
    assert done.returncode == 2
    assert f"error: {words[0]} is for --vm\nwhy: without --vm no guest is made" in done.stderr


def test_guests_of_another_size_need_as_much_more() -> None:
    options = bench.Options(rounds=1, vm=load_config, local_bytes=1 << 50)
    with pytest.raises(Refused, match="the benchmark needs 16384 TiB, available are"):
        bench.run(options, paths.find(), lambda _text: None)


class DyingSsh:
    """Be a guest in which a signal ends every load; the caller gives its kernel log."""

    def __init__(self, log: str, status: int) -> None:
        self.log, self.status = log, status

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Result:
        """Answer as GuestSsh does."""
        return Result(0, self.log, "")

    @contextlib.contextmanager
    def opened(self, command: str, *, silence_s: float) -> Iterator[DyingSsh]:
        """Answer as GuestSsh does."""
        yield self

    def recv(self, n_bytes: int) -> bytes:
        """Return no output."""
        return b""

    def ending(self) -> tuple[int, str]:
        """Return that the load has ended."""
        return self.status, ""


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
