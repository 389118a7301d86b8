# SPDX-License-Identifier: MIT
"""The way to a donor drops long packets silently and lets short ones pass: such a donor counts as away."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox.system.processes import wait_until
from helpers.netns import NarrowWay, narrow_way
from helpers.pager import (
    MemoryClient,
    RunningPager,
    installed_build,
    memory_client,
    nbdkit_memory,
    pager_argv,
    running_memserver,
    running_pager,
)

WHY = "short requests are answered, pages are not: is the MTU the same on the whole way?"
SEEN_S = 60.0  # the pager waits longer for a busy machine: liveness.h


@contextlib.contextmanager
def over_a_way(**options: Any) -> Iterator[tuple[NarrowWay, RunningPager, MemoryClient]]:
    with (
        narrow_way() as way,
        running_memserver(a="16M", prefix=way.machine.prefix, options=("--bind", way.machine.address)) as donor,
        running_pager([donor.uri("a")], cache="2M", readahead="0", **options) as pager,
        memory_client("16M", pager) as client,
    ):
        yield way, pager, client


def donor_of(pager: RunningPager) -> dict[str, object]:
    found: dict[str, object] = pager.status()["donors"][0]
    return found


def wait_until_away(pager: RunningPager) -> None:
    wait_until(lambda: donor_of(pager)["why"] == WHY, timeout_s=SEEN_S, what="the cause being said")
    # The donor must stay away for good, not only until the next connection.
    looks = [(pager.status()["health"], donor_of(pager)["state"], donor_of(pager)["why"]) for _ in range(100)]
    assert set(looks) == {("degraded", "down", WHY)}


@pytest.mark.parametrize("libnbd", [False, True], ids=["wire", "libnbd"])
def test_a_donor_to_which_no_page_passes_is_away_and_why_is_said(libnbd: bool) -> None:
    with over_a_way(**({"libnbd": ""} if libnbd else {})) as (way, pager, client):
        way.set_mtu(1500)
        client.start("fill", seed=1)
        wait_until_away(pager)
        assert client.answers_nothing("fill", for_s=0.3)
        way.set_mtu(9000)
        assert client.result("fill", timeout_s=120)["ok"]
        wait_until(lambda: donor_of(pager)["state"] == "up", timeout_s=60, what="the donor being back")
        client.command("verify", seed=1, timeout_s=120)


def test_a_donor_from_which_no_page_comes_is_away_though_nobody_asks_for_one() -> None:
    """Heartbeats carry a page, also while no reader waits for one."""
    with over_a_way() as (way, pager, client):
        client.command("fill", seed=1)
        assert donor_of(pager)["state"] == "up"
        way.set_mtu(1500)
        wait_until_away(pager)
        client.start("read", first=0)
        assert client.answers_nothing("read", for_s=0.3)
        way.set_mtu(9000)
        assert client.result("read", timeout_s=120)["ok"]
        client.command("verify", seed=1, timeout_s=120)


def test_a_pager_does_not_start_with_a_donor_that_passes_no_pages(place: Path) -> None:
    """The guest would hang at the first page that is written back."""
    with (
        narrow_way() as way,
        running_memserver(a="16M", prefix=way.machine.prefix, options=("--bind", way.machine.address)) as donor,
    ):
        way.set_mtu(1500)
        argv = pager_argv(installed_build(), place, [donor.uri("a")], "2M", {})
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert f"donor {donor.uri('a')}: cannot connect: {WHY}" in done.stderr


def test_servers_of_others_take_the_long_name_that_a_negotiation_carries() -> None:
    with (
        nbdkit_memory("16M") as uri,
        running_pager([uri], cache="2M") as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", seed=1)
        client.command("verify", seed=1)
        assert donor_of(pager)["state"] == "up"
