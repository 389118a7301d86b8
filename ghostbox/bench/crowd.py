# SPDX-License-Identifier: MIT
"""Measure the memory server among 500 connections: the same requests beside them and without them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ghostbox.bench.lab import EXPORT, Lab, Server
from ghostbox.bench.model import Contender, Outcome, RowSpec, Scenario, Source, at_most
from ghostbox.memserver import model as memserver_model
from ghostbox.system import processes

CROWD = {"idle": 200, "trickle": 200, "slow": 50, "silent": 25, "stuck": 15, "vanish": 10}
"""The number of connections of each kind; qemu/bench/nbd_crowd.c says what each kind does."""

_LONGEST_MS = 600_000  # the crowd is ended before
_NOTE = (
    f"{sum(CROWD.values())} connections: {CROWD['trickle']} read 10 times a second, {CROWD['slow']} ask for more than"
    f" they take, {CROWD['silent']} do not finish the handshake, {CROWD['stuck']} a write, {CROWD['vanish']} leave"
    " before the answer"
)


def scenarios(lab: Lab) -> list[Scenario]:
    """Return a request at a time, and many at once."""
    return [_scenario(lab, depth=1, connections=1), _scenario(lab, depth=16, connections=4)]


def _scenario(lab: Lab, *, depth: int, connections: int) -> Scenario:
    words = {"bytes": 4096, "depth": depth, "connections": connections, "poll_us": 50, "ms": lab.scale.load_ms}

    def measure() -> Outcome:
        result = lab.load(lab.donor(), words)
        return Outcome({"p99_us": float(result["latency"]["p99_us"]), "per_s": float(result["per_s"])})

    def in_crowd() -> Outcome:
        with crowd(lab, lab.donor()):
            return measure()

    title = f"4 KiB random read among {sum(CROWD.values())} connections, depth {depth}"
    contenders = (Contender("crowded", in_crowd, ours=True), Contender("alone", measure, ours=True))
    rows = (
        RowSpec(f"{title}: p99", "µs", Source("crowded", "p99_us"), (Source("alone", "p99_us"),), at_most(3.0), _NOTE),
        RowSpec(title, "/s", Source("crowded", "per_s"), (Source("alone", "per_s"),), None),
    )
    return Scenario(f"server/crowd/{depth}x{connections}", title, contenders, rows)


@contextlib.contextmanager
def crowd(lab: Lab, server: Server) -> Iterator[None]:
    """Keep the crowd at a server until the end of the block, and wait until the server has closed its connections."""
    words = {"host": server.host, "port": server.port, "export": EXPORT, "ms": _LONGEST_MS, **CROWD}
    argv: Sequence[str | Path] = [lab.client_program, "crowd", *(f"{key}={value}" for key, value in words.items())]

    def connections() -> int:
        assert server.control is not None
        return memserver_model.status(server.control).connections

    before = connections()
    with lab.running(argv, lambda: connections() >= before + sum(CROWD.values())):
        yield
    processes.wait_until(lambda: connections() <= before, timeout_s=60, what="the crowd to be gone")
