# SPDX-License-Identifier: MIT
"""How much is done: enough for figures, or just enough to see that everything runs."""

from __future__ import annotations

from dataclasses import dataclass

from ghostbox.units import GIB, MIB


@dataclass(frozen=True)
class Scale:
    """Sizes and times of one run.

    ``data_bytes`` is what the donors hold, ``array_bytes`` what the overcommit works on (the first part of it),
    ``n_faults`` what a run of cold faults touches, ``sizes_gib`` the sparse memories.
    """

    data_bytes: int
    array_bytes: int
    n_faults: int
    n_floor: int
    run_ms: int
    warm_ms: int
    load_ms: int
    fill_ms: int
    write_cache_bytes: int
    sizes_gib: tuple[int, ...]
    needed_bytes: int


FULL = Scale(
    data_bytes=512 * MIB,
    array_bytes=128 * MIB,
    n_faults=20_000,
    n_floor=20_000,
    run_ms=1000,
    warm_ms=1000,
    load_ms=1000,
    fill_ms=200,
    write_cache_bytes=32 * MIB,
    sizes_gib=(1, 16, 256),
    needed_bytes=4 * GIB,
)
SHORT = Scale(
    data_bytes=64 * MIB,
    array_bytes=16 * MIB,
    n_faults=2_000,
    n_floor=2_000,
    run_ms=150,
    warm_ms=50,
    load_ms=150,
    fill_ms=20,
    write_cache_bytes=4 * MIB,
    sizes_gib=(1, 16),
    needed_bytes=1 * GIB,
)
