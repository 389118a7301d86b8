# SPDX-License-Identifier: MIT
"""The pager's choice of pages to keep and to read ahead, judged by its counters and never by the clock."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from ghostbox.system.processes import wait_until
from helpers.pager import MemoryClient, RunningPager, memory_client, running_memserver, running_pager

HOT = range(0, 400)


def touch(client: MemoryClient, pages: Iterable[int]) -> None:
    """Read a word of each page, in the given order."""
    for page in pages:
        client.command("read", first=page)


def fetched(pager: RunningPager) -> int:
    """Return the number of faults that were fetched from a donor."""
    return int(pager.status()["faults"]["missing_fetch"])


def hot_pages_lost(fifo: bool) -> int:
    """Use some pages again and again, read the whole memory once, and count the hot pages that were evicted."""
    options: dict[str, Any] = {"readahead": "0", **({"fifo": ""} if fifo else {})}
    with (
        running_memserver(a="16M") as donor,
        running_pager([donor.uri("a")], cache="4M", **options) as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", seed=1)
        for part in range(6):  # between other pages, as in real use
            touch(client, HOT)
            touch(client, range(1000 + 300 * part, 1000 + 300 * (part + 1)))
        client.command("seq-read", first=800, n=3200)
        before = fetched(pager)
        touch(client, HOT)
        return fetched(pager) - before


def test_a_scan_does_not_displace_the_hot_pages() -> None:
    lost_in_order, lost = hot_pages_lost(fifo=True), hot_pages_lost(fifo=False)
    assert lost_in_order > 0.9 * len(HOT)  # else the scan did not evict enough pages for a test
    assert lost < lost_in_order / 2


@pytest.fixture
def cold() -> Iterator[tuple[RunningPager, MemoryClient]]:
    """Yield 64 MiB of memory, all of it on the donor but for the last eighth."""
    with (
        running_memserver(a="64M") as donor,
        running_pager([donor.uri("a")], cache="8M") as pager,
        memory_client("64M", pager) as client,
    ):
        client.command("fill", seed=2)
        client.command("seq-read", first=12000, n=4000)  # so that pages of the cache are clean and evicted at once
        yield pager, client


@pytest.mark.parametrize("stride", [1, -1, 3, -7, 64])
def test_accesses_at_equal_distances_are_read_ahead(cold: tuple[RunningPager, MemoryClient], stride: int) -> None:
    pager, client = cold
    pages = range(10, 10 + 40 * stride, stride) if stride > 0 else range(3500, 3500 + 40 * stride, stride)
    before = fetched(pager)
    touch(client, pages)
    used = pager.status()["readahead"]["used"]
    assert fetched(pager) - before <= 10, "of 40"
    assert used >= 20


@pytest.mark.parametrize("step", [1, -1])
def test_pages_that_are_here_already_do_not_stop_a_reader_in_order(
    cold: tuple[RunningPager, MemoryClient], step: int
) -> None:
    pager, client = cold
    here = random.Random(3).sample(range(1000, 1600), 90)
    touch(client, [page for i, page in enumerate(here) for page in (page, 5000 + 700 * (i % 9) + 3 * i)])
    before = pager.status()
    touch(client, range(1000, 1600)[::step])
    after = pager.status()
    assert after["readahead"]["used"] - before["readahead"]["used"] >= 450
    assert after["faults"]["missing_fetch"] - before["faults"]["missing_fetch"] <= 45
    assert after["faults"]["minor"] - before["faults"]["minor"] <= 50, "of 510 pages, with 90 between them"


def zapped_pages(pager: RunningPager, within: range) -> list[int]:
    """Return, in groups of four, the pages that are in the cache and mapped nowhere."""
    (region,) = pager.command("page-map", cells=4096)["regions"]
    return [page for page in within if region["inactive"][page // 4] == 4]


def use_zapped_pages(pager: RunningPager, client: MemoryClient, step: int) -> tuple[int, int, int]:
    """Read pages that are here and mapped nowhere, in order.

    Returns:
        How many there were, how many were mapped, and with how many MINOR faults.
    """
    for more in range(100):  # how many there are at the end of one pass is chance
        client.command("seq-read", first=1000, n=2800 + more)
        zapped = zapped_pages(pager, range(1000, 3800))
        if len(zapped) < 90:
            continue
        before = pager.status()
        touch(client, zapped[::step])
        after = pager.status()
        if after["faults"]["missing_fetch"] == before["faults"]["missing_fetch"]:
            used = after["evictions"]["second_chance"] - before["evictions"]["second_chance"]
            return len(zapped), used, after["faults"]["minor"] - before["faults"]["minor"]
        # The evict thread still worked off what the pass had left to it, and some pages were gone when they were used.
    pytest.fail("the evict thread is never at rest")


@pytest.mark.parametrize("step", [1, -1])
def test_a_reader_in_order_gets_many_pages_at_once_of_what_was_about_to_leave(
    cold: tuple[RunningPager, MemoryClient], step: int
) -> None:
    zapped, used, minor = use_zapped_pages(*cold, step)
    assert used >= 0.9 * zapped
    assert minor <= zapped / 8


def test_two_streams_and_random_access_between_them_are_told_apart(cold: tuple[RunningPager, MemoryClient]) -> None:
    pager, client = cold
    before = fetched(pager)
    noise = random.Random(1).sample(range(2000, 4000), 40)
    touch(client, [page for i in range(40) for page in (i, 600 + 2 * i, noise[i])])
    assert fetched(pager) - before <= 40 + 20, "the random ones, and few of the 80"


def test_random_access_is_not_read_ahead(cold: tuple[RunningPager, MemoryClient]) -> None:
    pager, client = cold
    issued = pager.status()["readahead"]["issued"]
    touch(client, random.Random(2).sample(range(12000), 500))
    assert pager.status()["readahead"]["issued"] - issued < 100


def readahead(pager: RunningPager, key: str) -> int:
    """Return the number of pages that were read ahead: "issued", "used" or "wasted"."""
    return int(pager.status()["readahead"][key])


def test_reading_scattered_pieces_again_in_the_same_order_reads_ahead_across_them() -> None:
    """The pieces have 40 pages and are 20 pages apart.

    A program's memory is scattered like this in a guest that has run for some time.
    """
    starts = list(range(0, 14000, 60))
    random.Random(3).shuffle(starts)
    pages = [page for start in starts for page in range(start, start + 40)]
    with (
        running_memserver(a="64M") as donor,
        running_pager([donor.uri("a")], cache="8M") as pager,
        memory_client("64M", pager) as client,
    ):
        client.command("fill", seed=2)
        before = 0, 0
        for _ in range(5):
            before = fetched(pager), readahead(pager, "issued")
            touch(client, pages)
        faults, issued = fetched(pager) - before[0], readahead(pager, "issued") - before[1]
        assert faults < 2.5 * len(starts), (
            "the first pages of each piece are no faults any more: without it there are 12"
        )
        assert issued < 1.3 * len(pages), "and few pages are read in vain: without the limit twice as many"
        client.command("verify", seed=2)


def test_two_readers_side_by_side_do_not_mislead_the_readahead(cold: tuple[RunningPager, MemoryClient]) -> None:
    """Each reader begins anew now and then, which looks as if the other reader had turned to that place."""
    pager, client = cold
    before = fetched(pager), readahead(pager, "wasted")
    for part in range(8):
        starts = 800 * part, 6600 + 600 * part
        touch(client, [page for i in range(400) for page in (starts[0] + i, starts[1] + i)])
    faults, wasted = fetched(pager) - before[0], readahead(pager, "wasted") - before[1]
    assert faults < 0.1 * 6400, "of 6,400, for 16 beginnings"
    assert wasted < 0.5 * 6400


def zero_fills(pager: RunningPager) -> tuple[int, int]:
    """Return the number of faults on memory that was never written, and of the pages that these faults brought."""
    faults = pager.status()["faults"]
    return int(faults["missing_zero"]), int(faults["zero_filled"])


def test_filling_fresh_memory_in_order_gets_ever_longer_runs() -> None:
    with (
        running_memserver(a="16M") as donor,
        running_pager([donor.uri("a")], cache="32M") as pager,
        memory_client("16M", pager) as client,
    ):
        # A reader goes on before the pager has counted the fault.
        touch(client, (3000, 100, 2000, 500))
        wait_until(lambda: zero_fills(pager)[0] >= 4, timeout_s=10, what="the pager's counters")
        assert zero_fills(pager) == (4, 4), "no program fills memory so far"
        client.command("fill", seed=1, n=2000)
        wait_until(lambda: zero_fills(pager)[1] >= 2000, timeout_s=10, what="the pager's counters")
        assert zero_fills(pager)[0] < 100, "8, 16, 32, then 64 at a time"
        # A kernel clears a huge page in this order.
        touch(client, range(3999, 3099, -1))
        wait_until(lambda: zero_fills(pager)[1] >= 2900, timeout_s=10, what="the pager's counters")
        assert zero_fills(pager)[0] < 130, "the same backwards"
