# SPDX-License-Identifier: MIT
"""Draw a report: latency of cold faults, faults/s by threads, the cost of a smaller cache, ratios in guests.

This needs matplotlib.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ghostbox.bench import vm_plot
from ghostbox.bench.model import Report
from ghostbox.errors import GhostboxError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SUFFIXES = (".png", ".svg")


def check(path: Path) -> None:
    """Check before the run that a picture can be drawn after it.

    Raises:
        UsageError: the file's name ends neither in .png nor in .svg.
        GhostboxError: matplotlib is not installed, or the directory does not exist.
    """
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"--plot: {path} ends neither in .png nor in .svg")
    if not path.absolute().parent.is_dir():
        raise GhostboxError(f"cannot draw {path}: there is no directory {path.absolute().parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise GhostboxError(
            f"cannot draw {path}: matplotlib is not installed", hint="pip install matplotlib, or ghostbox[bench]"
        )


def draw(report: Report, path: Path) -> None:
    """Write the picture; the file's suffix chooses its format.

    Raises:
        GhostboxError: there is nothing to draw, or the file cannot be written.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - optional and slow to import

    panels = (_latency(report), _threads(report), _overcommit(report), vm_plot.panel(report))
    drawn = [panel for panel in panels if panel is not None]
    if not drawn:
        raise GhostboxError(
            "there is nothing to draw",
            why="a picture shows the parts faults, threads and overcommit, with --vm: guest",
            hint="drop --only",
        )
    figure = Figure(figsize=(6.0 * len(drawn), 4.5), layout="constrained")
    for axes, paint in zip(figure.subplots(1, len(drawn), squeeze=False)[0], drawn, strict=True):
        paint(axes)
    try:
        figure.savefig(path)
    except OSError as err:
        raise GhostboxError(f"cannot write {path}: {err.strerror}") from err


def _latency(report: Report) -> Callable[[Axes], None] | None:
    found = report.latency.get("faults")
    if not found:
        return None

    def paint(axes: Axes) -> None:
        for name, buckets in found.items():
            total = sum(count for _, count in buckets)
            axes.stairs(
                [count / total for _, count in buckets],
                [buckets[0][0] * 0.94, *(upper for upper, _ in buckets)],
                label=name,
            )
        axes.set(title="Cold random 4 KiB fault", xlabel="µs", ylabel="share of the faults", xscale="log")
        axes.legend()

    return paint


def _threads(report: Report) -> Callable[[Axes], None] | None:
    found = report.figures.get("threads")
    if not found:
        return None
    points = {int(name.split()[0]): statistics.median(values["per_s"]) for name, values in found.items()}

    def paint(axes: Axes) -> None:
        axes.plot(list(points), list(points.values()), marker="o", label="pager")
        axes.set(title="Cold random faults by threads", xlabel="threads", ylabel="faults/s", ylim=(0, None))
        axes.set_xticks(list(points))

    return paint


def _overcommit(report: Report) -> Callable[[Axes], None] | None:
    curves: dict[str, dict[int, float]] = {}
    for name, found in report.figures.items():
        part, _, percent = name.partition("/")
        for who, values in found.items() if part == "overcommit" else ():
            curves.setdefault(who, {})[int(percent)] = statistics.median(values["per_s"])
    if not curves:
        return None

    def paint(axes: Axes) -> None:
        for who, points in curves.items():
            axes.plot(list(points), list(points.values()), marker="o", label=who)
        axes.set(title="Zipf 0.9, 10 % writes", xlabel="cache, % of the array", ylabel="steps/s", yscale="log")
        axes.legend()

    return paint
