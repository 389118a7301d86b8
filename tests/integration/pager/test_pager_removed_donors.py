# SPDX-License-Identifier: MIT
"""Removed donors keep their places in the pager and its state file until all places are taken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from ghostbox.system.processes import ControlError, wait_until
from helpers.pager import Build, MemoryClient, memory_client, running_memserver
from helpers.takeover import PagerLine, fault_point_build, fault_points, pager_line

MOST_DONORS = 64
REFUSAL = "at most 64 donors, those included that were removed since the pager started"


def take_all_places(line: PagerLine, uri: str) -> int:
    """Add a donor and remove it until no place is free; return the number of rounds."""
    for n in range(MOST_DONORS):
        try:
            line.command("add-donor", uri=uri)
        except ControlError as err:
            assert (err.code, str(err)) == ("too-many", REFUSAL)
            return n
        remove(line, uri)
    raise AssertionError("there are more places than 64")


def donor(line: PagerLine, uri: str) -> dict[str, object]:
    """Return the last donor with that URI in the status."""
    found: dict[str, object] = [each for each in line.status()["donors"] if each["uri"] == uri][-1]
    return found


def remove(line: PagerLine, uri: str) -> None:
    line.command("drain-donor", uri=uri)
    wait_until(lambda: donor(line, uri)["used_slots"] == 0, timeout_s=30, what="the drain")
    line.command("remove-donor", uri=uri)


@contextlib.contextmanager
def full_line(build: Build | None = None) -> Iterator[tuple[PagerLine, MemoryClient, list[str]]]:
    """Yield a pager whose 64 places are all taken, because the second of its three donors was removed many times.

    The places of the other two donors are before the places of removed donors, and among them.
    """
    with (
        running_memserver(a="16M") as one,
        running_memserver(b="16M") as two,
        running_memserver(c="16M") as three,
        pager_line([one.uri("a"), two.uri("b")], replicas="2", allow_same_host="", pool="16M", build=build) as line,
        memory_client("16M", line.listen) as client,
    ):
        uris = [one.uri("a"), two.uri("b"), three.uri("c")]
        client.command("fill", seed=1)
        line.command("add-donor", uri=uris[2])
        remove(line, uris[1])
        assert take_all_places(line, uris[1]) == MOST_DONORS - 3
        yield line, client, uris


def test_a_pager_that_takes_over_uses_the_places_of_removed_donors_again() -> None:
    with full_line() as (line, client, uris):
        before = line.state_file.stat().st_ino
        line.kill()
        line.resume()
        line.wait_served(client)
        assert "62 donors that were removed are forgotten" in line.log()
        assert line.state_file.stat().st_ino != before
        assert [each["uri"] for each in line.status()["donors"]] == [uris[0], uris[2]]
        client.command("verify", seed=1)
        line.command("add-donor", uri=uris[1])
        client.command("fill", seed=2)
        line.kill()
        line.resume()
        line.wait_served(client)
        client.command("verify", seed=2)
        assert donor(line, uris[1])["state"] == "up"


@pytest.mark.parametrize("point", [point for point in fault_points() if point.startswith("forget_")])
def test_one_that_dies_while_it_forgets_them_is_followed_by_another(point: str) -> None:
    with full_line(fault_point_build()) as (line, client, uris):
        line.kill()
        line.resume(crash_at=point)
        line.wait_crash()
        line.resume()
        line.wait_served(client)
        client.command("verify", seed=1)
        assert [each["uri"] for each in line.status()["donors"]] == [uris[0], uris[2]]
        line.command("add-donor", uri=uris[1])


def test_where_the_file_cannot_be_made_anew_all_goes_on_as_it_was() -> None:
    with full_line() as (line, client, uris):
        line.state_file.with_suffix(".new").mkdir()
        line.kill()
        line.resume()
        line.wait_served(client)
        client.command("verify", seed=1)
        assert "62 donors that were removed cannot be forgotten: File exists" in line.log()
        assert take_all_places(line, uris[1]) == 0


def test_places_that_are_not_all_taken_stay_as_they_are() -> None:
    """The status shows a removed donor until the lease there has ended, also after a takeover."""
    with (
        running_memserver(a="16M") as one,
        running_memserver(b="16M") as two,
        pager_line([one.uri("a"), two.uri("b")], pool="16M") as line,
    ):
        remove(line, two.uri("b"))
        line.kill()
        line.resume()
        assert [each["state"] for each in line.status()["donors"]][1] == "removed"
