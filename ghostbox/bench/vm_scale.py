# SPDX-License-Identifier: MIT
"""How large the guests are and how long they work."""

from __future__ import annotations

from dataclasses import dataclass

from ghostbox.units import GIB, MIB

READS = ("fill", "scan", "random", "zipf")


@dataclass(frozen=True)
class WorkSet:
    """Memory to work on, as a multiple of the local RAM, and what is done with it, in this order.

    ``sort_bytes``: how much of it is sorted, 0 is all.
    """

    factor: float
    phases: tuple[str, ...]
    sort_bytes: int = 0


@dataclass(frozen=True)
class VmScale:
    """Sizes and times of a run in guests. Local RAM is what a guest has on this machine: node 0 and the pager's cache.

    ``weights`` is the size of the file of the part of that name, as a multiple of the local RAM.
    """

    memory_bytes: int
    cache_bytes: int
    remote_bytes: int
    sets: tuple[WorkSet, ...]
    weights: float
    ms: int
    warm_ms: int
    needed_bytes: int

    @property
    def local_bytes(self) -> int:
        """Memory of a guest on this machine."""
        return self.memory_bytes + self.cache_bytes

    def times_local(self, factor: float) -> int:
        """Return a multiple of the local RAM, in bytes of whole MiB."""
        return int(self.local_bytes * factor) // MIB * MIB


# With swap a sort of twice the local RAM takes minutes: it would take most of a run.
FULL = VmScale(
    memory_bytes=384 * MIB,
    cache_bytes=64 * MIB,
    remote_bytes=1024 * MIB,
    sets=(WorkSet(1.2, (*READS, "sort")), WorkSet(2.0, READS)),
    weights=2.0,
    ms=2000,
    warm_ms=2000,
    needed_bytes=4 * GIB,
)
SHORT = VmScale(
    memory_bytes=256 * MIB,
    cache_bytes=64 * MIB,
    remote_bytes=512 * MIB,
    sets=(WorkSet(1.2, (*READS, "sort"), sort_bytes=8 * MIB),),
    weights=0.2,
    ms=300,
    warm_ms=100,
    needed_bytes=3 * GIB,
)
