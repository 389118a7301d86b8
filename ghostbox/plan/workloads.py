# SPDX-License-Identifier: MIT
"""Predict which share of a program's accesses waits for a donor, by kind of work. All functions are pure.

The work is that of ``ghostbox bench --vm``, on a set of memory that is a multiple of the local RAM (node 0 and the
pager's cache): reads of a hot part alone, reads by Zipf's law, reads of all of it at random, and reads in order.

The model assumes:

- Programs have what is left of node 0 beside the kernel's data on the remote memory and the guest's own services.
- The set was filled in an order that is unrelated to its later use. So without tiering node 0 keeps a random part of
  the set, hot or cold, and the cache adapts to the rest: `prediction.steady_state`.
- With tiering, node 0 and the cache together work like one cache of their size, less the room that tiering keeps free
  (`tiering.ROOM_SHARE` of node 0).
- A hot part that fits waits for no donor once it is local. Of a hot part that does not fit, the excess waits.
- A tenth of the cache is inactive while pages come and go (`prediction.INACTIVE_PART`), and nothing of node 0. An
  access to an inactive page is a second chance. In a cache that everything fits into, no page becomes inactive.
- Memory that is read in order, again and again, comes from donors, except the part in node 0: a cache that keeps the
  last used pages has none of those that are read next.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ghostbox.plan.prediction import INACTIVE_PART, PASS_BYTES_PER_S, HostCosts, steady_state
from ghostbox.plan.tiering import ROOM_SHARE
from ghostbox.units import MIB, PAGE_BYTES

GUEST_OWN_BYTES = 56 * MIB
STRUCT_PAGE_SHARE = 64  # struct page takes 64 bytes for each page of 4 KiB
FACTORS = (1.2, 2.0)


class Kind(enum.StrEnum):
    """Names how a program reads its memory."""

    HOT = "hot"
    ZIPF = "zipf"
    RANDOM = "random"
    SCAN = "scan"


@dataclass(frozen=True)
class Work:
    """Is work on ``set_bytes``; `Kind.HOT` reads only ``hot_bytes`` of it. ``factor``: the set's size in local RAMs."""

    name: str
    kind: Kind
    set_bytes: int
    factor: float
    hot_bytes: int = 0
    exponent: float = 0.0


@dataclass(frozen=True)
class Local:
    """Holds a VM's local memory for its programs, in bytes. ``tiered``: hot pages of node 1 move to node 0."""

    node0_bytes: int
    cache_bytes: int
    tiered: bool

    @property
    def usable_bytes(self) -> int:
        """Return the local memory that holds the pages in use."""
        room = self.node0_bytes // ROOM_SHARE if self.tiered else 0
        return self.node0_bytes - room + self.cache_bytes


@dataclass(frozen=True)
class Expected:
    """Holds the prediction for a kind of work, once its state is steady.

    ``waits``: the share of all accesses that waits for a donor (for `Kind.SCAN`, of all pages that come from a donor);
    ``second_chances``: the share that finds an inactive page, and waits only for the pager. ``bytes_per_s`` is for
    `Kind.SCAN`, otherwise 0. ``slowdown``: how much longer the work takes than in local memory.
    """

    name: str
    factor: float
    set_bytes: int
    waits: float
    second_chances: float
    bytes_per_s: float
    slowdown: float


def local(memory_bytes: int, remote_bytes: int, cache_bytes: int, *, tiered: bool) -> Local:
    """Return the local memory of programs, from ``vm.memory`` and ``pool.cache``, beside this much remote memory."""
    kernel_bytes = remote_bytes // STRUCT_PAGE_SHARE + GUEST_OWN_BYTES
    return Local(max(memory_bytes - kernel_bytes, 0), cache_bytes, tiered)


def usual(local_bytes: int) -> tuple[Work, ...]:
    """Return the kinds of work that ``plan`` shows, for this much local RAM."""
    return tuple(each for factor in FACTORS for each in _default_work(local_bytes, factor))


def _default_work(local_bytes: int, factor: float) -> list[Work]:
    size = int(local_bytes * factor)
    return [
        *(
            Work(f"hot {percent} % of what is here", Kind.HOT, size, factor, hot_bytes=local_bytes * percent // 100)
            for percent in (50, 80)
        ),
        *(Work(f"Zipf {exponent:g}", Kind.ZIPF, size, factor, exponent=exponent) for exponent in (0.9, 1.1)),
        Work("at random", Kind.RANDOM, size, factor),
        Work("in order", Kind.SCAN, size, factor),
    ]


def expect(work: Work, here: Local, *, fault_us: float, bytes_per_s: float, host: HostCosts) -> Expected:
    """Return the prediction for a kind of work.

    Args:
        work: the work.
        here: the VM's local memory.
        fault_us: the mean time of a fetched fault.
        bytes_per_s: the rate at which memory arrives that is read in order.
        host: this host's part of a fault.
    """
    waiting, second = waits(work, here)
    if work.kind is Kind.SCAN:
        seconds = (1.0 - waiting) / PASS_BYTES_PER_S + waiting / min(bytes_per_s, PASS_BYTES_PER_S)
        return Expected(work.name, work.factor, work.set_bytes, waiting, 0.0, 1.0 / seconds, seconds * PASS_BYTES_PER_S)
    slowdown = 1.0 + (waiting * fault_us + second * host.fault_mean_us) / host.access_us
    return Expected(work.name, work.factor, work.set_bytes, waiting, second, 0.0, slowdown)


def waits(work: Work, here: Local) -> tuple[float, float]:
    """Return the share of all accesses that waits for a donor, and the share that waits only for the pager."""
    in_node0 = min(here.node0_bytes / work.set_bytes, 1.0)
    if work.kind is Kind.SCAN:
        return 1.0 - in_node0, 0.0
    if work.kind is Kind.ZIPF:
        return _zipf(work, here, in_node0)
    used_bytes = work.hot_bytes if work.kind is Kind.HOT else work.set_bytes
    away_bytes = used_bytes * (1.0 - in_node0)
    missing = 1.0 - here.usable_bytes / used_bytes if here.tiered else (away_bytes - here.cache_bytes) / used_bytes
    return (missing, INACTIVE_PART * here.cache_bytes / used_bytes) if missing > 0.0 else (0.0, 0.0)


def _zipf(work: Work, here: Local, in_node0: float) -> tuple[float, float]:
    if here.tiered:
        state = steady_state(
            here.usable_bytes / work.set_bytes, n_pages=work.set_bytes // PAGE_BYTES, exponent=work.exponent
        )
        return state.miss_rate, state.second_chance_rate * here.cache_bytes / here.usable_bytes
    away_bytes = work.set_bytes * (1.0 - in_node0)
    if away_bytes <= here.cache_bytes:
        return 0.0, 0.0
    state = steady_state(
        here.cache_bytes / away_bytes, n_pages=max(int(away_bytes) // PAGE_BYTES, 1), exponent=work.exponent
    )
    return state.miss_rate * (1.0 - in_node0), state.second_chance_rate * (1.0 - in_node0)
