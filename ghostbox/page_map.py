# SPDX-License-Identifier: MIT
"""Where the pages of a VM's remote memory are: the pager's page map, reduced to a grid for people.

The map of all regions together, in the order of the guest's memory, is cut into cells of (nearly) as many pages. The
pager's ``page-map`` command (ARCHITECTURE.md) counts; here the counts are only added up.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ghostbox import processes
from ghostbox.processes import ControlError

PLACES = ("absent", "remote", "resident", "inactive", "moving", "poisoned")
"""Where a page can be. Pages ``dirty`` are counted besides: they are among the others."""
CELLS = 1024
_TIMEOUT_S = 60.0  # a second for each 100 GiB that was all touched
_KINDS = (*PLACES, "dirty")

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class PageMap:
    """Pages by where they are, a number for each cell."""

    length_bytes: int
    absent: tuple[int, ...]
    remote: tuple[int, ...]
    resident: tuple[int, ...]
    inactive: tuple[int, ...]
    moving: tuple[int, ...]
    poisoned: tuple[int, ...]
    dirty: tuple[int, ...]

    @property
    def n_cells(self) -> int:
        """How many cells there are."""
        return len(self.absent)

    def counts(self) -> Counts:
        """Return all counts: a row for each of `PLACES` and one for dirty, a column for each cell."""
        return np.array([getattr(self, kind) for kind in _KINDS], dtype=np.int64).reshape(len(_KINDS), -1)


class Look(enum.Enum):
    """What most of a cell that is here is, or what it is if nothing of it is here."""

    ABSENT = "absent"
    REMOTE = "remote"
    RESIDENT = "resident"
    INACTIVE = "inactive"
    DIRTY = "dirty"
    POISONED = "poisoned"


@dataclass(frozen=True)
class Cell:
    """One cell of the grid. ``here``: the share of its pages that is in local memory."""

    look: Look
    here: float


def ask(control: Path, n_cells: int = CELLS) -> PageMap | None:
    """Ask a pager for its map; None of one that knows no maps (it was started by an older version).

    Raises:
        ControlError: no answer.
    """
    try:
        answer = processes.control_request(control, "page-map", timeout_s=_TIMEOUT_S, cells=n_cells)
    except ControlError as err:
        if err.code == "unknown-command":
            return None
        raise
    return join(answer["regions"], n_cells)


def join(regions: Sequence[Mapping[str, Any]], n_cells: int) -> PageMap:
    """Lay regions end to end, each with cells in proportion to its length."""
    total = sum(int(region["length_bytes"]) for region in regions)
    parts = []
    for region in regions:
        counts = np.array([region[kind] for kind in _KINDS], dtype=np.int64)
        wanted = max(round(n_cells * int(region["length_bytes"]) / total), 1)
        parts.append(reduce(counts, wanted))
    whole = np.concatenate(parts, axis=1) if parts else np.zeros((len(_KINDS), 0), dtype=np.int64)
    return PageMap(total, *(tuple(int(n) for n in row) for row in whole))


def reduce(counts: Counts, n_cells: int) -> Counts:
    """Add neighbouring cells up, so that at most ``n_cells`` are left."""
    have = counts.shape[1]
    if have <= n_cells:
        return counts
    cells: Counts = np.add.reduceat(counts, np.arange(n_cells) * have // n_cells, axis=1)  # numpy 2.5 says Any
    return cells


def grid(found: PageMap, *, columns: int, rows: int) -> list[list[Cell]]:
    """Return the map as rows of cells; the last row may be shorter."""
    counts = reduce(found.counts(), columns * rows)
    by_kind = dict(zip(_KINDS, counts, strict=True))
    here = by_kind["resident"] + by_kind["inactive"] + by_kind["moving"]
    pages = counts[: len(PLACES)].sum(axis=0)
    share = here / np.maximum(pages, 1)
    looks = np.select(
        [
            by_kind["poisoned"] > 0,
            (here > 0) & (by_kind["dirty"] * 2 > here),
            (here > 0) & (by_kind["inactive"] > by_kind["resident"]),
            here > 0,
            by_kind["remote"] > 0,
        ],
        [list(Look).index(look) for look in (Look.POISONED, Look.DIRTY, Look.INACTIVE, Look.RESIDENT, Look.REMOTE)],
        default=list(Look).index(Look.ABSENT),
    )
    cells = [Cell(list(Look)[index], float(part)) for index, part in zip(looks, share, strict=True)]
    return [cells[start : start + columns] for start in range(0, len(cells), columns)]
