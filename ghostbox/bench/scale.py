# SPDX-License-Identifier: MIT
"""Define the sizes and times of a run: enough for figures, or just enough to check that everything runs."""

from __future__ import annotations

from dataclasses import dataclass

from ghostbox.units import GIB, MIB


@dataclass(frozen=True)
class Scale:
    """Holds the sizes and times of a run.

    ``data_bytes`` is the donors' content, ``array_bytes`` its first part, which the overcommit uses, ``n_faults`` the
    number of cold faults in a run, ``sizes_gib`` the sizes of the sparse memories.
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
