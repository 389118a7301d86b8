# SPDX-License-Identifier: MIT
"""With two copies of every page, a reader is served while one copy is silent, slow, wrong or gone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ghostbox.system.processes import wait_until
from helpers.hostile_donor import Connection, HostileDonor, Request, hostile_donor
from helpers.nbd_raw import READ
from helpers.pager import MemoryClient, RunningPager, memory_client, running_pager

PAGES = 16 << 8  # 16 MiB
EIO = 5


@contextlib.contextmanager
def two_copies(readahead: str = "0", **options: Any) -> Iterator[tuple[list[HostileDonor], RunningPager, MemoryClient]]:
    """Yield memory that was filled, so that both donors hold all of it except the pages in the cache."""
    common: dict[str, Any] = {"replicas": "2", "allow_same_host": "", "readahead": readahead}
    with (
        hostile_donor(16 << 20, identity="one") as one,
        hostile_donor(16 << 20, identity="two") as two,
        running_pager([one.uri, two.uri], cache="2M", **common, **options) as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", seed=1, timeout_s=120)
        yield [one, two], pager, client


def read_pages(client: MemoryClient, first: int, n: int) -> None:
    client.command("verify", seed=1, first=first, n=n)


def reads(pager: RunningPager) -> list[int]:
    return [donor["reads"] for donor in pager.status()["donors"]]


def preferred(pager: RunningPager, client: MemoryClient, first: int) -> int:
    """Return the donor that reads go to at present."""
    before = reads(pager)
    read_pages(client, first, 20)
    more = [now - then for now, then in zip(reads(pager), before, strict=True)]
    return more.index(max(more))


def silence(conn: Connection, request: Request) -> None:
    """Never answer."""


def refuse(conn: Connection, request: Request) -> None:
    """Answer with an error."""
    conn.error(request, EIO, b"no", last=True)


def test_a_silent_copy_costs_its_readers_little_and_the_other_serves_them() -> None:
    """Long before the silent donor counts as away, its requests go to the other donor."""
    with two_copies() as (donors, pager, client):
        silent = preferred(pager, client, 0)
        donors[silent].choose = lambda request: silence if request.command == READ else None
        read_pages(client, 20, 200)
        assert pager.status()["hedges"]["won"] > 0
        wait_until(lambda: pager.status()["donors"][silent]["down_s"] is not None, timeout_s=10, what="it is noticed")
        assert "no answer for" in pager.log()
        read_pages(client, 220, 200)
        hedges = pager.status()["hedges"]
        assert 0 < hedges["won"] <= hedges["sent"] < 50, "a donor that is late is not asked first"
        assert pager.status()["pages"]["poisoned"] == 0


def test_a_copy_that_answers_with_errors_is_passed_over_at_once() -> None:
    with two_copies() as (donors, pager, client):
        donors[0].choose = lambda request: refuse if request.command == READ else None
        read_pages(client, 0, 300)
        status = pager.status()
        assert status["pages"]["poisoned"] == 0
        assert status["donors"][1]["reads"] >= 250


def test_a_page_is_lost_only_when_both_copies_deny_it() -> None:
    with two_copies() as (donors, pager, client):
        for donor in donors:
            donor.choose = lambda request: refuse if (request.command, request.offset) == (READ, 7 << 12) else None
        assert client.attempt("read", first=7)["error"] == "SIGBUS"
        read_pages(client, 8, 20)
        assert pager.status()["pages"]["poisoned"] == 1


def test_a_page_that_one_copy_denies_waits_for_the_other_that_is_away() -> None:
    with two_copies() as (donors, pager, client):
        donors[0].choose = lambda request: refuse if request.command == READ else None
        donors[1].talks.clear()
        donors[1].hang_up()
        client.start("read", first=5)
        assert client.answers_nothing("read", for_s=0.5)
        donors[1].talks.set()
        assert client.result("read")["ok"]
        assert pager.status()["pages"]["poisoned"] == 0


def test_a_slow_donor_is_used_last() -> None:
    with two_copies(slow_us="100000") as (donors, pager, client):
        donors[0].delay_s = 0.15
        wait_until(lambda: pager.status()["donors"][0]["slow"], timeout_s=60, what="heartbeats tell that it is slow")
        before, hedged = reads(pager), pager.status()["hedges"]["sent"]
        read_pages(client, 0, 200)
        after, hedged = reads(pager), pager.status()["hedges"]["sent"] - hedged
        # On a busy machine the quick donor may be late, too: then the slow donor is asked for the same page.
        assert after[0] - before[0] <= 2 + hedged
        assert after[1] - before[1] >= 190


def test_what_is_read_ahead_comes_from_the_other_copy_when_one_stops() -> None:
    with two_copies(readahead="64K") as (donors, pager, client):
        silent = preferred(pager, client, 0)
        donors[silent].choose = lambda request: silence if request.command == READ else None
        read_pages(client, 512, 2048)
        assert pager.status()["hedges"]["won"] > 0
        assert pager.status()["pages"]["poisoned"] == 0


def test_a_copy_that_missed_a_write_serves_the_pages_that_it_has_and_no_other() -> None:
    """The donor of the good copy answers with errors.

    The checksum shows which pages of the older copy are up to date.
    """
    with two_copies() as (donors, pager, client):
        donors[1].talks.clear()
        donors[1].hang_up()
        client.command("write", first=3, value=77)
        read_pages(client, 1000, 1500)
        wait_until(lambda: pager.status()["pool"]["stale_copies"] > 0, timeout_s=10, what="a write that one missed")
        donors[0].choose = lambda request: refuse if request.command == READ else None
        donors[1].talks.set()
        read_pages(client, 2600, 100)
        assert client.attempt("read", first=3)["error"] == "SIGBUS"
        assert pager.status()["pages"]["poisoned"] == 1
