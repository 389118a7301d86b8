# SPDX-License-Identifier: MIT
"""``ghostbox top`` computes rates from two answers of a pager."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
from typing import Any

import pytest

from ghostbox.cli import rates as top
from ghostbox.cli.top import line, screen, view
from ghostbox.pager.model import PagerStatus
from ghostbox.pager.page_map import PageMap
from ghostbox.terminal import PlainConsole


def histogram(*buckets: tuple[float, int]) -> dict[str, Any]:
    return {"buckets": [list(bucket) for bucket in buckets]}


def donor(uri: str, **changes: Any) -> dict[str, Any]:
    counters = dict.fromkeys(("reads", "writes", "read_bytes", "written_bytes", "errors"), 0)
    return {"uri": uri, "state": "up", "latency": histogram(), **counters, **changes}


def status(**changes: Any) -> dict[str, Any]:
    return {
        "pid": 7,
        "uptime_s": 10,
        "cache_bytes": 1 << 20,
        "pages": {"total": 1024, "resident": 100, "inactive": 50, "dirty": 5, "on_donor": 800},
        "faults": {"missing_fetch": 1000, "missing_zero": 100, "minor": 500, "wp": 0},
        "readahead": {"issued": 10, "used": 5, "wasted": 1},
        "evictions": {"clean": 1, "dirty": 2, "zero": 3, "zapped": 100, "second_chance": 10},
        "latency": {"fetch": histogram((10.0, 1000))},
        "donors": [donor("nbd://a/x"), donor("nbd://b/x")],
        **changes,
    }


def read(answer: dict[str, Any]) -> PagerStatus:
    return PagerStatus.model_validate(answer)


def later(seconds: float = 2.0, **changes: Any) -> top.Sample:
    return top.rates("vm", read(status()), read(status(**changes)), seconds)


def test_rates_are_of_the_interval_not_of_all_time() -> None:
    found = later(faults={"missing_fetch": 1200, "missing_zero": 102, "minor": 600, "wp": 8})
    assert (found.fetched_per_s, found.new_per_s, found.found_again_per_s) == (100.0, 1.0, 50.0)
    assert found.faults_per_s == 155.0
    assert found.hit_rate == pytest.approx(1 / 3)


def test_latency_is_of_the_interval() -> None:
    # 1000 old fetches took 10 µs; the 100 new ones 50 and 200.
    found = later(latency={"fetch": histogram((10.0, 1000), (50.0, 98), (200.0, 2))})
    assert (found.p50_us, found.p99_us) == (50.0, 200.0)


def test_where_nothing_happened_there_is_no_rate() -> None:
    found = later()
    assert (found.faults_per_s, found.evicted_per_s) == (0.0, 0.0)
    assert (found.p50_us, found.p99_us, found.hit_rate, found.second_chance_rate) == (None, None, None, None)
    assert (found.readahead_accuracy, found.slowest_donor) == (None, None)


def test_readahead_second_chance_and_evictions() -> None:
    found = later(
        readahead={"issued": 30, "used": 14, "wasted": 2},
        evictions={"clean": 11, "dirty": 6, "zero": 4, "zapped": 140, "second_chance": 20},
    )
    assert found.readahead_accuracy == 0.9
    assert found.second_chance_rate == 0.25
    assert found.evicted_per_s == 7.5


def test_memory_is_as_it_is_now() -> None:
    found = later(pages={"total": 2048, "resident": 10, "inactive": 20, "dirty": 1, "on_donor": 30})
    sizes = (found.resident_bytes, found.inactive_bytes, found.dirty_bytes, found.remote_bytes, found.total_bytes)
    assert sizes == (10 * 4096, 20 * 4096, 4096, 30 * 4096, 2048 * 4096)


def test_each_donor_has_its_own_and_the_slowest_is_named() -> None:
    busy = [
        donor("nbd://a/x", reads=20, writes=4, read_bytes=8192, written_bytes=4096, latency=histogram((20.0, 24))),
        donor("nbd://b/x", reads=2, latency=histogram((90.0, 2)), errors=3),
    ]
    found = later(donors=busy)
    first, second = found.donors
    assert (first.requests_per_s, first.read_bytes_per_s, first.written_bytes_per_s) == (12.0, 4096.0, 2048.0)
    assert (first.p50_us, second.p50_us, second.errors) == (20.0, 90.0, 3)
    assert found.slowest_donor == "nbd://b/x"


def test_one_donor_at_work_is_not_the_slowest_of_anything() -> None:
    busy = [donor("nbd://a/x", reads=1, latency=histogram((20.0, 1))), donor("nbd://b/x")]
    assert later(donors=busy).slowest_donor is None


def test_a_donor_that_was_added_meanwhile_waits_for_the_next_look() -> None:
    assert len(later(donors=[*status()["donors"], donor("nbd://c/x", reads=9)]).donors) == 2


def test_counters_that_ran_ahead_give_no_share_above_one() -> None:
    found = later(evictions={"clean": 1, "dirty": 2, "zero": 3, "zapped": 101, "second_chance": 15})
    assert found.second_chance_rate == 1.0


@pytest.mark.parametrize(("q", "expected"), [(0.0, 1.0), (0.5, 1.0), (0.51, 2.0), (0.99, 4.0), (1.0, 4.0)])
def test_quantiles(q: float, expected: float) -> None:
    assert top.quantile_us([(1.0, 50), (2.0, 40), (4.0, 10)], q) == expected


def test_line_shows_that_the_memory_is_not_well() -> None:
    assert "MEMORY DEGRADED" in line(later(health="degraded"))
    assert "MEMORY" not in line(later(health="ok"))


def test_donors_have_the_names_that_people_know_and_uris_only_where_there_is_none() -> None:
    busy = [
        donor("nbd://a/x", state="down", down_s=12.0, why="connection refused", latency=histogram((20.0, 1))),
        donor("nbd://b/x", latency=histogram((90.0, 2))),
        donor("nbd://c/x", backup=True),
    ]
    before = read(status(donors=[donor(each["uri"]) for each in busy]))
    found = top.rates("vm", before, read(status(donors=busy)), 1.0, {"nbd://a/x": "attic:10810"})
    assert [each.name for each in found.donors] == ["attic:10810", "nbd://b/x", "the copy on disk"]
    text = line(found)
    assert "NOT UP attic:10810 (away 12.0 s: connection refused)" in text
    assert "slowest nbd://b/x" in text
    with (console := PlainConsole(width=200)).capture() as captured:
        console.print(view(found))
    assert "away 12.0 s: connection refused" in captured.get()
    assert "nbd://a/x" not in captured.get()


def page_map() -> PageMap:
    """Return a map of 32 GiB whose cells show every place in turn."""
    n, pages = 1024, 8192
    nothing = (0,) * n
    by_place = {place: list(nothing) for place in ("absent", "remote", "resident", "inactive", "poisoned", "dirty")}
    for cell, place in enumerate(itertools.islice(itertools.cycle(by_place), n)):
        by_place["resident" if place == "dirty" else place][cell] = pages
        by_place["dirty"][cell] = pages if place == "dirty" else 0
    return PageMap(length_bytes=32 << 30, moving=nothing, **{place: tuple(cells) for place, cells in by_place.items()})


@pytest.mark.parametrize(
    ("no_color", "encoding", "signs"),
    [(True, "utf-8", " ·RI!W"), (True, "ascii", " ·RI!W"), (False, "utf-8", " ·█!"), (False, "koi8-r", " ·#!")],
)
def test_the_screen_fits_on_80_by_24_and_looks_differ_without_colours(
    no_color: bool, encoding: str, signs: str
) -> None:
    names = {"nbd://a/x": "198.51.100.123:10810", "nbd://b/x": "198.51.100.124:10810"}
    busy = {"read_bytes": 1000 << 20, "written_bytes": 999 << 20, "reads": 123456, "errors": 12}
    after = [donor(uri, **busy, latency=histogram((900.0 + len(uri), 9))) for uri in names]
    sample = top.rates("work", read(status()), read(status(donors=after)), 1.0, names)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    console = PlainConsole(
        file=stream, width=80, height=24, no_color=no_color, force_terminal=True, color_system="standard"
    )
    with console.capture() as captured:
        console.print(screen(dataclasses.replace(sample, map=page_map()), console))
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in captured.get().splitlines()]
    assert len(lines) <= 24 and max(map(len, lines)) <= 80, "\n".join(lines)
    for name in names.values():
        assert any(line.startswith(f"{name} up ") for line in lines), "\n".join(lines)
    assert set(signs) <= set(lines[-1]), lines[-1]


def test_line_shows_a_donor_that_is_down() -> None:
    text = line(later(donors=[donor("nbd://a/x", state="down"), donor("nbd://b/x")]))
    assert "NOT UP nbd://a/x" in text
    assert text.startswith("0 faults/s  p50 – p99 –  hits –  resident 400 KiB")
