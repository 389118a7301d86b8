# SPDX-License-Identifier: MIT
"""Measure the local cost of remote memory, and whether its size matters: 1, 16 and 256 GiB of holes."""

from __future__ import annotations

import time

from ghostbox.bench.lab import Lab, resident_bytes
from ghostbox.bench.model import Contender, Outcome, RowSpec, Scenario, Source, at_most
from ghostbox.memserver import model as memserver_model
from ghostbox.units import GIB, MIB

_CACHE_BYTES = 64 * MIB
_N_FAULTS = 1000
# A figure counts as flat within this ratio: more than rounds differ, far less than the sizes do.
_FLAT = 1.5


def scenarios(lab: Lab) -> list[Scenario]:
    """Return the scenarios on size and memory use."""
    return [_sizes(lab), _memserver(lab)]


def _sizes(lab: Lab) -> Scenario:
    names = [f"{gib} GiB" for gib in lab.scale.sizes_gib]
    rows = [_memory_row(name) for name in names]
    for name in names[1:]:
        rows.append(_flat_row(f"start to first fault, {name}", "ms", name, names[0], "first_fault_ms"))
        rows.append(_flat_row(f"cold random fault p50, {name}", "µs", name, names[0], "p50_us"))
    contenders = tuple(
        Contender(name, lambda gib=gib: _sparse(lab, gib), ours=True)  # type: ignore[misc]
        for name, gib in zip(names, lab.scale.sizes_gib, strict=True)
    )
    return Scenario("sizes", "the pager by the size of the remote memory", contenders, tuple(rows))


def _memory_row(name: str) -> RowSpec:
    allowed = (Source(name, "allowed_bytes", "limit"),)
    note = "0.4 % of the remote memory and 32 MiB"
    return RowSpec(f"pager's own memory, {name}", "B", Source(name, "resident_bytes"), allowed, at_most(1.0), note)


def _flat_row(what: str, unit: str, name: str, base: str, figure: str) -> RowSpec:
    return RowSpec(what, unit, Source(name, figure), (Source(base, figure),), at_most(_FLAT))


def _sparse(lab: Lab, size_gib: int) -> Outcome:
    size = size_gib * GIB
    with lab.memserver(size) as server:
        began_ns = time.monotonic_ns()
        with lab.pager(server, _CACHE_BYTES) as running:
            result = lab.client("random", {"bytes": size, "count": _N_FAULTS}, running)
            resident = resident_bytes(running.pid)
    return Outcome(
        {
            "first_fault_ms": (int(result["first_clock_ns"]) - began_ns) / 1e6,
            "p50_us": float(result["latency"]["p50_us"]),
            "resident_bytes": resident,
            "allowed_bytes": size * 0.004 + 32 * MIB,
        }
    )


def _memserver(lab: Lab) -> Scenario:
    def run() -> Outcome:
        server = lab.donor()
        assert server.control is not None
        stored = memserver_model.status(server.control).resident_bytes
        allowed = stored * 1.01 + 16 * MIB
        return Outcome({"resident_bytes": resident_bytes(server.pid), "stored_bytes": stored, "allowed_bytes": allowed})

    name = "memserver"
    note = "the bytes stored, 1 % of them and 16 MiB"
    row = RowSpec(
        "memserver's memory",
        "B",
        Source(name, "resident_bytes"),
        (Source(name, "allowed_bytes", "limit"),),
        at_most(1.0),
        note,
    )
    return Scenario("memserver-memory", "memory of the memory server", (Contender(name, run, ours=True),), (row,))
