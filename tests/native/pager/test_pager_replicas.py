# SPDX-License-Identifier: MIT
"""Two copies of every extent: donors die, are drained, come and lie, and no word is wrong."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox.processes import ControlError, wait_until
from helpers.pager import (
    MemoryClient,
    RunningMemserver,
    RunningPager,
    memory_client,
    nbdkit_memory,
    running_memserver,
    running_pager,
)
from helpers.takeover import PagerLine

MIB = 1 << 20
OPTIONS = {"replicas": "2", "allow_same_host": "", "pool": "16M", "extent": "1M", "rebuild_after": "0"}


@contextlib.contextmanager
def donors(count: int, size: str = "16M") -> Iterator[list[RunningMemserver]]:
    """Memory servers with one export "a" each."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running_memserver(a=size)) for _ in range(count)]


@contextlib.contextmanager
def under_load(pager: RunningPager | PagerLine, *, seed: int = 1) -> Iterator[MemoryClient]:
    """A client whose threads check every word that they read, until the end of the block; then every word of all."""
    with memory_client("16M", pager.listen) as client:
        client.start("stress", threads=4, seconds=600, seed=seed, discards=100)
        yield client
        client.command("stress-stop")
        answer = client.result("stress", timeout_s=120)
        assert answer["ok"], (answer, pager.log())
        assert answer["words_verified"] > 10_000


def donor_status(pager: RunningPager | PagerLine, uri: str) -> dict[str, Any]:
    """Return what ``status`` says of a donor."""
    found: dict[str, Any] = next(entry for entry in pager.status()["donors"] if entry["uri"] == uri)
    return found


def wait_paged(pager: RunningPager | PagerLine) -> None:
    """Wait until pages have gone out and come in again."""

    def paged() -> bool:
        status = pager.status()
        return bool(status["faults"]["missing_fetch"] > 50 and status["evictions"]["dirty"] > 50)

    wait_until(paged, timeout_s=30, what="eviction and fetches")


def wait_complete(pager: RunningPager | PagerLine, *, timeout_s: float = 40) -> None:
    """Wait until no copy is missing or on its way."""

    def complete() -> bool:
        pool = pager.status()["pool"]
        return not (pool["missing_copies"] or pool["stale_copies"] or pool["filling_copies"])

    try:
        wait_until(complete, timeout_s=timeout_s, what="all copies to be there")
    except TimeoutError as err:
        raise AssertionError((pager.status()["pool"], pager.log()[-3000:])) from err


def kill(donor: RunningMemserver) -> None:
    """SIGKILL."""
    donor.process.kill()
    donor.process.wait(10)


def test_one_donor_dies_its_copies_are_made_anew_and_then_another_may_die() -> None:
    with donors(3) as (one, two, three):
        uris = [donor.uri("a") for donor in (one, two, three)]
        with running_pager(uris, cache="2M", **OPTIONS) as pager, under_load(pager):
            wait_paged(pager)
            assert pager.status()["health"] == "ok"
            assert sum(entry["used_slots"] for entry in pager.status()["donors"]) == 32
            kill(one)
            wait_until(lambda: pager.status()["health"] == "degraded", timeout_s=10, what="the loss to be noticed")
            wait_complete(pager)
            assert donor_status(pager, uris[0])["used_slots"] == 0
            assert [donor_status(pager, uri)["copies"]["current"] for uri in uris[1:]] == [16, 16]
            kill(two)
            fetched = pager.status()["faults"]["missing_fetch"]
            wait_until(
                lambda: pager.status()["faults"]["missing_fetch"] > fetched + 200, timeout_s=30, what="it goes on"
            )
            assert pager.status()["pages"]["poisoned"] == 0
            assert pager.status()["health"] == "degraded"
