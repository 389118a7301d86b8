# SPDX-License-Identifier: MIT
"""Draw what was measured in guests: how many times faster each load is, and the spread over the rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ghostbox.bench.model import Report, Row, Spread

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def panel(report: Report) -> Callable[[Axes], None] | None:
    """Return a function that draws the ratios to swap; None if there are none."""
    found = [(row, row.ratio) for row in report.rows if row.scenario.startswith("guest/") and row.target and row.ratio]
    if not found:
        return None

    def paint(axes: Axes) -> None:
        for place, (row, ratio) in enumerate(reversed(found)):
            _paint_bar(axes, place, row, ratio)
        axes.set_yticks(range(len(found)), [row.what for row, _ in reversed(found)])
        axes.axvline(1.0, color="black", linewidth=0.8)
        axes.set(title="In the guest, beside swap over NBD", xlabel="times as fast (the mark: to reach)", xscale="log")

    return paint


def _paint_bar(axes: Axes, place: int, row: Row, ratio: Spread) -> None:
    below, above = ratio.median - ratio.min, ratio.max - ratio.median
    axes.barh(place, ratio.median, xerr=[[below], [above]], color="tab:blue", capsize=3)
    if row.target is not None:
        axes.plot(row.target.ratio, place, marker="|", markersize=18, color="tab:red")
