# SPDX-License-Identifier: MIT
"""A page that comes back is the page that was sent, or its reader gets an error: no flipped bit reaches the guest."""

from __future__ import annotations

import random

from helpers.nbd import flip
from helpers.pager import memory_client, running_memserver, running_pager
from helpers.takeover import pager_line

PAGES = 16 << 8  # 16 MiB
CACHE_PAGES = 2 << 8


def test_every_flipped_bit_on_a_donor_is_found_and_only_its_page_is_lost() -> None:
    flips = random.Random(9).sample(range(PAGES - 2 * CACHE_PAGES), 40)
    with (
        running_memserver(a="16M") as donor,
        running_pager([donor.uri("a")], cache="2M", readahead="0") as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", seed=9)
        flip(donor.uri("a"), {page * 4096 + n * 101 % 4096: 1 << n % 8 for n, page in enumerate(flips)})
        for page in range(0, PAGES - 2 * CACHE_PAGES, 64):
            if page not in flips:
                client.command("verify", seed=9, first=page, n=1)
        assert [client.attempt("read", first=page).get("error") for page in flips] == ["SIGBUS"] * len(flips)
        status = pager.status()
        assert status["pages"]["poisoned"] == len(flips)
        assert status["donors"][0]["checksum_errors"] >= len(flips)
        assert f"donor {donor.uri('a')}: the page at offset {flips[0] * 4096} is not what was written" in pager.log()


def test_readahead_brings_in_no_flipped_bit() -> None:
    with (
        running_memserver(a="16M") as donor,
        running_pager([donor.uri("a")], cache="4M") as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", seed=10)
        flip(donor.uri("a"), {500 * 4096 + 17: 0x10})
        client.command("verify", seed=10, first=0, n=500)
        assert client.attempt("verify", seed=10, first=500, n=1)["error"] == "SIGBUS"
        client.command("verify", seed=10, first=501, n=1000)
        assert pager.status()["readahead"]["used"] > 0


def test_donor_that_changed_bytes_is_known_to_later_pagers() -> None:
    with (
        running_memserver(a="16M") as donor,
        pager_line([donor.uri("a")], cache="2M", readahead="0") as line,
        memory_client("16M", line.listen) as client,
    ):

        def found() -> int:
            return int(line.status()["donors"][0]["checksum_errors"])

        client.command("fill", seed=11)
        flip(donor.uri("a"), {page * 4096: 1 for page in (100, 200)})
        assert client.attempt("read", first=100)["error"] == "SIGBUS"
        by_the_first = found()
        assert by_the_first >= 1
        line.kill()
        line.resume()
        line.wait_served(client)
        assert found() == by_the_first
        assert client.attempt("read", first=200)["error"] == "SIGBUS"
        by_both = found()
        assert by_both > by_the_first
        line.command("hand-over")
        line.process.wait(20)
        line.resume()
        assert found() == by_both
