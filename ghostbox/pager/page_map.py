# SPDX-License-Identifier: MIT
"""Read where the pages of a VM's remote memory are: the pager's page map, reduced to a grid for people.

The map of all regions together, in the order of the guest's memory, is cut into cells of (nearly) equal size. The
pager's ``page-map`` command (docs/reference/pager.md) counts pages; this module only adds the counts up.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ghostbox.pager.model import PROGRAM, PageCounts, RegionMap, RegionMaps
from ghostbox.system.processes import ControlError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PLACES = ("absent", "remote", "resident", "inactive", "moving", "poisoned")
"""The places of a page. ``dirty`` pages are also counted by themselves; each is in one of these places, too."""
CELLS = 1024
_TIMEOUT_S = 60.0  # the pager needs about a second for 100 GiB of touched memory
_KINDS = (*PLACES, "dirty")

Counts: TypeAlias = "NDArray[np.int64]"


class PageMap(PageCounts):
    """Holds the map of all regions together."""

    @property
    def n_cells(self) -> int:
        """Return the number of cells."""
        return len(self.absent)

    def counts(self) -> Counts:
        """Return all counts: a row for each of `PLACES` and one for dirty, a column for each cell."""
        import numpy as np  # noqa: PLC0415 - slow to load

        return np.array([getattr(self, kind) for kind in _KINDS], dtype=np.int64).reshape(len(_KINDS), -1)


class Look(enum.Enum):
    """Names how a cell is drawn: by its pages on this host if there are any, otherwise by its pages on donors."""

    ABSENT = "absent"
    REMOTE = "remote"
    RESIDENT = "resident"
    INACTIVE = "inactive"
    DIRTY = "dirty"
    POISONED = "poisoned"


@dataclass(frozen=True)
class Cell:
    """Holds one cell of the grid. ``here``: the share of its pages that is in local memory."""

    look: Look
    here: float


def ask(control: Path, n_cells: int = CELLS) -> PageMap | None:
    """Ask a pager for its map; return None if the pager is of an older version without maps.

    Raises:
        ControlError: the pager does not answer (``gone``), or its answer has an unknown form (``misfit``).
    """
    try:
        found = PROGRAM.ask(RegionMaps, control, "page-map", timeout_s=_TIMEOUT_S, cells=n_cells)
    except ControlError as err:
        if err.code == "unknown-command":
            return None
        raise
    return join(found.regions, n_cells)


def join(regions: Sequence[RegionMap], n_cells: int) -> PageMap:
    """Join the maps of regions, each with cells in proportion to its length."""
    import numpy as np  # noqa: PLC0415 - slow to load

    total = sum(region.length_bytes for region in regions)
    parts = []
    for region in regions:
        counts = np.array([getattr(region, kind) for kind in _KINDS], dtype=np.int64)
        wanted = max(round(n_cells * region.length_bytes / total), 1)
        parts.append(reduce(counts, wanted))
    whole = np.concatenate(parts, axis=1) if parts else np.zeros((len(_KINDS), 0), dtype=np.int64)
    rows = (tuple(map(int, row)) for row in whole)
    return PageMap.model_validate({"length_bytes": total, **dict(zip(_KINDS, rows, strict=True))})


def reduce(counts: Counts, n_cells: int) -> Counts:
    """Add neighbouring cells up, so that at most ``n_cells`` are left."""
    import numpy as np  # noqa: PLC0415 - slow to load

    have = counts.shape[1]
    if have <= n_cells:
        return counts
    cells: Counts = np.add.reduceat(counts, np.arange(n_cells) * have // n_cells, axis=1)  # numpy 2.5 types it as Any
    return cells


def grid(found: PageMap, *, columns: int, rows: int) -> list[list[Cell]]:
    """Return the map as rows of cells; the last row may be shorter."""
    import numpy as np  # noqa: PLC0415 - slow to load

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
