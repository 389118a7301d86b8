# SPDX-License-Identifier: MIT
"""One donor of two is silent or gone: memory on the other donor works on, whatever fills the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from ghostbox.system.processes import wait_until
from helpers.pager import MemoryClient, RunningMemserver, RunningPager, memory_client, running_memserver, running_pager
from helpers.pager import stopped as stopped_process

# Extents are on the donors by turns: even extents on the first, odd ones on the second.
EXTENT_PAGES = 256
EXTENTS = 32
MIB = 1 << 20


@contextlib.contextmanager
def two_donors(
    cache: str, **options: Any
) -> Iterator[tuple[RunningMemserver, RunningMemserver, RunningPager, MemoryClient]]:
    with (
        running_memserver(a="16M") as first,
        running_memserver(b="16M") as second,
        running_pager([first.uri("a"), second.uri("b")], cache=cache, extent="1M", readahead="0", **options) as pager,
        memory_client("32M", pager) as client,
    ):
        client.command("fill", seed=1)
        yield first, second, pager, client


def extents_of(donor: int) -> range:
    return range(donor, EXTENTS, 2)


def verify(client: MemoryClient, donor: int, seed: int = 1) -> None:
    for extent in extents_of(donor):
        client.command("verify", seed=seed, first=extent * EXTENT_PAGES, n=EXTENT_PAGES)


def write(client: MemoryClient, donor: int, seed: int, n_extents: int = EXTENTS) -> None:
    for extent in list(extents_of(donor))[:n_extents]:
        client.command("fill", seed=seed, first=extent * EXTENT_PAGES, n=EXTENT_PAGES)


def wait_until_down(pager: RunningPager, donor: int) -> None:
    wait_until(lambda: pager.status()["donors"][donor]["state"] == "down", timeout_s=30, what="the donor being away")


def test_pages_of_a_silent_donor_that_fill_the_cache_do_not_hold_up_those_of_another() -> None:
    with two_donors("4M") as (_, second, pager, client):
        client.command("read", first=EXTENT_PAGES)
        write(client, 1, seed=2)
        with stopped_process(second.process):
            # Pages of the cache are written to until none of them can be evicted.
            client.start("fill", seed=3, first=EXTENT_PAGES, n=EXTENT_PAGES)
            wait_until_down(pager, 1)
            verify(client, 0)
            write(client, 0, seed=4)
            verify(client, 0, seed=4)
            most = pager.status()["pages"]["present"]
            assert most * 4096 <= 4 * MIB + max(4 * MIB // 8, MIB), "over its bound by no more than the reserve"
        assert client.result("fill", timeout_s=60)["ok"]
        client.command("verify", seed=3, first=EXTENT_PAGES, n=EXTENT_PAGES)
        for extent in list(extents_of(1))[1:]:
            client.command("verify", seed=2, first=extent * EXTENT_PAGES, n=EXTENT_PAGES)
        verify(client, 0, seed=4)
        wait_until(
            lambda: pager.status()["pages"]["present"] * 4096 <= 4 * MIB, timeout_s=30, what="the cache's own bound"
        )


@pytest.mark.parametrize("loss", ["wait", "poison"])
def test_new_pages_that_a_dead_donor_was_to_get_do_not_take_the_last_frames_of_another(loss: str) -> None:
    """Such pages can never be evicted."""
    with (
        running_memserver(a="16M") as first,
        running_memserver(b="16M") as second,
        running_pager(
            [first.uri("a"), second.uri("b")], cache="2M", extent="1M", readahead="0", on_donor_loss=loss,
            poison_after="1",
        ) as pager,
        memory_client("32M", pager) as client,
    ):  # fmt: skip
        write(client, 0, seed=1)
        second.process.kill()
        wait_until_down(pager, 1)
        for extent in extents_of(1):
            client.start("fill", seed=3, first=extent * EXTENT_PAGES, n=EXTENT_PAGES)
        wait_until(lambda: pager.status()["pages"]["waiting"] >= 8, timeout_s=60, what="the writers having to wait")
        verify(client, 0)
        verify(client, 0)
        assert pager.status()["pages"]["present"] * 4096 <= 2 * MIB + MIB, "over its bound by the reserve at most"


def fetching(pager: RunningPager) -> int:
    return int(pager.status()["pages"]["fetching"])


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed before", "noticed while they wait"])
def test_many_readers_of_a_silent_donor_leave_room_for_those_of_another(noticed: bool) -> None:
    """The pager reads 128 pages at a time. Of a donor that is away it waits for half as many."""
    with two_donors("4M") as (_, second, pager, client), stopped_process(second.process):
        if noticed:
            wait_until_down(pager, 1)
        for number in range(200):
            extent = extents_of(1)[number % 16]
            client.start("read", first=extent * EXTENT_PAGES + number // 16 * 7)
        if not noticed:
            wait_until(lambda: fetching(pager) == 128, timeout_s=30, what="the readers waiting")
            wait_until_down(pager, 1)
        wait_until(lambda: fetching(pager) == 64, timeout_s=30, what="room for other readers")
        verify(client, 0)
