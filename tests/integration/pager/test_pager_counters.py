# SPDX-License-Identifier: MIT
"""The pager's status has every field, and each counter counts what its name says."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox.system.processes import ControlError, wait_until
from helpers.pager import (
    MemoryClient,
    RunningMemserver,
    RunningPager,
    memory_client,
    nbdkit_memory,
    running_memserver,
    running_pager,
)

MIB = 1 << 20
Small = tuple[RunningMemserver, RunningPager, MemoryClient]

FIELDS: dict[str, Any] = {
    "version": str,
    "pid": int,
    "uptime_s": int,
    "cache_bytes": int,
    "poll_us": int,
    "features": {"wp_async", "continue_wp", "poison"},
    "hidden_features": list,
    "dirty_tracking": str,
    "regions": [{"id", "pid", "comm", "length_bytes", "connected"}],
    "pages": {
        "total",
        "resident",
        "inactive",
        "dirty",
        "fetching",
        "writeback",
        "on_donor",
        "pinned",
        "poisoned",
    },
    "faults": {"missing_fetch", "missing_zero", "minor", "wp", "deferred"},
    "latency": {"fetch", "fetch_request", "fetch_install", "minor", "zero"},
    "readahead": {"issued", "used", "wasted"},
    "evictions": {"clean", "dirty", "zero", "zapped", "second_chance"},
    "discards": {"requests", "pages"},
    "donors": [
        {
            "uri",
            "export_bytes",
            "extents",
            "state",
            "read_bytes",
            "written_bytes",
            "trimmed_bytes",
            "reads",
            "writes",
            "errors",
            "writes_refused",
            "refuses_s",
            "latency",
        }
    ],
}
HISTOGRAM = {"count", "mean_us", "p50_us", "p99_us", "p999_us", "max_us", "buckets"}


@pytest.fixture
def small() -> Iterator[Small]:
    """Yield 16 MiB of memory on a 2 MiB cache."""
    with (
        running_memserver(a="16M") as donor,
        running_pager([donor.uri("a")], cache="2M") as pager,
        memory_client("16M", pager) as client,
    ):
        yield donor, pager, client


@pytest.fixture
def in_order() -> Iterator[Small]:
    """Yield the same with eviction in the order of arrival: a pass over the memory evicts all other pages."""
    with (
        running_memserver(a="16M") as donor,
        running_pager([donor.uri("a")], cache="2M", fifo="", readahead="0") as pager,
        memory_client("16M", pager) as client,
    ):
        yield donor, pager, client


def donor_bytes(pager: RunningPager) -> tuple[int, int]:
    """Return the bytes that were read from and written to the donors."""
    donors = pager.status()["donors"]
    return sum(donor["read_bytes"] for donor in donors), sum(donor["written_bytes"] for donor in donors)


def quiet(pager: RunningPager) -> None:
    """Wait until no eviction is in flight."""
    seen = [0, -1]

    def settled() -> bool:
        seen.append(sum(pager.status()["evictions"].values()))
        return seen[-1] == seen[-2]

    wait_until(settled, timeout_s=10, what="quiet", interval_s=0.2)


def test_status_has_every_field(small: Small) -> None:
    _, pager, client = small
    client.command("fill")
    status = pager.status()
    for name, shape in FIELDS.items():
        value = status[name]
        if isinstance(shape, type):
            assert isinstance(value, shape), name
        elif isinstance(shape, set):
            assert shape <= set(value), name
        else:
            assert all(shape[0] <= set(entry) for entry in value) and value, name
    for histogram in [*status["latency"].values(), status["donors"][0]["latency"]]:
        assert set(histogram) >= HISTOGRAM
    assert status["regions"][0]["pid"] == client.pid
    assert status["regions"][0]["length_bytes"] == 16 * MIB
    assert status["pages"]["total"] == 4096


def test_pages_that_were_never_written_need_no_donor(small: Small) -> None:
    donor, pager, client = small
    client.command("verify", seed=0)
    client.command("verify", seed=0)
    quiet(pager)
    assert donor_bytes(pager) == (0, 0)
    assert donor.resident_bytes("a") == 0
    assert pager.status()["evictions"]["zero"] > 3000


def test_clean_pages_are_dropped_without_a_byte(in_order: Small) -> None:
    _, pager, client = in_order
    client.command("fill", seed=1)
    client.command("seq-read")  # the last dirty pages are evicted
    quiet(pager)
    written = donor_bytes(pager)[1]
    clean = pager.status()["evictions"]["clean"]
    for _ in range(3):
        client.command("verify", seed=1)
    quiet(pager)
    assert donor_bytes(pager)[1] == written
    assert pager.status()["evictions"]["clean"] > clean + 3 * 3000
    assert donor_bytes(pager)[0] >= 3 * 14 * MIB


def test_one_write_makes_one_page_dirty(in_order: Small) -> None:
    _, pager, client = in_order
    client.command("fill", seed=2)
    client.command("seq-read")
    quiet(pager)
    written = donor_bytes(pager)[1]
    for page in range(0, 4096, 256):
        client.command("write", first=page, value=page + 1)
    client.command("seq-read")
    client.command("seq-read")
    quiet(pager)
    assert donor_bytes(pager)[1] == written + 16 * 4096
    for page in range(0, 4096, 256):
        assert client.command("read", first=page)["value"] == page + 1


def test_pages_that_became_zero_are_trimmed_not_sent(in_order: Small) -> None:
    donor, pager, client = in_order
    client.command("fill", seed=3)
    client.command("seq-read")
    quiet(pager)
    written = donor_bytes(pager)[1]
    client.command("zero")
    client.command("seq-read")
    quiet(pager)
    assert donor_bytes(pager)[1] == written
    assert donor.resident_bytes("a") <= 2 * MIB
    client.command("verify", seed=0)


def test_a_sequential_reader_is_read_ahead_of() -> None:
    with (
        running_memserver(a="32M") as donor,
        running_pager([donor.uri("a")], cache="8M") as pager,
        memory_client("32M", pager) as client,
    ):
        client.command("fill", seed=4)
        quiet(pager)
        before = pager.status()
        client.command("verify", seed=4)
        after = pager.status()
    issued, used, wasted = (after["readahead"][key] - before["readahead"][key] for key in ("issued", "used", "wasted"))
    assert issued > 6000
    assert used > 0.9 * issued
    assert wasted < 0.1 * issued
    assert after["faults"]["missing_fetch"] - before["faults"]["missing_fetch"] < 1600
    assert after["donors"][0]["reads"] - before["donors"][0]["reads"] < 2000


def test_readahead_zero_turns_it_off() -> None:
    with (
        running_memserver(a="16M") as donor,
        running_pager([donor.uri("a")], cache="2M", readahead="0") as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", seed=5)
        client.command("verify", seed=5)
        assert pager.status()["readahead"] == {"issued": 0, "used": 0, "wasted": 0}


def test_set_cache_shrinks_at_once(small: Small) -> None:
    _, pager, client = small
    client.command("fill", seed=6)
    assert pager.command("set-cache", cache_bytes=MIB) == {"cache_bytes": MIB}
    wait_until(lambda: client.command("allocated")["bytes"] <= MIB, timeout_s=10, what="a smaller memfd")
    assert pager.resident_bytes() <= MIB
    client.command("verify", seed=6)


@pytest.mark.parametrize("value", [0, 4096, -1, "8M", None, 1 << 62])
def test_set_cache_refuses_nonsense(small: Small, value: object) -> None:
    _, pager, _ = small
    with pytest.raises(ControlError) as info:
        pager.command("set-cache", cache_bytes=value)
    assert info.value.code == "invalid"
    assert pager.status()["cache_bytes"] == 2 * MIB


def test_stop_is_refused_while_memory_is_used(small: Small) -> None:
    _, pager, client = small
    with pytest.raises(ControlError) as info:
        pager.command("stop")
    assert info.value.code == "busy"
    client.kill()
    wait_until(lambda: not pager.status()["regions"], timeout_s=10, what="end of the region")
    pager.command("stop")
    assert pager.process.wait(10) == 0


def test_stop_by_force_ends_it(small: Small) -> None:
    _, pager, client = small
    client.command("fill", seed=7)
    pager.command("stop", force=True)
    assert pager.process.wait(10) == 0
    client.start("verify", seed=7)
    assert client.answers_nothing("verify", for_s=0.5)


def test_an_unknown_command_is_refused(small: Small) -> None:
    with pytest.raises(ControlError, match="make-coffee"):
        small[1].command("make-coffee")


def test_the_end_of_the_process_frees_its_pages_here_and_on_the_donor(small: Small) -> None:
    donor, pager, client = small
    client.command("fill", seed=8)
    assert donor.resident_bytes("a") > 0
    client.kill()
    wait_until(lambda: not pager.status()["regions"], timeout_s=10, what="end of the region")
    assert donor.resident_bytes("a") == 0
    assert pager.status()["pages"]["present"] == 0
    with memory_client("16M", pager) as again:
        again.command("verify", seed=0)


def test_memory_unplugged_at_run_time_frees_its_pages(small: Small) -> None:
    donor, pager, client = small
    client.command("unmap")
    wait_until(lambda: not pager.status()["regions"], timeout_s=10, what="end of the region")
    index = client.command("map", bytes="8M")["index"]
    wait_until(lambda: len(pager.status()["regions"]) == 1, timeout_s=10, what="a new region")
    client.command("fill", seed=9, region=index)
    client.command("verify", seed=9, region=index)
    client.command("unmap", region=index)
    wait_until(lambda: not pager.status()["regions"], timeout_s=10, what="end of the region")
    assert donor.resident_bytes("a") == 0


def test_exit_with_client_trims_and_ends() -> None:
    with running_memserver(a="16M") as donor:
        with running_pager([donor.uri("a")], cache="2M", exit_with_client="") as pager:
            with memory_client("16M", pager) as client:
                client.command("fill", seed=10)
                assert donor.resident_bytes("a") > 0
            assert pager.process.wait(10) == 0
        assert donor.resident_bytes("a") == 0


def test_contents_keep_brings_what_the_export_holds(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * 16 * 1024)  # 4 MiB
    with nbdkit_memory("4M") as uri:
        subprocess.run(["nbdcopy", str(image), uri], check=True, timeout=60)
        with running_pager([uri], cache="1M", contents="keep") as pager, memory_client("4M", pager) as client:
            for page in (0, 500, 1023):
                assert client.command("read", first=page)["value"] == int.from_bytes(range(8), "little")
            client.command("fill", seed=11)
            client.command("verify", seed=11)


def test_contents_fresh_ignores_what_the_export_holds(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"\xff" * 4 * MIB)
    with nbdkit_memory("4M") as uri:
        subprocess.run(["nbdcopy", str(image), uri], check=True, timeout=60)
        with running_pager([uri], cache="1M") as pager, memory_client("4M", pager) as client:
            client.command("verify", seed=0)


def test_memory_is_spread_over_donors_by_their_size() -> None:
    with (
        running_memserver(a="8M", b="24M") as donor,
        running_pager([donor.uri("a"), donor.uri("b")], cache="1M", extent="1M") as pager,
        memory_client("32M", pager) as client,
    ):
        client.command("fill", seed=12)
        client.command("verify", seed=12)
        extents = [entry["extents"] for entry in pager.status()["donors"]]
        assert extents == [8, 24]
        # Both donors are in use from the start, not one after the other.
        client.command("discard")
        client.command("fill", seed=13, first=0, n=2048)
        client.command("seq-read", first=4096, n=512)
        assert donor.resident_bytes("a") > 0
        assert donor.resident_bytes("b") > 0
