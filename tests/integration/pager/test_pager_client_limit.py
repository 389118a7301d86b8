# SPDX-License-Identifier: MIT
"""A donor lowers the limit of this host below what was leased: nothing is lost, and new pages wait for room."""

from __future__ import annotations

from typing import Any

from ghostbox.system.processes import control_request, wait_until
from helpers.pager import RunningMemserver, memory_client, running_memserver, running_pager

MIB = 1 << 20
PAGES = MIB // 4096
HALF = 8 * PAGES  # of the 16 MiB that the client has


def limit(donor: RunningMemserver, max_bytes: int | None) -> dict[str, Any]:
    set_now: dict[str, Any] = control_request(donor.control, "client-set", client="ann", max_resident_bytes=max_bytes)
    return set_now


def test_pages_over_the_limit_stay_on_the_host_until_there_is_room_and_none_is_lost() -> None:
    with running_memserver() as donor:
        control_request(donor.control, "export-add", name="a", size_bytes=32 * MIB, client="ann")
        with (
            running_pager([donor.uri("a")], cache="4M", extent="1M", readahead="0") as pager,
            memory_client("16M", pager) as client,
        ):
            client.command("fill", seed=1, first=0, n=HALF)
            assert donor.resident_bytes("a") >= 2 * MIB, "what the cache does not hold is on the donor"
            limit(donor, 8 * MIB)
            client.command("verify", seed=1, first=0, n=HALF)  # what is within it goes back and forth as before
            client.start("fill", seed=2, first=HALF, n=HALF)
            wait_until(
                lambda: "No space left on device" in pager.log(), timeout_s=30, what="the donor's refusal in the log"
            )
            assert limit(donor, 8 * MIB)["counters"]["writes_refused"] > 0
            wait_until(lambda: pager.status()["pages"]["waiting"] > 0, timeout_s=30, what="the writer having to wait")
            assert donor.resident_bytes("a") <= 8 * MIB
            status = pager.status()
            assert status["donors"][0]["state"] == "up", "it is full, and not away"
            assert (status["pages"]["poisoned"], client.answers_nothing("fill", for_s=0.2)) == (0, True)
            limit(donor, None)
            assert client.result("fill")["ok"]
            client.command("verify", seed=1, first=0, n=HALF)
            client.command("verify", seed=2, first=HALF, n=HALF)
