# SPDX-License-Identifier: MIT
"""Predictions follow from the measured links by the formula that prediction.py states."""

from __future__ import annotations

import bisect
import itertools
import random
from collections import OrderedDict
from dataclasses import replace

import pytest

from ghostbox.plan import prediction
from ghostbox.plan.prediction import HostCosts, Link
from ghostbox.units import GIB

HOST = HostCosts("2026-01-01T00:00:00+00:00", fault_us=10.0, fault_mean_us=20.0, access_us=0.02)
NEAR = Link("near:10810", "2026-01-01T00:00:00+00:00", 30.0, 60.0, 35.0, 1e9, 1e9)
FAR = replace(NEAR, address="far:10810", rtt_p50_us=190.0, rtt_mean_us=195.0, read_bytes_per_s=1e8)


def test_a_fault_is_the_round_trip_and_the_hosts_part() -> None:
    found = prediction.predict({"near": GIB}, {"near": NEAR}, HOST)
    assert (found.fault_us, found.fault_mean_us) == (40.0, 55.0)
    assert not found.assumed
    assert found.links == (NEAR,)


def test_donors_count_by_their_shares() -> None:
    found = prediction.predict({"near": 3 * GIB, "far": GIB}, {"near": NEAR, "far": FAR}, HOST)
    assert found.fault_us == pytest.approx(0.75 * 40 + 0.25 * 200)
    each = [prediction.sequential_bytes_per_s(link, HOST) for link in (NEAR, FAR)]
    assert 1 / found.sequential_bytes_per_s == pytest.approx(0.75 / each[0] + 0.25 / each[1])


def test_in_order_the_slower_of_link_and_host_rules() -> None:
    fast = prediction.sequential_bytes_per_s(replace(NEAR, read_bytes_per_s=1e12), HOST)
    slow = prediction.sequential_bytes_per_s(replace(NEAR, read_bytes_per_s=1e7), HOST)
    assert 1e9 < fast < 3e9
    assert 0.9e7 < slow < 1e7


def test_slowdown_is_of_misses_and_second_chances() -> None:
    found = prediction.predict({"near": GIB}, {"near": NEAR}, HOST)
    assert [each.locality_percent for each in found.slowdowns] == [75, 50, 25]
    for each in found.slowdowns:
        waited_us = each.miss_rate * 55 + each.second_chance_rate * 20
        assert each.slowdown == pytest.approx(1 + waited_us / 0.02)
    assert found.slowdowns[0].slowdown < found.slowdowns[1].slowdown < found.slowdowns[2].slowdown


def test_all_local_misses_nothing() -> None:
    assert prediction.steady_state(1.0) == prediction.SteadyState(0.0, 0.0)


@pytest.mark.parametrize("locality", [0.75, 0.5, 0.25])
def test_steady_state_is_that_of_the_pagers_order(locality: float) -> None:
    """A simulation of the pager's order, access by access, gives the same."""
    n_pages, n_steps = 2048, 120_000
    misses, again = play(n_pages, int(locality * n_pages), n_steps)
    found = prediction.steady_state(locality, n_pages=n_pages)
    assert found.miss_rate == pytest.approx(misses, rel=0.07)
    assert found.second_chance_rate == pytest.approx(again, rel=0.1)


def play(n_pages: int, cache_pages: int, n_steps: int) -> tuple[float, float]:
    """Return misses and second chances per access, in the second half."""
    rng = random.Random(7)
    sums = list(itertools.accumulate((rank + 1) ** -0.9 for rank in range(n_pages)))
    mapped: OrderedDict[int, None] = OrderedDict.fromkeys(range(cache_pages))
    inactive: OrderedDict[int, None] = OrderedDict()
    misses = again = 0
    for step in range(n_steps):
        page = bisect.bisect(sums, rng.random() * sums[-1])
        if page in mapped:
            continue
        counts = step >= n_steps // 2
        if page in inactive:
            del inactive[page]
            again += counts
        else:
            misses += counts
        mapped[page] = None
        while len(mapped) + len(inactive) > cache_pages and inactive:
            inactive.popitem(last=False)
        while len(inactive) < cache_pages // 10:
            inactive[mapped.popitem(last=False)[0]] = None
    return misses / (n_steps // 2), again / (n_steps // 2)


def test_what_was_not_measured_is_assumed_and_said() -> None:
    found = prediction.predict({"near": GIB, "far:10811": GIB}, {"near": NEAR}, None)
    assert found.assumed
    assert found.links[1].measured_at is None
    text = " ".join(found.notes)
    assert "not measured, so assumed to be Gigabit Ethernet: far:10811" in text
    assert "to measure: ghostbox donor bench far:10811" in text
    assert "this host's own part is assumed" in text


def test_a_host_that_was_not_measured_is_assumed_though_all_links_were() -> None:
    assert prediction.predict({"near": GIB}, {"near": NEAR}, None).assumed


@pytest.mark.parametrize("exponent", [0.9, 1.0, 1.1])
def test_many_ranks_weigh_what_they_weigh_one_by_one(exponent: float) -> None:
    singly = sum(rank**-exponent for rank in range(700, 9000))
    assert prediction._zipf_sum(700, 9000, exponent) == pytest.approx(singly, rel=1e-6)
