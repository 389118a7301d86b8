# SPDX-License-Identifier: MIT
"""The model of a program's speed on a VM's memory agrees with known cases, and keeps its own limits."""

from __future__ import annotations

import pytest

from ghostbox.plan import prediction, workloads
from ghostbox.plan.prediction import HostCosts
from ghostbox.plan.workloads import Kind, Local, Work
from ghostbox.units import MIB, PAGE_BYTES

HOST = HostCosts("2026-11-29", fault_us=10.0, fault_mean_us=15.0, access_us=0.02)
SET = 1000 * MIB


def work(kind: Kind, hot_bytes: int = 0, exponent: float = 0.0, set_bytes: int = SET) -> Work:
    return Work(kind.value, kind, set_bytes, 1.0, hot_bytes, exponent)


def waiting(described: Work, node0: int, cache: int, *, tiered: bool) -> float:
    return workloads.waits(described, Local(node0 * MIB, cache * MIB, tiered))[0]


def test_memory_that_is_all_here_waits_for_nobody() -> None:
    for kind in Kind:
        described = work(kind, hot_bytes=SET // 2, exponent=0.9)
        for tiered in (True, False):
            assert waiting(described, 1000, 500, tiered=tiered) == 0.0


@pytest.mark.parametrize("tiered", [True, False])
def test_random_reads_wait_for_what_is_not_here(tiered: bool) -> None:
    assert waiting(work(Kind.RANDOM), 480, 120, tiered=tiered) == pytest.approx(0.4, abs=0.03)


def test_a_hot_part_comes_home_with_tiering_and_stays_half_away_without() -> None:
    hot = work(Kind.HOT, hot_bytes=400 * MIB)
    assert waiting(hot, 500, 50, tiered=True) == 0.0
    # Node 0 holds half of everything, so 200 of the 400 MiB; the cache holds 50 of the others.
    assert waiting(hot, 500, 50, tiered=False) == pytest.approx(150 / 400)
    assert waiting(hot, 500, 200, tiered=False) == 0.0, "the cache learns what node 0 has not"


def test_a_hot_part_that_does_not_fit_waits_for_what_is_too_much_of_it() -> None:
    assert waiting(work(Kind.HOT, hot_bytes=800 * MIB), 480, 120, tiered=True) == pytest.approx(0.275, abs=0.001)


def test_reading_in_order_finds_what_node_0_holds_and_nothing_in_the_cache() -> None:
    for tiered in (True, False):
        assert waiting(work(Kind.SCAN), 400, 300, tiered=tiered) == pytest.approx(0.6)


@pytest.mark.parametrize("exponent", [0.9, 1.1])
def test_skewed_reads_find_what_one_cache_of_all_that_is_here_holds(exponent: float) -> None:
    skewed, here = work(Kind.ZIPF, exponent=exponent), Local(480 * MIB, 120 * MIB, tiered=True)
    state = prediction.steady_state(here.usable_bytes / SET, n_pages=SET // PAGE_BYTES, exponent=exponent)
    second = state.second_chance_rate * 120 / (480 - 480 / 24 + 120)
    missed, second_chances = workloads.waits(skewed, here)
    assert missed == state.miss_rate
    assert second_chances == pytest.approx(second)


@pytest.mark.parametrize("tiered", [True, False])
def test_only_pages_of_a_cache_that_is_too_small_get_second_chances(tiered: bool) -> None:
    here = Local(480 * MIB, 120 * MIB, tiered)
    _, second = workloads.waits(work(Kind.HOT, hot_bytes=800 * MIB), here)
    assert second == pytest.approx(0.1 * 120 / 800)
    assert workloads.waits(work(Kind.HOT, hot_bytes=100 * MIB), here) == (0.0, 0.0)


def test_tiering_and_a_larger_cache_both_spare_waiting() -> None:
    skewed = work(Kind.ZIPF, exponent=0.9)
    without, larger, tiered = (
        waiting(skewed, *split, tiered=on)
        for split, on in (((700, 100), False), ((400, 400), False), ((700, 100), True))
    )
    assert tiered < without
    assert larger < without


def test_node_0_has_for_programs_what_books_and_services_leave() -> None:
    here = workloads.local(5 << 30, 32 << 30, 1 << 30, tiered=True)
    assert here.node0_bytes == (5 << 30) - (512 * MIB) - workloads.GUEST_OWN_BYTES
    assert workloads.local(64 * MIB, 1 << 30, 32 * MIB, tiered=True).node0_bytes == 0


def test_waiting_makes_it_longer_by_the_time_of_a_fault() -> None:
    here = Local(500 * MIB, 0, tiered=False)
    found = workloads.expect(work(Kind.RANDOM), here, fault_us=180.0, bytes_per_s=1e8, host=HOST)
    assert found.waits == 0.5
    assert found.slowdown == pytest.approx(1 + 0.5 * 180 / 0.02)
    in_order = workloads.expect(work(Kind.SCAN), here, fault_us=180.0, bytes_per_s=1e8, host=HOST)
    assert in_order.bytes_per_s == pytest.approx(1 / (0.5 / 3e9 + 0.5 / 1e8))
