# SPDX-License-Identifier: MIT
"""A benchmark predicts from the link that it measured, and compares the predictions with its own figures."""

from __future__ import annotations

import pytest

from ghostbox.bench import donor_link
from ghostbox.bench.model import Outcome, Results
from ghostbox.plan import prediction
from ghostbox.plan.prediction import HostCosts

LINK = {
    "rtt_p50_us": 30.0,
    "rtt_p99_us": 60.0,
    "rtt_mean_us": 35.0,
    "read_bytes_per_s": 1e9,
    "fault_us": 10.0,
    "fault_mean_us": 20.0,
    "access_us": 0.02,
}


def results(**figures: list[float]) -> Results:
    """Return steps a second of each contender, a value for each round."""
    return Results({who: [Outcome({"per_s": value}) for value in values] for who, values in figures.items()})


def link() -> Results:
    rounds = [{**LINK, "rtt_p50_us": value} for value in (29.0, 30.0, 90.0)]
    return Results({"link": [Outcome(each) for each in rounds]})


def test_a_fault_is_predicted_from_the_medians_of_the_rounds() -> None:
    faults = Results({"pager": [Outcome({"p50_us": value}) for value in (50.0, 60.0, 1000.0)]})
    (found,) = donor_link.compare({"link": link(), "faults": faults})
    assert (found.predicted, found.measured, found.ratio) == (40.0, 60.0, 1.5)


def test_a_slowdown_is_local_speed_by_the_pagers_round_by_round() -> None:
    overcommit = results(local=[1000.0, 2000.0], pager=[10.0, 10.0])
    (found,) = donor_link.compare({"link": link(), "overcommit/50": overcommit})
    assert found.what == "slowdown of Zipf 0.9, 50 % local"
    assert found.measured == 150.0
    (_, half, _) = prediction.slowdowns(55.0, HostCosts("", 10.0, 20.0, 0.02))
    assert found.predicted == pytest.approx(half.slowdown)


def test_without_the_link_nothing_is_predicted() -> None:
    missing = Results(missing={"link": "no userfaultfd"})
    assert donor_link.compare({"link": missing, "overcommit/50": results(local=[1.0], pager=[1.0])}) == []
    assert donor_link.compare({}) == []


def test_a_part_that_did_not_run_is_not_predicted() -> None:
    assert donor_link.compare({"link": link(), "overcommit/10": results(local=[1.0], pager=[1.0])}) == []
