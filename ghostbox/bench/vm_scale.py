# SPDX-License-Identifier: MIT
"""Define how large the guests are and how long they work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ghostbox.config import split_local
from ghostbox.units import GIB, MEMORY_BLOCK_BYTES, MIB

# The keys are the figures' names of phases; percentages are of the local RAM. qemu/bench/guest_load.c defines the
# phases.
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
PROGRAMS = "programs_bytes"
"""The figure of the local RAM that programs can have."""

HOT = ("hot50", "moved50", "hot80", "moved80")
SETTLING = (*HOT, "written50", "scanned50", "zipf09", "zipf11", "random", "scan")
ALL_PHASES = ("fill", *SETTLING, "sort")
LARGE_PHASES = ("fill", "zipf09", "zipf11", "random", "scan")


@dataclass(frozen=True)
class WorkSet:
    """Describes memory to work on, as a multiple of the local RAM, and the phases of work on it, in order.

    ``sort_bytes``: how much of it is sorted; 0 means all.
    """

    factor: float
    phases: tuple[str, ...]
    sort_bytes: int = 0


@dataclass(frozen=True)
class VmScale:
    """Holds the sizes and times of a run in guests. Local RAM is a guest's memory here: node 0 and the cache.

    It is split as ``vm.local`` splits it for any VM, so that what is measured is what a user gets.

    ``weights`` is the size of the file in the part of that name, ``database`` that of the database, each as a multiple
    of the local RAM. A phase runs for ``least_ms`` to ``most_ms``, in windows of ``window_ms``. If a load prints
    nothing for ``silence_s``, its guest hangs (a sort of swapped memory prints nothing until it is done).
    """

    local_bytes: int
    remote_bytes: int
    sets: tuple[WorkSet, ...]
    weights: float
    database: float
    window_ms: int
    least_ms: int
    most_ms: int
    silence_s: float
    needed_bytes: int

    @property
    def memory_bytes(self) -> int:
        """Return the size of node 0."""
        return split_local(self.local_bytes)[0]

    @property
    def cache_bytes(self) -> int:
        """Return the size of the pager's cache."""
        return split_local(self.local_bytes)[1]

    def times_local(self, factor: float) -> int:
        """Return a multiple of the local RAM, in bytes of whole MiB."""
        return int(self.local_bytes * factor) // MIB * MIB

    def resized(self, local_bytes: int) -> VmScale:
        """Return the same with another amount of local RAM; remote memory and the need grow or shrink with it."""
        blocks = -(-self.remote_bytes * local_bytes // (self.local_bytes * MEMORY_BLOCK_BYTES))
        needed_bytes = self.needed_bytes * local_bytes // self.local_bytes
        return dataclasses.replace(
            self, local_bytes=local_bytes, remote_bytes=blocks * MEMORY_BLOCK_BYTES, needed_bytes=needed_bytes
        )

    @property
    def pace(self) -> str:
        """Return the words for the load that say how long a phase runs."""
        return f"window_ms={self.window_ms} least_ms={self.least_ms} most_ms={self.most_ms}"

    def word(self, phase: str) -> str:
        """Return the load's word for a phase."""
        kind, _, argument = _WORDS.get(phase, phase).partition(":")
        if argument.endswith("%"):
            argument = str(self.times_local(int(argument[:-1]) / 100))
        return f"{kind}:{argument}" if argument else kind


def scenario_name(work: WorkSet) -> str:
    """Return the name of a set's scenario."""
    return f"guest/{work.factor:g}"


# The large set has no sort: with swap it would take minutes, most of a run.
FULL = VmScale(
    local_bytes=448 * MIB,
    remote_bytes=1024 * MIB,
    sets=(WorkSet(1.2, ALL_PHASES), WorkSet(2.0, LARGE_PHASES)),
    weights=2.0,
    database=1.5,
    window_ms=4000,
    least_ms=20_000,
    most_ms=90_000,
    silence_s=900.0,
    needed_bytes=7 * GIB,
)
SHORT = VmScale(
    local_bytes=384 * MIB,
    remote_bytes=768 * MIB,
    sets=(WorkSet(1.2, ALL_PHASES, sort_bytes=8 * MIB), WorkSet(2.0, LARGE_PHASES)),
    weights=0.1,
    database=0.05,
    window_ms=100,
    least_ms=400,
    most_ms=800,
    silence_s=300.0,
    needed_bytes=5 * GIB,
)
