# SPDX-License-Identifier: MIT
"""The benchmark's rows have ratios by round, take the hardest reference, and name what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ghostbox.bench import plot
from ghostbox.bench.model import (
    Contender,
    Outcome,
    Results,
    Row,
    RowSpec,
    Scenario,
    Source,
    Target,
    at_least,
    at_most,
    make_row,
    merge_latency,
)
from ghostbox.cli.bench import ratio, value
from ghostbox.errors import GhostboxError


def results(missing: dict[str, str] | None = None, **values: list[float]) -> Results:
    outcomes = {who: [Outcome({"x": number}) for number in numbers] for who, numbers in values.items()}
    return Results(outcomes, missing or {})


def row_of(found: Results, target: Target | None, *references: str) -> Row:
    def nothing() -> Outcome:
        raise AssertionError

    spec = RowSpec("what", "/s", Source("a", "x"), tuple(Source(name, "x") for name in references), target, "a note")
    contenders = tuple(Contender(name, nothing) for name in ("a", *references))
    return make_row(Scenario("part", "title", contenders, (spec,)), spec, found)


def test_ratio_is_taken_round_by_round() -> None:
    # The medians alone would give 2 / 4; all rounds but the last were half as fast as their own reference.
    row = row_of(results(a=[1.0, 2.0, 100.0], b=[2.0, 4.0, 100.0]), at_least(0.5), "b")
    assert row.ratio is not None
    assert (row.ratio.median, row.ratio.min, row.ratio.max) == (0.5, 0.5, 1.0)
    assert row.reached is True
    assert row.measured is not None
    assert row.measured.median == 2.0


@pytest.mark.parametrize(
    ("target", "reached"),
    [(at_least(0.5), True), (at_least(0.51), False), (at_most(0.5), True), (at_most(0.49), False)],
)
def test_target_has_a_side(target: Target, reached: bool) -> None:
    assert row_of(results(a=[1.0], b=[2.0]), target, "b").reached is reached


def test_the_reference_that_is_hardest_to_beat_counts() -> None:
    found = results(a=[10.0], b=[5.0], c=[8.0])
    assert row_of(found, at_least(1.0), "b", "c").reference_name == "c"
    assert row_of(found, at_most(1.0), "b", "c").reference_name == "b"


def test_a_missing_reference_leaves_the_figure_and_says_why() -> None:
    row = row_of(results({"b": "b is not installed"}, a=[3.0]), at_least(1.0), "b")
    assert row.measured is not None
    assert row.measured.median == 3.0
    assert (row.ratio, row.reached, row.reference) == (None, None, None)
    assert row.note == "a note; b is not installed"


def test_a_figure_that_could_not_be_taken_is_still_a_row() -> None:
    row = row_of(results({"a": "fio is not installed"}, b=[3.0]), at_least(1.0), "b")
    assert (row.measured, row.ratio, row.reached) == (None, None, None)
    assert "fio is not installed" in row.note


def test_one_reference_of_two_is_enough_and_the_other_is_named() -> None:
    row = row_of(results({"b": "b is not installed"}, a=[3.0], c=[1.0]), at_least(1.0), "b", "c")
    assert row.reference_name == "c"
    assert "b is not installed" in row.note


def test_nothing_is_divided_by_zero() -> None:
    row = row_of(results(a=[1.0, 1.0], b=[0.0, 2.0]), at_most(1.0), "b")
    assert row.ratio is not None
    assert row.ratio.median == 0.5


def test_a_curve_has_no_target_and_is_not_judged() -> None:
    assert row_of(results(a=[1.0], b=[2.0]), None, "b").reached is None


def test_histograms_add_up() -> None:
    outcomes = [Outcome({}, [(1.0, 2), (2.0, 1)]), Outcome({}, [(0.5, 1), (2.0, 4)])]
    assert merge_latency(outcomes) == [(0.5, 1), (1.0, 2), (2.0, 5)]


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (14.16, "µs", "14.2 µs"),
        (148.4, "µs", "148 µs"),
        (85_300.0, "/s", "85.3 k/s"),
        (2_500_000.0, "/s", "2.5 M/s"),
        (12.0, "/s", "12.0 /s"),
        (1.5 * 2**30, "B/s", "1.5 GiB/s"),
        (300.0, "B", "300.0 B"),
        (9.04, "ms", "9.0 ms"),
    ],
)
def test_figures_for_people(number: float, unit: str, text: str) -> None:
    assert value(number, unit) == text


@pytest.mark.parametrize(("number", "text"), [(1.234, "1.23"), (0.0012, "0.0012"), (0.105, "0.10")])
def test_ratios_keep_their_digits(number: float, text: str) -> None:
    assert ratio(number) == text


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(GhostboxError, match="matplotlib is not installed") as found:
        plot.check(tmp_path / "x.png")
    assert found.value.hint is not None
    assert "pip install matplotlib" in found.value.hint
