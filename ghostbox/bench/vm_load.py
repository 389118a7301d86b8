# SPDX-License-Identifier: MIT
"""What the load in a guest reports (qemu/bench/guest_load.c), window by window, and the figures that come of it. Pure.

A phase that goes on until its rate has settled reports each window; to each the pager's counters are added as they were
when the line arrived. So what a figure says of pages fetched is of the windows whose rate is the phase's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ghostbox.units import PAGE_BYTES

Counters = Mapping[str, float]

_MOVED = {
    "promoted": ("pgpromote_success",),
    "demoted": ("pgdemote_kswapd", "pgdemote_direct", "pgdemote_khugepaged"),
    "migrated": ("pgmigrate_success",),
    "swapped_in": ("pswpin",),
    "swapped_out": ("pswpout",),
}
# Pages that came from elsewhere for an access: by the pager, or by swap.
_FETCHED_BY_PAGER = "pager_missing_fetch"
# The one phase with windows that counts bytes, not pages.
_COUNTS_BYTES = "scan"
_A_THOUSAND = 1000.0
_MINUTE_S = 60.0


@dataclass(frozen=True)
class Window:
    """Some seconds of a phase. ``count``: pages (a scan: bytes); ``movers_s``: CPU of the guest's threads that move."""

    count: float
    seconds: float
    moved: Mapping[str, float]
    movers_s: float
    pager: Counters


@dataclass(frozen=True)
class Phase:
    """A phase that has ended. One that is done once has no windows and is not said to have settled."""

    word: str
    per_s: float
    seconds: float
    moved: Mapping[str, float]
    settled: bool | None = None
    settled_s: float = 0.0
    measured: tuple[Window, ...] = ()

    def figures(self, name: str, set_bytes: int) -> dict[str, float]:
        """Return its figures, each under ``name`` and what it is.

        ``_per_s``; ``_settled_s``: seconds until it had settled; ``_fetched``: pages that came over the network for
        1,000 pages accessed; ``_moving``: pages that the guest's kernel moves, as a part of the set a minute;
        ``_movers``: the part of one processor that this takes.
        """
        found = {f"{name}_per_s": self.per_s}
        found |= {f"{name}_{what}": value for what, value in self.moved.items()}
        if not self.measured:
            return found
        count = sum(window.count for window in self.measured)
        seconds = sum(window.seconds for window in self.measured)
        pages = count / PAGE_BYTES if self.word == _COUNTS_BYTES else count
        fetched = sum(window.pager.get(_FETCHED_BY_PAGER, 0.0) + window.moved["swapped_in"] for window in self.measured)
        moving = sum(window.moved["migrated"] for window in self.measured)
        return {
            **found,
            f"{name}_settled_s": self.settled_s,
            f"{name}_settled": float(bool(self.settled)),
            f"{name}_fetched": fetched / pages * _A_THOUSAND,
            f"{name}_moving": moving * PAGE_BYTES / set_bytes / seconds * _MINUTE_S,
            f"{name}_movers": sum(window.movers_s for window in self.measured) / seconds,
        }


def collect(lines: Iterable[tuple[str, Counters]]) -> list[Phase]:
    """Return the phases of a load, in their order, from its lines of JSON, each with the pager's counters at that time.

    The counters of the first line of a phase are compared with those at the end of the phase before.
    """
    phases: list[Phase] = []
    windows: list[Window] = []
    before: Counters = {}
    for line, counters in lines:
        data = json.loads(line)
        if "window" in data:
            gone = {key: value - before.get(key, value) for key, value in counters.items()}
            windows.append(Window(data["count"], data["seconds"], _moved(data), data["movers_s"], gone))
        elif "phase" in data:
            phases.append(_phase(data, windows))
            windows = []
        before = counters
    return phases


def _phase(data: Mapping[str, Any], windows: list[Window]) -> Phase:
    head = (str(data["phase"]), float(data["per_s"]), float(data["seconds"]), _moved(data))
    if "windows" not in data:
        return Phase(*head)
    return Phase(*head, bool(data["settled"]), float(data["settled_s"]), tuple(windows[-int(data["windows"]) :]))


def _moved(data: Mapping[str, Any]) -> dict[str, float]:
    vmstat = data["vmstat"]
    return {name: float(sum(vmstat[counter] for counter in counters)) for name, counters in _MOVED.items()}
