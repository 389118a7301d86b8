# SPDX-License-Identifier: MIT
"""``bench --vm`` compares the plan's model of the guest's work with its own figures."""

from __future__ import annotations

import dataclasses

import pytest

from ghostbox.bench import vm_predicted, vm_scale
from ghostbox.bench.model import Outcome, Predicted, Results
from ghostbox.bench.vm_scale import WorkSet
from ghostbox.plan import workloads
from ghostbox.plan.workloads import Kind, Work
from ghostbox.units import MIB

PHASES = ("fill", "hot50", "written50", "scanned50", "zipf09", "random", "scan", "sort")
SCALE = dataclasses.replace(vm_scale.FULL, sets=(WorkSet(1.2, PHASES),))
HERE = workloads.local(SCALE.memory_bytes, SCALE.remote_bytes, SCALE.cache_bytes, tiered=True)
LOCAL_PER_S, FAULT_S = 4e6, 50e-6


def measured(
    *, fetched: float = 300.0, zipf_per_s: float = 2e5, hot_fetched: float = 0.0, local: bool = True
) -> dict[str, Predicted]:
    """Compare a round in which each fault takes `FAULT_S`."""
    ours = {
        "programs_bytes": 300.0 * MIB,
        "random_per_s": 1 / (1 / LOCAL_PER_S + fetched / 1000 * FAULT_S),
        "random_fetched": fetched,
        "random_second": 0.0,
        "hot50_per_s": LOCAL_PER_S,
        "hot50_fetched": hot_fetched,
        "written50_per_s": LOCAL_PER_S / 2,
        "written50_fetched": 0.0,
        "zipf09_per_s": zipf_per_s,
        "zipf09_fetched": 80.0,
        "scan_network": 400.0,
    }
    outcomes = {"ghostbox": [Outcome(ours)]}
    if local:
        outcomes["all local"] = [Outcome({f"{phase}_per_s": LOCAL_PER_S for phase in PHASES})]
    return {each.what: each for each in vm_predicted.compare({"guest/1.2": Results(outcomes)}, SCALE)}


def test_pages_fetched_are_those_of_the_model() -> None:
    found = measured()
    skewed = Work("", Kind.ZIPF, SCALE.times_local(1.2), 1.2, exponent=0.9)
    waits, _ = workloads.waits(skewed, HERE)
    fetched = found["zipf09, set 1.2 ×: accesses that wait"]
    assert fetched.predicted == pytest.approx(waits * 1000)
    assert fetched.measured == 80.0
    assert fetched.ratio == pytest.approx(80.0 / (waits * 1000))


def test_what_the_plan_leaves_to_programs_stands_beside_what_the_guest_has() -> None:
    found = measured()["local RAM that programs can have, set 1.2 ×"]
    assert (found.predicted, found.measured) == (HERE.node0_bytes + HERE.cache_bytes, 300 * MIB)


def test_writing_to_a_hot_part_is_predicted_like_reading_it_and_reading_beside_a_scanner_is_not() -> None:
    found = measured()
    written = found["written50, set 1.2 ×: rate"]
    assert written.predicted == pytest.approx(LOCAL_PER_S)
    assert written.ratio == pytest.approx(0.5)
    assert not any(what.startswith("scanned50") for what in found)


def test_of_a_scan_what_was_read_ahead_counts_too() -> None:
    scanned = measured()["scan, set 1.2 ×: pages fetched"]
    assert scanned.measured == 400.0
    assert scanned.predicted == pytest.approx(1000 * (1 - HERE.node0_bytes / SCALE.times_local(1.2)))


@pytest.mark.parametrize(("fetched", "within"), [(0.0, True), (9.0, True), (90.0, False)])
def test_where_no_access_is_to_wait_a_few_are_within_the_prediction(fetched: float, within: bool) -> None:
    found = measured(hot_fetched=fetched)["hot50, set 1.2 ×: accesses that wait"]
    assert (found.predicted, found.ratio, found.within) == (0.0, None, within)


@pytest.mark.parametrize(("value", "within"), [(70.0, True), (130.0, True), (69.0, False), (131.0, False)])
def test_a_prediction_is_right_to_thirty_percent_of_itself(value: float, within: bool) -> None:
    assert Predicted.of("", "‰", 100.0, value).within is within


def test_rates_are_predicted_by_what_a_fault_of_the_random_reads_took() -> None:
    found = measured()
    assert found["hot50, set 1.2 ×: rate"].predicted == pytest.approx(LOCAL_PER_S)
    dearer = measured(fetched=150.0)["zipf09, set 1.2 ×: rate"]
    assert dearer.predicted == pytest.approx(found["zipf09, set 1.2 ×: rate"].predicted), "FAULT_S is the same in both"
    assert dearer.measured == 2e5


def test_without_the_guest_that_has_all_memory_here_no_rate_is_predicted() -> None:
    assert {each.rpartition(": ")[2] for each in measured(local=False)} == {
        "local RAM that programs can have, set 1.2 ×",
        "accesses that wait",
        "pages fetched",
    }


def test_a_scenario_that_did_not_run_is_not_predicted() -> None:
    assert vm_predicted.compare({}, SCALE) == []
    assert vm_predicted.compare({"guest/1.2": Results(missing={"ghostbox": "no image"})}, SCALE) == []
