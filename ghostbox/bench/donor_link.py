# SPDX-License-Identifier: MIT
"""Measure the link to the donors (or loopback), and compare predictions from it with the measurements."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

from ghostbox.bench.lab import Lab
from ghostbox.bench.model import Contender, Outcome, Predicted, Results, Scenario, Source
from ghostbox.plan import prediction
from ghostbox.plan.prediction import LOCALITY_PERCENTS, HostCosts, Link
from ghostbox.units import KIB

NAME = "link"
_BULK = {"mode": "read", "pattern": "sequential", "bytes": 256 * KIB, "depth": 8}
_PREDICTED = {"faults", "sequential", *(f"overcommit/{percent}" for percent in LOCALITY_PERCENTS)}


def scenario(lab: Lab) -> Scenario:
    """Return the measurement of the link, once a round like all others; it has no rows of its own."""
    return Scenario(NAME, "the link", (Contender(NAME, lambda: _measure(lab)),), ())


def is_wanted(names: list[str]) -> bool:
    """Tell whether a prediction exists for one of the scenarios."""
    return not _PREDICTED.isdisjoint(names)


def compare(results: Mapping[str, Results]) -> list[Predicted]:
    """Return the predictions beside the measurements, as far as these exist."""
    link = _medians(results.get(NAME, Results()), NAME)
    return list(_compared(results, link)) if link else []


def _measure(lab: Lab) -> Outcome:
    """Return the figures of one link, or the mean of several, each of which holds an equal part of the memory."""
    times = {"poll_us": lab.poll_us, "ms": lab.scale.load_ms}
    trips = [lab.load(part, {**times, "bytes": 4096})["latency"] for part in lab.donor().all]
    rates = [float(lab.load(part, {**times, **_BULK})["bytes_per_s"]) for part in lab.donor().all]
    fault = lab.client("userfault", {"count": lab.scale.n_floor, "poll_us": lab.poll_us})
    steps = lab.client("zipf", {"memory": "local", "bytes": lab.scale.array_bytes, "ms": lab.scale.load_ms})
    return Outcome(
        {
            "rtt_p50_us": statistics.mean(float(each["p50_us"]) for each in trips),
            "rtt_p99_us": statistics.mean(float(each["p99_us"]) for each in trips),
            "rtt_mean_us": statistics.mean(float(each["mean_us"]) for each in trips),
            "read_bytes_per_s": statistics.harmonic_mean(rates),
            "fault_us": float(fault["latency"]["p50_us"]),
            "fault_mean_us": float(fault["latency"]["mean_us"]),
            "access_us": 1e6 / float(steps["per_s"]),
        }
    )


def _medians(results: Results, contender: str) -> dict[str, float]:
    outcomes = results.outcomes.get(contender, [])
    return (
        {key: statistics.median(each.figures[key] for each in outcomes) for key in outcomes[0].figures}
        if outcomes
        else {}
    )


def _compared(results: Mapping[str, Results], figures: Mapping[str, float]) -> Iterator[Predicted]:
    rate = figures["read_bytes_per_s"]
    trips = (figures["rtt_p50_us"], figures["rtt_p99_us"], figures["rtt_mean_us"])
    link = Link(NAME, "", *trips, read_bytes_per_s=rate, write_bytes_per_s=rate)
    host = HostCosts("", figures["fault_us"], figures["fault_mean_us"], figures["access_us"])
    pager = {name: _medians(found, "pager") for name, found in results.items()}
    fault_us = prediction.fault_us(link, host)
    if pager.get("faults"):
        yield Predicted.of("cold random fault, p50", "µs", fault_us, pager["faults"]["p50_us"])
    if pager.get("sequential"):
        bytes_per_s = prediction.sequential_bytes_per_s(link, host)
        yield Predicted.of("cold sequential read", "B/s", bytes_per_s, pager["sequential"]["bytes_per_s"])
    for each in prediction.slowdowns(prediction.fault_mean_us(link, host), host):
        found = results.get(f"overcommit/{each.locality_percent}", Results())
        slower = _ratios(found, "local", "pager")
        if slower:
            what = f"slowdown of Zipf 0.9, {each.locality_percent} % local"
            yield Predicted.of(what, "×", each.slowdown, statistics.median(slower))


def _ratios(results: Results, one: str, other: str) -> list[float]:
    pairs = zip(results.values(Source(one, "per_s")), results.values(Source(other, "per_s")), strict=False)
    return [a / b for a, b in pairs]
