# SPDX-License-Identifier: MIT
"""What the reclaim policy is worth, by simulation of the pager's own rules: the same figures on every machine."""

from __future__ import annotations

import functools
import json
import subprocess

import pytest

from helpers.memserver import built_program

# What a MINOR fault costs, with the zap before it, as a share of a fault that is fetched: on loopback a sixth, over
# 1 Gbit/s a twelfth, in an emulated guest half (docs/paging-policy.md).
MINOR_COSTS = (1 / 12, 1 / 6, 1 / 2)


@functools.cache
def simulated(*options: str) -> dict[str, float]:
    """Run the simulation; return its counts per access."""
    done = subprocess.run(
        [built_program("reclaim-simulation", "tests/c"), *options],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def cost(found: dict[str, float], minor: float) -> float:
    """Return what an access costs on average, in faults that are fetched."""
    return found["fetched"] + found["written"] + minor * found["minor"]


def test_the_rules_fetch_less_than_fifo_and_write_less() -> None:
    options = ("--writes", "10")
    ours, fifo = simulated(*options), simulated(*options, "--fifo")
    assert ours["fetched"] < 0.8 * fifo["fetched"]
    assert ours["written"] < 0.8 * fifo["written"]


def test_a_scanner_costs_the_reader_beside_it_nearly_nothing() -> None:
    alone, beside = simulated(), simulated("--scanner", "100")
    assert beside["fetched"] < 1.05 * alone["fetched"]
    fifo = simulated("--scanner", "100", "--fifo")
    assert fifo["fetched"] > 2 * beside["fetched"]


@pytest.mark.parametrize("work", [(), ("--exponent", "110"), ("--work", "random")], ids=["zipf09", "zipf11", "random"])
@pytest.mark.parametrize("minor", MINOR_COSTS)
def test_a_larger_inactive_share_does_not_pay_for_its_minor_faults(work: tuple[str, ...], minor: float) -> None:
    ours, more = simulated(*work), simulated(*work, "--inactive", "25")
    assert cost(ours, minor) < 1.01 * cost(more, minor)


def test_a_hot_set_that_fits_is_neither_fetched_nor_zapped_once_it_is_home() -> None:
    settled = simulated("--work", "hot", "--hot", "45")
    assert (settled["fetched"], settled["minor"], settled["zapped"]) == (0.0, 0.0, 0.0)


def test_a_wrong_option_is_refused() -> None:
    done = subprocess.run(
        [built_program("reclaim-simulation", "tests/c"), "--work", "other"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "--work: " in done.stderr
