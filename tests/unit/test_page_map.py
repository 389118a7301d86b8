# SPDX-License-Identifier: MIT
"""The pager's page map becomes a grid in which every page still counts."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from ghostbox.cli.top import Glyphs, heat_map, map_legend
from ghostbox.pager import page_map
from ghostbox.pager.model import RegionMap
from ghostbox.pager.page_map import Cell, Look, PageMap

PAGE = 4096


def region(n_pages: int, **counts: list[int]) -> RegionMap:
    """Return a region in cells of 10 pages; pages that no count names are absent."""
    n_cells = n_pages // 10
    filled = {kind: counts.get(kind, [0] * n_cells) for kind in (*page_map.PLACES, "dirty")}
    here = np.sum([filled[place] for place in page_map.PLACES[1:]], axis=0)
    said = {"length_bytes": n_pages * PAGE, **filled, "absent": [int(10 - n) for n in here]}
    return RegionMap.model_validate(said)


def total(found: PageMap) -> int:
    return int(found.counts()[: len(page_map.PLACES)].sum())


def test_regions_are_laid_end_to_end_in_proportion_to_their_length() -> None:
    found = page_map.join([region(60, resident=[10] * 6), region(20, remote=[10] * 2)], n_cells=4)
    assert (found.n_cells, found.length_bytes, total(found)) == (4, 80 * PAGE, 80)
    assert found.resident == (20, 20, 20, 0)
    assert found.remote == (0, 0, 0, 20)


def test_no_region_is_an_empty_map() -> None:
    assert page_map.join([], 10).n_cells == 0


@pytest.mark.parametrize(("columns", "rows"), [(1, 1), (3, 2), (7, 5), (128, 8)])
def test_a_grid_has_its_size_at_most(columns: int, rows: int) -> None:
    found = page_map.join([region(400, inactive=[5] * 40)], n_cells=1024)
    grid = page_map.grid(found, columns=columns, rows=rows)
    assert len(grid) <= rows
    assert all(len(row) <= columns for row in grid)
    assert sum(map(len, grid)) == min(columns * rows, 40)
    assert {cell for row in grid for cell in row} == {Cell(Look.INACTIVE, 0.5)}


@pytest.mark.parametrize(
    ("counts", "look", "here"),
    [
        ({}, Look.ABSENT, 0.0),
        ({"remote": [3]}, Look.REMOTE, 0.0),
        ({"remote": [3], "resident": [2]}, Look.RESIDENT, 0.2),
        ({"resident": [2], "inactive": [3]}, Look.INACTIVE, 0.5),
        ({"resident": [4], "dirty": [3]}, Look.DIRTY, 0.4),
        ({"resident": [4], "dirty": [2]}, Look.RESIDENT, 0.4),
        ({"moving": [10]}, Look.RESIDENT, 1.0),
        ({"resident": [4], "poisoned": [1]}, Look.POISONED, 0.4),
    ],
)
def test_a_cell_looks_like_what_it_is(counts: dict[str, list[int]], look: Look, here: float) -> None:
    assert page_map.grid(page_map.join([region(10, **counts)], 1), columns=1, rows=1) == [[Cell(look, here)]]


def test_heat_map_is_drawn_with_its_legend() -> None:
    found = page_map.join([region(50, resident=[10, 2, 0, 0, 0], remote=[0, 0, 10, 0, 0], poisoned=[0, 0, 0, 1, 0])], 5)
    glyphs, out = Glyphs(colored=True, density="░▒▓█"), io.StringIO()
    console = Console(file=out, width=200)
    console.print(map_legend(found, glyphs, n_cells=80))
    console.print(heat_map(found, glyphs, columns=80, rows=1))
    legend, cells = out.getvalue().splitlines()
    assert cells.startswith("█░·! ")
    assert legend.startswith("node 1, a character for 40 KiB: █ resident")
