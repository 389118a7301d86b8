# SPDX-License-Identifier: MIT
"""A short run of the chaos test of tests/helpers/chaos.py finds no fault. SEEDS.md has the long runs."""

from __future__ import annotations

import os

import pytest

from helpers.chaos import Setting, run_chaos
from helpers.chaos_plan import plan
from helpers.chaos_world import ACTIONS
from helpers.devices import need_device
from helpers.sanitized import sanitized_build

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


@pytest.mark.slow
def test_the_same_over_tls() -> None:
    result = run_chaos(Setting(SEED + 1, SECONDS, tls=True))
    assert result["events"].keys() & {"kill", "drain", "spare", "kill-pager", "rot", "errors"}
    assert result["words_verified"] > 500_000


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_thread_races_another_while_donors_and_pagers_come_and_go() -> None:
    """ThreadSanitizer checks pager, shim and client. The events here take little time: SEEDS.md has the others."""
    kinds = {"drain", "spare", "kill-pager", "hand-over", "break", "set-cache", "look"}
    build = sanitized_build("tsan")
    setting = Setting(3, 7, patience=4.0, build=build, without=ACTIONS.keys() - kinds, check_copies=False)
    result = run_chaos(setting)
    assert result["events"].keys() >= {"drain", "kill-pager"}
    assert result["words_verified"] > 100_000
