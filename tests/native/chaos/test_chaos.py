# SPDX-License-Identifier: MIT
"""A short run of the chaos that tests/helpers/chaos.py makes; SEEDS.md has the long ones, and how to run them."""

from __future__ import annotations

import os

import pytest

from helpers.chaos import Setting, run_chaos
from helpers.chaos_plan import plan
from helpers.devices import need_device

SEED = int(os.environ.get("GHOSTBOX_TEST_CHAOS_SEED", "1"))
SECONDS = float(os.environ.get("GHOSTBOX_TEST_CHAOS_SECONDS", "20"))


@pytest.fixture(autouse=True)
def userfaultfd_device() -> None:
    """Skip where no userfaultfd can be made."""
    need_device("/dev/userfaultfd")


def test_a_seed_gives_the_same_events_again() -> None:
    assert plan(7, 60) == plan(7, 60)
    assert plan(7, 60) != plan(8, 60)


@pytest.mark.slow
def test_whatever_two_copies_can_survive_makes_no_word_wrong() -> None:
    result = run_chaos(Setting(SEED, SECONDS))
    assert sum(result["events"].values()) > SECONDS / 3
    assert result["events"].keys() & {"kill", "drain", "spare", "flip", "rot", "errors"}
    assert result["words_verified"] > 1_000_000
