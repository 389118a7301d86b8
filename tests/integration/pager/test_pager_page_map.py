# SPDX-License-Identifier: MIT
"""``page-map`` shows where the pages of each region are, and holds up no fault."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ghostbox.system.processes import ControlError, wait_until
from helpers.pager import Build, RunningPager, installed_build, memory_client, running_memserver, running_pager
from helpers.sanitized import COMPLAINTS, sanitized_build

PLACES = ("absent", "remote", "resident", "inactive", "moving", "poisoned")
PAGES = 4096  # 16 MiB


def page_map(pager: RunningPager, cells: int = 64) -> list[dict[str, Any]]:
    return list(pager.command("page-map", cells=cells)["regions"])


def cell_sums(region: dict[str, Any]) -> list[int]:
    return [sum(counts) for counts in zip(*(region[place] for place in PLACES), strict=True)]


def resident(pager: RunningPager, n_pages: int) -> None:
    """Wait until so many pages are resident: a reader goes on shortly before the state of its page changes."""
    wait_until(lambda: pager.status()["pages"]["resident"] == n_pages, timeout_s=10, what=f"{n_pages} resident pages")


@pytest.mark.parametrize("cells", [1, 7, 64, 4096])
def test_every_page_is_counted_once_and_in_its_cell(cells: int) -> None:
    with (
        running_memserver(a="16M") as donor,
        running_pager([donor.uri("a")], cache="8M", readahead="0") as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", first=0, n=256)  # the first sixteenth is written, and fits into the cache
        resident(pager, 256)
        (region,) = page_map(pager, cells)
        assert (region["pid"], region["length_bytes"]) == (client.pid, 16 << 20)
        ends = [(n + 1) * PAGES // cells for n in range(cells)]
        assert cell_sums(region) == [end - start for start, end in zip([0, *ends], ends, strict=False)]
        assert sum(region["dirty"]) == sum(region["resident"]) == 256
        assert sum(region["resident"][: -(-cells // 16)]) == 256
        assert sum(region["absent"]) == PAGES - 256


def test_pages_that_left_are_with_the_donor() -> None:
    with (
        running_memserver(a="16M") as donor,
        running_pager([donor.uri("a")], cache="2M", readahead="0") as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill")
        (region,) = page_map(pager)
        here = sum(region["resident"]) + sum(region["inactive"]) + sum(region["moving"])
        assert 0 < here <= 512
        assert sum(region["remote"]) == PAGES - here
        assert sum(region["dirty"]) <= here
        assert region["resident"][0] + region["inactive"][0] == 0  # the oldest pages are evicted


def test_untouched_memory_is_absent_or_with_contents_to_keep_remote() -> None:
    with running_memserver(a="16M", b="16M") as donor:
        for contents, place in (("fresh", "absent"), ("keep", "remote")):
            with (
                running_pager([donor.uri("a")], cache="2M", contents=contents) as pager,
                memory_client("16M", pager),
            ):
                assert sum(page_map(pager)[0][place]) == PAGES


def test_without_a_client_there_is_no_region() -> None:
    with running_memserver(a="16M") as donor, running_pager([donor.uri("a")]) as pager:
        assert page_map(pager) == []


@pytest.mark.parametrize("cells", [0, -1, 4097, "many", 1.5])
def test_a_wrong_number_of_cells_is_refused(cells: object) -> None:
    with running_memserver(a="16M") as donor, running_pager([donor.uri("a")]) as pager:
        with pytest.raises(ControlError, match="cells must be a whole number from 1 to 4096") as caught:
            pager.command("page-map", cells=cells)
        assert caught.value.code == "invalid"


def test_untouched_parts_of_a_large_region_cost_the_pager_nothing() -> None:
    with (
        running_memserver(a="64G", size="64G") as donor,
        running_pager([donor.uri("a")], cache="8M") as pager,
        memory_client("64G", pager) as client,
    ):
        client.command("fill", first=1 << 23, n=1)
        resident(pager, 1)
        before = table_bytes(pager)
        (region,) = page_map(pager, 4096)
        assert sum(cell_sums(region)) == 1 << 24
        assert region["resident"][2048] == 1
        assert table_bytes(pager) - before < 128 << 10


def table_bytes(pager: RunningPager) -> int:
    """Return the size of the pager's page tables: a read of unwritten states would allocate 8 bytes for 256 of them."""
    status = Path(f"/proc/{pager.process.pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    return int(fields["VmPTE"].split()[0]) * 1024


@pytest.fixture(params=["plain", pytest.param("tsan", marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def build(request: pytest.FixtureRequest) -> Build:
    """Return the programs without a sanitizer, and with ThreadSanitizer, which checks the lock."""
    return installed_build() if request.param == "plain" else sanitized_build(str(request.param))


def test_memory_at_work_is_right_while_it_is_mapped_again_and_again(build: Build) -> None:
    stop = threading.Event()
    with (
        running_memserver(a="16M", build=build) as donor,
        running_pager([donor.uri("a")], cache="2M", build=build) as pager,
        memory_client("16M", pager) as client,
    ):
        client.start("stress", seconds=3, threads=2)
        found: list[bool] = []

        def look() -> None:
            while not stop.is_set():
                found.extend(sum(cell_sums(region)) == PAGES for region in page_map(pager))

        looking = threading.Thread(target=look)
        looking.start()
        try:
            answer = client.result("stress", timeout_s=60)
        finally:
            stop.set()
            looking.join()
        assert answer["ok"], answer
        assert len(found) > 10
        assert all(found)
        assert not [word for word in COMPLAINTS if word in pager.log()], pager.log()
