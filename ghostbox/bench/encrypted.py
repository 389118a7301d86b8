# SPDX-License-Identifier: MIT
"""Measure the cost of TLS: a donor's export with a key beside the same bytes without TLS, in the same round."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from ghostbox.bench import faults
from ghostbox.bench.lab import EXPORT, Lab, Server, cpu_s, missing_tool
from ghostbox.bench.model import Contender, Outcome, RowSpec, Scenario, Source, at_least, at_most
from ghostbox.bench.narrow import RATES
from ghostbox.system import processes
from ghostbox.units import PAGE_BYTES

_KEY_BYTES = 32
_FILL_TIMEOUT_S = 500.0  # 256 MiB over a slow wire, twice
_NOTE = "TLS 1.3, AES-128-GCM, one connection a class; the plain donor's figure of the same round"
_Measure = Callable[[Lab, Server], Outcome]
_Start = Callable[[int, Path], AbstractContextManager[Server]]


def scenarios(lab: Lab) -> list[Scenario]:
    """Return faults and a sequential read, on loopback and over wires, and requests to the server alone."""
    over_wires = (make(lab, rate) for rate in RATES for make in (_faults, _sequential))
    return [_faults(lab), _sequential(lab), *over_wires, *(_server(lab, mode) for mode in ("read", "write"))]


def _faults(lab: Lab, rate: str | None = None) -> Scenario:
    where = f" over {RATES[rate]}" if rate else ""
    what = f"cold random fault over TLS{where}"
    cpu = Source("TLS", "donor_us"), (Source("plain", "donor_us"),)
    rows = [
        _row(f"{what}, p50", "µs", "p50_us", 1.2 if rate else 1.4),
        _row(f"{what}, p99", "µs", "p99_us", 1.5),
    ]
    if rate is None:
        rows.append(RowSpec(f"{what}: memory server's CPU", "µs", *cpu, at_most(2.5), _NOTE))
    return _scenario(lab, "faults", what, rate, faults.cold_random, tuple(rows))


def _sequential(lab: Lab, rate: str | None = None) -> Scenario:
    what = f"cold sequential read over TLS{f' over {RATES[rate]}' if rate else ''}"
    ours, plain = Source("TLS", "bytes_per_s"), (Source("plain", "bytes_per_s"),)
    row = RowSpec(what, "B/s", ours, plain, at_least(0.97 if rate else 0.5), _NOTE)
    return _scenario(lab, "sequential", what, rate, faults.cold_sequential, (row,))


def _server(lab: Lab, mode: str) -> Scenario:
    """Return the lean load on GhostBox's memory server and on nbdkit over TLS, and on the memory server without TLS."""
    words = {"mode": mode, "depth": 16, "connections": 4, "ms": lab.scale.load_ms}
    title = f"4 KiB random {mode} over TLS, lean, depth 16, 4 connections"

    def contender(name: str, server: Callable[[Lab], Server], *tools: str) -> Contender:
        def run() -> Outcome:
            there = server(lab)
            before_s = cpu_s(there.pid)
            result = lab.load(there, words)
            used_us = (cpu_s(there.pid) - before_s) * 1e6 / max(int(result["count"]), 1)
            return Outcome({"per_s": float(result["per_s"]), "cpu_us": used_us})

        return Contender(name, run, missing_tool(*tools), ours="nbdkit" not in tools)

    contenders = (
        contender("TLS", _sealed_donor, "nbdcopy"),
        contender("plain", Lab.donor),
        contender("nbdkit with TLS", _sealed_nbdkit, "nbdkit", "nbdcopy"),
    )
    rate, cpu = Source("TLS", "per_s"), Source("TLS", "cpu_us")
    rows = (
        RowSpec(title, "/s", rate, (Source("nbdkit with TLS", "per_s"),), at_least(2.0)),
        RowSpec(f"{title}: CPU a request", "µs", cpu, (Source("plain", "cpu_us"),), at_most(2.5), _NOTE),
    )
    return Scenario(f"tls/server/{mode}", title, contenders, rows)


def _row(what: str, unit: str, figure: str, most: float) -> RowSpec:
    return RowSpec(what, unit, Source("TLS", figure), (Source("plain", figure),), at_most(most), _NOTE)


def _scenario(
    lab: Lab, name: str, what: str, rate: str | None, measure: _Measure, rows: tuple[RowSpec, ...]
) -> Scenario:
    missing = missing_tool("nbdcopy") or (lab.cable_missing if rate else None)

    def contender(title: str, donor: Callable[[Lab], Server]) -> Contender:
        def run() -> Outcome:
            there = lab.wired(rate) if rate else lab
            n_pages = there.scale.data_bytes // PAGE_BYTES if name == "sequential" else there.scale.n_faults
            return _with_cpu(there, donor(there), measure, n_pages)

        return Contender(title, run, missing, ours=True)

    contenders = (contender("TLS", _sealed_donor), contender("plain", Lab.donor))
    prefix = f"tls/{rate}" if rate else "tls/loopback"
    return Scenario(f"{prefix}/{name}", what, contenders, rows, takes_memory=True)


def _with_cpu(lab: Lab, server: Server, measure: _Measure, n_pages: int) -> Outcome:
    """Add to an outcome the CPU time of the memory server for each of the pages that are asked for."""
    before_s = cpu_s(server.pid)
    outcome = measure(lab, server)
    used_us = (cpu_s(server.pid) - before_s) * 1e6 / n_pages
    return Outcome({**outcome.figures, "donor_us": used_us}, outcome.latency)


def _sealed_donor(lab: Lab) -> Server:
    """Return a memory server that runs until the benchmark ends; its export has a key, and the plain donor's bytes."""
    return lab.kept("sealed donor", lambda: _sealed(lab, lab.memserver))


def _sealed_nbdkit(lab: Lab) -> Server:
    """Return an nbdkit that runs until the benchmark ends, with the same bytes and the same key."""
    return lab.kept("sealed nbdkit", lambda: _sealed(lab, lab.nbdkit))


@contextmanager
def _sealed(lab: Lab, start: _Start) -> Iterator[Server]:
    keys = lab.directory / f"{EXPORT}.psk"
    if not keys.exists():
        keys.touch(0o600)
        keys.write_text(f"{EXPORT}:{secrets.token_hex(_KEY_BYTES)}\n", encoding="utf-8")
    plain = lab.donor()
    with start(lab.scale.data_bytes, keys) as server:
        processes.run([*lab.prefix(), "nbdcopy", plain.uri, server.uri], timeout_s=_FILL_TIMEOUT_S)
        yield server
