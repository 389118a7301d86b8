# SPDX-License-Identifier: MIT
"""The demo's program detects wrong pages, and the demo names each kind of failure."""

from __future__ import annotations

import json
import mmap
import subprocess
import sys
from pathlib import Path

import pytest

from ghostbox import demo
from ghostbox.demo import workload
from ghostbox.demo.workload import PAGE_BYTES, fill, pattern, wrong_pages

N_PAGES = 64
GOOD = {"wrong_pages": 0, "first_wrong_page": None, "pages": 10, "pages_by_node": {"1": 10}}
TIERS = {"memory_tier4": "0", "memory_tier4500": "1"}
TRAFFIC = demo.Traffic(written_bytes=1, read_bytes=1, fetched_pages=1, evicted_pages=1)


@pytest.fixture
def memory() -> mmap.mmap:
    made = mmap.mmap(-1, N_PAGES * PAGE_BYTES)
    fill(made, N_PAGES, 42)
    return made


def test_what_was_filled_is_right(memory: mmap.mmap) -> None:
    assert wrong_pages(memory, range(N_PAGES), 42) == []


@pytest.mark.parametrize("at", [0, 1, PAGE_BYTES - 1])
def test_one_wrong_byte_is_seen(memory: mmap.mmap, at: int) -> None:
    memory[5 * PAGE_BYTES + at] ^= 1
    assert wrong_pages(memory, range(N_PAGES), 42) == [5]


def test_page_of_zeroes_and_page_in_anothers_place_and_old_page_are_seen(memory: mmap.mmap) -> None:
    for page, content in ((3, bytes(PAGE_BYTES)), (7, pattern(8, 42)), (9, pattern(9, 41))):
        memory[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = content
    assert wrong_pages(memory, range(N_PAGES), 42) == [3, 7, 9]


def test_no_page_is_all_zeroes_and_no_two_are_equal() -> None:
    pages = {pattern(page, 0) for page in range(1, 1000)}
    assert len(pages) == 999
    assert bytes(PAGE_BYTES) not in pages


def test_program_reports_as_json_and_returns_0() -> None:
    done = subprocess.run(
        [sys.executable, str(Path(workload.__file__)), str(4 << 20), "7"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["pages"], report["wrong_pages"]) == (1024, 0)


def test_demo_is_content_when_all_is_right() -> None:
    assert demo.problems(GOOD, TIERS, TRAFFIC) == ()


def test_demo_complains_about_wrong_bytes() -> None:
    found = demo.problems({**GOOD, "wrong_pages": 2, "first_wrong_page": 17}, TIERS, TRAFFIC)
    assert found == ("2 pages came back wrong, the first is 17",)


def test_demo_complains_when_nothing_was_remote() -> None:
    idle = demo.Traffic(written_bytes=1, read_bytes=0, fetched_pages=0, evicted_pages=0)
    assert demo.problems(GOOD, TIERS, idle) == ("no page was remote: nothing went to the donors and came back",)


def test_demo_complains_about_memory_on_the_wrong_node_and_about_a_single_tier() -> None:
    found = demo.problems({**GOOD, "pages_by_node": {"0": 4, "1": 6}}, {"memory_tier4": "0-1"}, TRAFFIC)
    assert found == (
        "the program's memory was not all on node 1: {'0': 4, '1': 6}",
        "the guest sees one memory tier only: {'memory_tier4': '0-1'}",
    )
