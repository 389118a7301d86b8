# SPDX-License-Identifier: MIT
"""How large the guests are and how long they work."""

from __future__ import annotations

from dataclasses import dataclass

from ghostbox.units import GIB, MIB

# Phases by the names that figures have; percents are of the local RAM. qemu/bench/guest_load.c says what each one does.
_WORDS = {
    "zipf09": "zipf:0.9",
    "zipf11": "zipf:1.1",
    "hot50": "hot:50%",
    "moved50": "moved:50%",
    "hot80": "hot:80%",
    "moved80": "moved:80%",
    "written50": "written:50%",
    "scanned50": "scanned:50%",
}
HOT = ("hot50", "moved50", "hot80", "moved80")
SETTLING = (*HOT, "written50", "scanned50", "zipf09", "zipf11", "random", "scan")
ALL_PHASES = ("fill", *SETTLING, "sort")
LARGE_PHASES = ("fill", "zipf09", "zipf11", "random", "scan")


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

    ``weights`` is the size of the file of the part of that name, ``database`` that of the database, each as a multiple
    of the local RAM. A phase is gone on with for ``least_ms`` to ``most_ms``, in windows of ``window_ms``.
    """

    memory_bytes: int
    cache_bytes: int
    remote_bytes: int
    sets: tuple[WorkSet, ...]
    weights: float
    database: float
    window_ms: int
    least_ms: int
    most_ms: int
    needed_bytes: int

    @property
    def local_bytes(self) -> int:
        """Memory of a guest on this machine."""
        return self.memory_bytes + self.cache_bytes

    def times_local(self, factor: float) -> int:
        """Return a multiple of the local RAM, in bytes of whole MiB."""
        return int(self.local_bytes * factor) // MIB * MIB

    @property
    def pace(self) -> str:
        """The words for the load that say how long a phase is gone on with."""
        return f"window_ms={self.window_ms} least_ms={self.least_ms} most_ms={self.most_ms}"

    def word(self, phase: str) -> str:
        """Return what the load calls a phase."""
        kind, _, argument = _WORDS.get(phase, phase).partition(":")
        if argument.endswith("%"):
            argument = str(self.times_local(int(argument[:-1]) / 100))
        return f"{kind}:{argument}" if argument else kind


# With swap a sort of twice the local RAM takes minutes: it would take most of a run.
FULL = VmScale(
    memory_bytes=384 * MIB,
    cache_bytes=64 * MIB,
    remote_bytes=1024 * MIB,
    sets=(WorkSet(1.2, ALL_PHASES), WorkSet(2.0, LARGE_PHASES)),
    weights=2.0,
    database=1.5,
    window_ms=4000,
    least_ms=20_000,
    most_ms=90_000,
    needed_bytes=7 * GIB,
)
SHORT = VmScale(
    memory_bytes=256 * MIB,
    cache_bytes=64 * MIB,
    remote_bytes=512 * MIB,
    sets=(WorkSet(1.2, ALL_PHASES, sort_bytes=8 * MIB),),
    weights=0.2,
    database=0.2,
    window_ms=100,
    least_ms=400,
    most_ms=800,
    needed_bytes=4 * GIB,
)
