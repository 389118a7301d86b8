# SPDX-License-Identifier: MIT
"""A pager that dies at any instruction is followed by another under a process that works on: no word is wrong."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import pytest

from ghostbox.system.processes import wait_until
from helpers.late_link import late_link
from helpers.pager import Build, MemoryClient, memory_client, running_memserver
from helpers.takeover import PagerLine, fault_point_build, fault_points, pager_line

WRITE_BACK = 2  # the third connection that a pager makes to a donor
CRASHES = 12  # and more if a group has more than half as many steps
GROUPS = sorted({point.partition("_")[0] for point in fault_points()} - {"rebuild", "recover", "forget"})


@contextlib.contextmanager
def two_donors(**exports: str) -> Iterator[list[str]]:
    with running_memserver(a="16M") as one, running_memserver(b="16M") as two:
        yield [one.uri("a"), two.uri("b")]


@contextlib.contextmanager
def under_load(line: PagerLine, *, seed: int, **options: int) -> Iterator[MemoryClient]:
    """Yield a client whose threads check every word that they read, until the block ends; then check all words."""
    with memory_client("16M", line.listen) as client:
        client.start("stress", threads=8, seconds=600, seed=seed, **{"discards": 100, **options})
        yield client
        client.command("stress-stop")
        answer = client.result("stress", timeout_s=120)
        assert answer["ok"], (answer, line.log())
        assert answer["words_verified"] > 100_000


def progress(line: PagerLine) -> None:
    """Wait until pages have been evicted and fetched again since the takeover."""

    def paged() -> bool:
        status = line.status()
        return bool(status["faults"]["missing_fetch"] > 50 and status["evictions"]["dirty"] > 50)

    wait_until(paged, timeout_s=30, what="eviction and fetches after the takeover")


@pytest.mark.parametrize("how", ["the pager dies", "the connection breaks"])
def test_what_was_sent_before_never_lands_on_what_was_written_since(how: str) -> None:
    """The network delays writes of the first pager until the next pager has written the same pages."""
    with (
        running_memserver(a="16M") as donor,
        late_link(donor.address) as link,
        pager_line([f"nbd://{link.address}/a"]) as line,
        memory_client("16M", line.listen) as client,
    ):
        client.command("fill", seed=1)
        link.keep_back(WRITE_BACK)
        client.start("fill", seed=2)
        wait_until(lambda: link.kept_bytes() > 64 * 1024, timeout_s=20, what="writes to be kept back")
        if how == "the pager dies":
            line.kill()
            line.resume()
        else:
            link.break_clients()
        assert client.result("fill")["ok"]
        client.command("fill", seed=3)
        client.command("verify", seed=3)  # so that the donor has the last of these pages, too
        link.deliver()
        client.command("verify", seed=3)
        client.command("verify", seed=3)
        assert sum(donor["checksum_errors"] for donor in line.status()["donors"]) == 0


@pytest.fixture(scope="module")
def build() -> Build:
    """Return pagers that kill themselves at a given point."""
    return fault_point_build()


@pytest.mark.parametrize("group", GROUPS)
def test_killed_at_each_step_of(group: str, build: Build) -> None:
    chance = random.Random(group)
    points = [point for point in fault_points() if point.startswith(f"{group}_")]
    points *= max(2, CRASHES // len(points))
    with (
        two_donors() as donors,
        pager_line(donors, build=build, readahead="64K") as line,
        under_load(line, seed=len(points)),
    ):
        progress(line)
        line.kill()
        for point in points:
            line.resume(crash_at=f"{point}:{chance.randint(1, 60)}")
            line.wait_crash()
        line.resume()
        progress(line)
        assert line.status()["pages"]["poisoned"] == 0


@pytest.mark.parametrize("hidden", ["poison", "wp_async,wp_unpopulated,continue_wp"])
def test_killed_at_random_while_recovering_and_at_work(build: Build, hidden: str) -> None:
    chance = random.Random(hidden)
    with (
        two_donors() as donors,
        pager_line(donors, build=build, hide_features=hidden) as line,
        under_load(line, seed=77) as client,
    ):
        progress(line)
        for n in range(12):
            line.kill()
            if n % 2:
                step = chance.choice(["recover_begun", "recover_half:100", "recover_half:3000", "recover_done"])
                line.resume(crash_at=step)
                line.wait_crash()
            line.resume()
            if n % 3:
                line.wait_served(client)
                client.answers_nothing("stress", for_s=chance.uniform(0.0, 0.4))
        progress(line)
        status = line.status()
        assert status["pages"]["poisoned"] == 0
        assert status["surprises"] == {"foreign_pages": 0, "vanished_pages": 0}
