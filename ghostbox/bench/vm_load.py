# SPDX-License-Identifier: MIT
"""Read what the load in a guest reports (qemu/bench/guest_load.c), window by window, and compute figures. All is pure.

A phase that runs until its rate has settled reports each window; each report gets the pager's counters from the moment
when its line arrived. So the figure of fetched pages is for the same windows as the phase's rate.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ghostbox.units import KIB, PAGE_BYTES

Counters = Mapping[str, float]

_MOVED = {
    "promoted": ("pgpromote_success",),
    "demoted": ("pgdemote_kswapd", "pgdemote_direct", "pgdemote_khugepaged"),
    "migrated": ("pgmigrate_success",),
    "swapped_in": ("pswpin",),
    "swapped_out": ("pswpout",),
}
# The first counts pages that an access waited for, the second all that came, also what was read ahead. Swap has one
# counter for both.
_FETCHED_BY_PAGER = "pager_missing_fetch"
_NETWORK_BYTES = "pager_read_bytes"
# This counts accesses to inactive pages: faults without the network.
_SECOND_CHANCES = "pager_minor"
# Only this phase with windows counts bytes, not pages.
_COUNTS_BYTES = "scan"
_A_THOUSAND = 1000.0
_MINUTE_S = 60.0


@dataclass(frozen=True)
class Window:
    """Holds some seconds of a phase. ``count``: pages (a scan: bytes); ``movers_s``: CPU of threads that move pages."""

    count: float
    seconds: float
    moved: Mapping[str, float]
    movers_s: float
    pager: Counters


@dataclass(frozen=True)
class Phase:
    """Is a phase that has ended. A phase without windows runs once and does not settle."""

    word: str
    per_s: float
    seconds: float
    moved: Mapping[str, float]
    settled: bool | None = None
    settled_s: float = 0.0
    measured: tuple[Window, ...] = ()

    def figures(self, name: str, set_bytes: int) -> dict[str, float]:
        """Return the phase's figures; their names begin with ``name``.

        ``_per_s``; ``_settled_s``: seconds until it had settled; ``_fetched``: pages from donors that an access waited
        for, of 1,000 pages accessed; ``_network``: all pages that came over the network, also those that were read
        ahead, likewise; ``_second``: inactive pages that were accessed, likewise; ``_moving``: pages that the guest's
        kernel moves, as a part of the set a minute; ``_movers``: the part of one processor that this takes.
        """
        found = {f"{name}_per_s": self.per_s}
        found |= {f"{name}_{what}": value for what, value in self.moved.items()}
        if not self.measured:
            return found
        count = sum(window.count for window in self.measured)
        seconds = sum(window.seconds for window in self.measured)
        pages = count / PAGE_BYTES if self.word == _COUNTS_BYTES else count
        swapped = sum(window.moved["swapped_in"] for window in self.measured)
        fetched = sum(window.pager.get(_FETCHED_BY_PAGER, 0.0) for window in self.measured) + swapped
        network = sum(window.pager.get(_NETWORK_BYTES, 0.0) for window in self.measured) / PAGE_BYTES + swapped
        second = sum(window.pager.get(_SECOND_CHANCES, 0.0) for window in self.measured)
        moving = sum(window.moved["migrated"] for window in self.measured)
        return {
            **found,
            f"{name}_settled_s": self.settled_s,
            f"{name}_settled": float(bool(self.settled)),
            f"{name}_fetched": fetched / pages * _A_THOUSAND,
            f"{name}_network": network / pages * _A_THOUSAND,
            f"{name}_second": second / pages * _A_THOUSAND,
            f"{name}_moving": moving * PAGE_BYTES / set_bytes / seconds * _MINUTE_S,
            f"{name}_movers": sum(window.movers_s for window in self.measured) / seconds,
        }


def programs_bytes(meminfo: str, zoneinfo: str) -> int:
    """Return how much of node 0's memory programs can have: free memory above the watermark, and pages of programs.

    Args:
        meminfo: the guest's /sys/devices/system/node/node0/meminfo. What the kernel can reclaim or demote is on its
            lists of active and inactive pages.
        zoneinfo: its /proc/zoneinfo (proc_zoneinfo(5)). Below the low watermark, programs' memory comes from elsewhere.
    """
    words = (line.split() for line in meminfo.splitlines())
    kib = {each[2]: int(each[3]) for each in words if len(each) > 3}
    low_pages, node = 0, ""
    for key, value, *_ in (line.split() for line in zoneinfo.splitlines() if len(line.split()) > 1):
        node = value if key == "Node" else node
        low_pages += int(value) if key == "low" and node == "0," else 0
    return (kib["MemFree:"] + kib["Active:"] + kib["Inactive:"]) * KIB - low_pages * PAGE_BYTES


def collect(lines: Iterable[tuple[str, Counters]]) -> list[Phase]:
    """Return the phases of a load, in order, from its lines of JSON, each with the pager's counters at that time.

    The counters of a phase's first line are compared with those at the end of the phase before.
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
