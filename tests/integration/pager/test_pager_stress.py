# SPDX-License-Identifier: MIT
"""Eight threads use memory of eight times the cache: a model checks every word, and the cache keeps its bound."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from helpers.pager import (
    MemoryClient,
    RunningPager,
    memory_client,
    nbdkit_memory,
    running_memserver,
    running_pager,
)

MIB = 1 << 20
CACHE = 8 * MIB
BATCH = 256 * 4096  # these pages may be in flight when the bound is checked
FALLBACKS = ["wp_async", "wp_async,wp_unpopulated,continue_wp,poison"]


@contextlib.contextmanager
def donors(kind: str) -> Iterator[list[str]]:
    """Yield donors that have 64 MiB and more together."""
    with contextlib.ExitStack() as stack:
        ours = stack.enter_context(running_memserver(a="64M", b="32M", c="32M"))
        if kind == "memserver":
            yield [ours.uri("a")]
        elif kind == "nbdkit":
            yield [stack.enter_context(nbdkit_memory("64M"))]
        else:
            yield [ours.uri("b"), stack.enter_context(nbdkit_memory("16M")), ours.uri("c")]


def stress(client: MemoryClient, pager: RunningPager, seconds: int, **options: int) -> dict[str, int]:
    """Run the stress and check the cache's bound meanwhile; return the client's counters."""
    client.start("stress", threads=8, seconds=seconds, **options)
    samples = 0
    while client.answers_nothing("stress", for_s=0.2):
        samples += 1
        assert pager.status()["pages"]["present"] * 4096 <= CACHE
        assert client.command("allocated")["bytes"] <= CACHE + BATCH
        assert samples < seconds * 5 + 150, "the stress does not end"
    answer = client.result("stress")
    assert answer["ok"], answer
    assert samples > 2
    return answer


def check_it_was_paged(pager: RunningPager, fallback: bool = False) -> None:
    """Check that pages were evicted and fetched: else the run has no meaning."""
    status = pager.status()
    assert status["faults"]["missing_fetch"] > 1000
    assert status["evictions"]["dirty"] > 1000
    assert status["evictions"]["clean"] > 100
    assert status["pages"]["poisoned"] == 0
    assert status["surprises"] == {"foreign_pages": 0, "vanished_pages": 0}
    assert all(donor["errors"] == 0 and donor["read_bytes"] and donor["written_bytes"] for donor in status["donors"])
    assert (status["dirty_tracking"] == "wp-fault") == fallback
    assert bool(status["faults"]["wp"]) == fallback


@pytest.mark.slow
def test_eight_threads_for_a_minute() -> None:
    with donors("several") as uris, running_pager(uris, cache="8M") as pager, memory_client("64M", pager) as client:
        answer = stress(client, pager, 60)
        assert answer["words_verified"] > 8 * MIB
        check_it_was_paged(pager)


@pytest.mark.slow
def test_eight_threads_with_discards_racing() -> None:
    with donors("several") as uris, running_pager(uris, cache="8M") as pager, memory_client("64M", pager) as client:
        answer = stress(client, pager, 12, discards=200, seed=2)
        assert answer["words_wiped"] > 1000
        check_it_was_paged(pager)
        assert pager.status()["discards"]["requests"] == answer["discards"]


@pytest.mark.parametrize("kind", ["memserver", "nbdkit"])
def test_one_donor_of_each_kind(kind: str) -> None:
    with donors(kind) as uris, running_pager(uris, cache="8M") as pager, memory_client("64M", pager) as client:
        stress(client, pager, 5, discards=50, seed=3)
        check_it_was_paged(pager)


@pytest.mark.parametrize("hidden", FALLBACKS)
def test_write_protect_faults_where_the_kernel_cannot_track_writes(hidden: str) -> None:
    with (
        donors("several") as uris,
        running_pager(uris, cache="8M", hide_features=hidden) as pager,
        memory_client("64M", pager) as client,
    ):
        stress(client, pager, 5, discards=50, seed=4)
        check_it_was_paged(pager, fallback=True)
        assert pager.status()["hidden_features"] == hidden.split(",")


@pytest.mark.parametrize("hidden", ["poison", FALLBACKS[1]])
def test_many_threads_race_on_few_pages(hidden: str) -> None:
    """32 threads use 320 pages with room for 256: faults, discards, evictions and writes meet on one page."""
    with (
        donors("memserver") as uris,
        running_pager(uris, cache="1M", readahead="64K", hide_features=hidden) as pager,
        memory_client("1280K", pager) as client,
    ):
        for seed in range(5, 13):  # a fault meets a page in flight only by chance, and seldom on a busy machine
            answer = client.command("stress", threads=32, seconds=5, discards=500, seed=seed)
            assert answer["words_wiped"] > 1000
            status = pager.status()
            if status["faults"]["deferred"] > 0:
                break
        assert status["evictions"]["second_chance"] > 0
        assert status["faults"]["deferred"] > 0


@pytest.mark.parametrize("readahead", ["0", "1M"])
def test_with_and_without_readahead(readahead: str) -> None:
    with (
        donors("several") as uris,
        running_pager(uris, cache="8M", readahead=readahead, poll_us="0") as pager,
        memory_client("64M", pager) as client,
    ):
        stress(client, pager, 4, seed=6)
        issued = pager.status()["readahead"]["issued"]
        assert (issued > 0) == (readahead != "0")


def test_the_cache_shrinks_and_grows_under_load() -> None:
    with donors("memserver") as uris, running_pager(uris, cache="16M") as pager, memory_client("64M", pager) as client:
        client.start("stress", threads=8, seconds=8, seed=7)
        for size in (4 * MIB, 16 * MIB, 2 * MIB, 8 * MIB):
            assert pager.command("set-cache", cache_bytes=size) == {"cache_bytes": size}
            assert client.answers_nothing("stress", for_s=1.0)
            assert client.command("allocated")["bytes"] <= size + BATCH
        assert client.result("stress")["ok"]


def test_two_processes_do_not_see_each_others_memory() -> None:
    with (
        donors("memserver") as uris,
        running_pager(uris, cache="4M") as pager,
        memory_client("32M", pager) as one,
        memory_client("32M", pager) as two,
    ):
        one.start("stress", threads=4, seconds=5, seed=8, discards=100)
        two.start("stress", threads=4, seconds=5, seed=9, discards=100)
        assert one.result("stress")["ok"]
        assert two.result("stress")["ok"]
        assert sorted(region["pid"] for region in pager.status()["regions"]) == sorted([one.pid, two.pid])


def test_a_slow_donor_loses_nothing() -> None:
    with (
        nbdkit_memory("16M", "--filter=delay", "rdelay=3ms", "wdelay=5ms") as uri,
        running_pager([uri], cache="2M") as pager,
        memory_client("16M", pager) as client,
    ):
        assert client.command("stress", threads=8, seconds=5, discards=100, seed=10)["ok"]
        assert pager.status()["evictions"]["dirty"] > 100


def test_the_processes_own_zaps_lose_nothing() -> None:
    """QEMU calls madvise(DONTNEED) on its memory without a message to the pager."""
    with donors("memserver") as uris, running_pager(uris, cache="2M") as pager, memory_client("8M", pager) as client:
        client.start("stress", threads=8, seconds=5, seed=11)
        while client.answers_nothing("stress", for_s=0.01):
            client.command("dontneed")
        assert client.result("stress")["ok"]
