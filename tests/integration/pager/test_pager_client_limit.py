# SPDX-License-Identifier: MIT
"""A donor lowers the limit of this host below what was leased: nothing is lost, and new pages wait for room."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from ghostbox.pager import health
from ghostbox.pager.health import Level
from ghostbox.pager.model import PagerStatus
from ghostbox.system.processes import control_request, wait_until
from helpers.pager import (
    MemoryClient,
    RunningMemserver,
    RunningPager,
    memory_client,
    running_memserver,
    running_pager,
)

MIB = 1 << 20
PAGES = MIB // 4096
HALF = 8 * PAGES  # of the 16 MiB that the client has


def limit(donor: RunningMemserver, max_bytes: int | None) -> dict[str, Any]:
    set_now: dict[str, Any] = control_request(donor.control, "client-set", client="ann", max_resident_bytes=max_bytes)
    return set_now


@dataclass(frozen=True)
class Full:
    """Is a client that stands still: the only donor takes no new page, and the cache is full of such pages."""

    donor: RunningMemserver
    pager: RunningPager
    client: MemoryClient

    def status(self) -> PagerStatus:
        return PagerStatus.model_validate(self.pager.status())

    def problems(self) -> list[str]:
        names = {self.donor.uri("a"): "attic:10810"}
        return [each.text for each in health.assess("lab", self.status(), names).problems]

    def goes_on(self) -> None:
        """Wait until the client is through, and see that each of its words is right."""
        assert self.client.result("fill")["ok"]
        self.client.command("verify", seed=1, first=0, n=HALF)
        self.client.command("verify", seed=2, first=HALF, n=HALF)


@contextlib.contextmanager
def standing_still() -> Iterator[Full]:
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
            assert pager.status()["donors"][0]["refuses_s"] is None
            client.start("fill", seed=2, first=HALF, n=HALF)
            wait_until(
                lambda: "No space left on device" in pager.log(), timeout_s=30, what="the donor's refusal in the log"
            )
            wait_until(lambda: pager.status()["pages"]["waiting"] > 0, timeout_s=30, what="the writer having to wait")
            yield Full(donor, pager, client)


@pytest.fixture
def full() -> Iterator[Full]:
    with standing_still() as found:
        yield found


def test_pages_over_the_limit_stay_on_the_host_until_there_is_room_and_none_is_lost(full: Full) -> None:
    assert limit(full.donor, 8 * MIB)["counters"]["writes_refused"] > 0
    assert full.donor.resident_bytes("a") <= 8 * MIB
    found = full.status()
    assert found.donors[0].state == "up", "it is full, and not away"
    assert (found.pages.poisoned, full.client.answers_nothing("fill", for_s=0.2)) == (0, True)
    limit(full.donor, None)
    full.goes_on()


def test_the_status_says_which_donor_refuses_that_the_vm_waits_and_when_that_is_over(full: Full) -> None:
    wait_until(lambda: len(full.problems()) == 2, timeout_s=30, what="both problems in the status")
    refuses, waits = full.problems()
    assert refuses.startswith("donor attic:10810 refuses writes for ")
    assert "what its owner lets this host have there is used up" in refuses
    assert waits.startswith("the VM waits: its cache of 4 MiB is full of changed pages that donor attic:10810 refuses")
    first = full.status()
    assert health.level(first) is Level.DEGRADED

    def is_refused_on() -> bool:  # the pages are tried again and again, and it is one time that goes on
        [now], [before] = full.status().donors, first.donors
        return now.writes_refused > before.writes_refused and (now.refuses_s or 0.0) > (before.refuses_s or 0.0)

    wait_until(is_refused_on, timeout_s=30, what="the next refusal")
    limit(full.donor, 16 * MIB)
    full.goes_on()
    wait_until(lambda: not full.problems(), timeout_s=60, what="a status without a problem")
    assert health.level(full.status()) is Level.OK
    assert full.status().donors[0].writes_refused > 0, "the count stays"


def test_another_donor_to_which_the_content_is_moved_mends_it_too(full: Full) -> None:
    with running_memserver(b="32M") as other:
        full.pager.command("add-donor", uri=other.uri("b"))
        full.pager.command("drain-donor", uri=full.donor.uri("a"))
        full.goes_on()
        wait_until(
            lambda: full.pager.status()["donors"][0]["state"] == "drained", timeout_s=60, what="the end of the drain"
        )
        full.client.command("verify", seed=1, first=0, n=HALF)
