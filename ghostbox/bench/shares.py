# SPDX-License-Identifier: MIT
"""Measure fair shares: a client that asks for one page at a time, beside a greedy one of the same memory server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ghostbox.bench.lab import Lab, Server
from ghostbox.bench.model import Contender, Outcome, RowSpec, Scenario, Source, at_most
from ghostbox.memserver import model as memserver_model
from ghostbox.system import processes
from ghostbox.units import MIB, PAGE_BYTES

_EXPORT_BYTES = 64 * MIB
_GREEDY = "greedy"
_GREEDY_WORDS = {"export": _GREEDY, "connections": 16, "depth": 32, "bytes": MIB, "ms": 600_000}
_NOTE = (
    "the greedy client has 16 connections with 32 reads of 1 MiB in flight on each; it runs at the lowest priority,"
    " because its processor time would be another machine's"
)


def scenarios(lab: Lab) -> list[Scenario]:
    """Return one scenario: the modest client alone, and beside the greedy one."""
    words = {"bytes": PAGE_BYTES, "depth": 1, "connections": 1, "ms": lab.scale.load_ms}

    def measure() -> Outcome:
        result = lab.load(_donor(lab), words)
        return Outcome({"p99_us": float(result["latency"]["p99_us"]), "per_s": float(result["per_s"])})

    def beside() -> Outcome:
        with _greedy(lab, _donor(lab)):
            return measure()

    title = "4 KiB random read beside a greedy client"
    contenders = (Contender("beside it", beside, ours=True), Contender("alone", measure, ours=True))
    rows = (
        RowSpec(
            f"{title}: p99", "µs", Source("beside it", "p99_us"), (Source("alone", "p99_us"),), at_most(3.0), _NOTE
        ),
        RowSpec(title, "/s", Source("beside it", "per_s"), (Source("alone", "per_s"),), None),
    )
    return [Scenario("server/shares", title, contenders, rows)]


def _donor(lab: Lab) -> Server:
    """Return a memory server with one worker and two exports; it runs until the benchmark ends."""
    return lab.kept("shared donor", lambda: _shared(lab))


@contextmanager
def _shared(lab: Lab) -> Iterator[Server]:
    with lab.memserver(_EXPORT_BYTES, beside=_GREEDY) as server:
        yield server


@contextmanager
def _greedy(lab: Lab, server: Server) -> Iterator[None]:
    """Keep the greedy client at the server until the end of the block."""
    words = {"host": server.host, "port": server.port, **_GREEDY_WORDS}
    argv: list[str | Path] = [
        "chrt",
        "-i",
        "0",
        lab.client_program,
        "load",
        *(f"{key}={value}" for key, value in words.items()),
    ]

    def connections() -> int:
        assert server.control is not None
        return memserver_model.status(server.control).by_name[_GREEDY].connections

    with lab.running(argv, lambda: connections() == _GREEDY_WORDS["connections"]):
        yield
    processes.wait_until(lambda: connections() == 0, timeout_s=60, what="the greedy client to be gone")
