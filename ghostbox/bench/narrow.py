# SPDX-License-Identifier: MIT
"""Measure the pager over wires of usual rates, where the network is the limit; on loopback the processors are."""

from __future__ import annotations

import resource
from collections.abc import Callable

from ghostbox.bench import faults, pressure
from ghostbox.bench.lab import Lab, cpu_s, missing_tool
from ghostbox.bench.model import Contender, Outcome, RowSpec, Scenario, Source, at_least, at_most

RATES = {"1gbit": "1 Gbit/s", "2.5gbit": "2.5 Gbit/s"}
"""The rates by tc's names, with the names for people."""

_RAW = Source("wire", "bytes_per_s", "raw TCP")
_RAW_NOTE = "raw TCP over the same wire, one way"
_Measure = Callable[[Lab], Outcome]


def scenarios(lab: Lab) -> list[Scenario]:
    """Return the scenarios for each rate."""
    return [make(lab, rate) for rate in RATES for make in (_faults, _sequential, _writes)]


def _faults(lab: Lab, rate: str) -> Scenario:
    contenders = (
        _contender(lab, rate, "pager", _with_cpu(faults.cold_random)),
        _contender(lab, rate, "floor", faults.floor),
    )
    what = f"cold random fault over {RATES[rate]}, p50"
    note = "TCP ping-pong over the same wire plus an empty userfaultfd round trip"
    row = RowSpec(what, "µs", Source("pager", "p50_us"), (Source("floor", "p50_us"),), at_most(1.2), note)
    return Scenario(f"link/{rate}/faults", what, contenders, (row,), takes_memory=True)


def _sequential(lab: Lab, rate: str) -> Scenario:
    contenders = (
        _contender(lab, rate, "pager", _with_cpu(faults.cold_sequential)),
        _contender(lab, rate, "wire", lambda wired: _raw_tcp(wired, to_donor=False)),
        _contender(lab, rate, "nbdcopy", _with_cpu(faults.nbdcopy), "nbdcopy"),
    )
    what = f"cold sequential read over {RATES[rate]}"
    ours, copied = Source("pager", "bytes_per_s"), Source("nbdcopy", "bytes_per_s")
    rows = (
        RowSpec(what, "B/s", ours, (_RAW,), at_least(0.8), _RAW_NOTE),
        RowSpec(what, "B/s", ours, (copied,), at_least(0.8), faults.NBDCOPY_NOTE),
    )
    return Scenario(f"link/{rate}/sequential", what, contenders, rows, takes_memory=True)


def _writes(lab: Lab, rate: str) -> Scenario:
    contenders = (
        _contender(lab, rate, "pager", _with_cpu(pressure.write_back)),
        _contender(lab, rate, "wire", lambda wired: _raw_tcp(wired, to_donor=True)),
    )
    what = f"dirty bytes written back over {RATES[rate]}, random writes over 4 × the cache"
    note = f"{_RAW_NOTE}; {pressure.WRITES_NOTE}"
    row = RowSpec(what, "B/s", Source("pager", "written_bytes_per_s"), (_RAW,), at_least(0.6), note)
    return Scenario(f"link/{rate}/writes", what, contenders, (row,), takes_memory=True)


def _contender(lab: Lab, rate: str, name: str, measure: _Measure, *tools: str) -> Contender:
    missing = lab.cable_missing or missing_tool(*tools)
    return Contender(name, lambda: measure(lab.wired(rate)), missing, ours=name == "pager")


def _raw_tcp(wired: Lab, *, to_donor: bool) -> Outcome:
    """Receive at one end of the wire what a peer at the other end sends."""
    result = wired.client_and_peer("wire", {"ms": wired.scale.run_ms}, far=to_donor)
    return Outcome({"bytes_per_s": float(result["bytes_per_s"])})


def _with_cpu(measure: _Measure) -> _Measure:
    """Return the measurement with the CPU time of the host's programs that ended during it, and of the donor."""

    def run(wired: Lab) -> Outcome:
        donor = wired.donor()
        host_s, donor_s = _ended_cpu_s(), cpu_s(donor.pid)
        outcome = measure(wired)
        used = {"host_cpu_s": _ended_cpu_s() - host_s, "donor_cpu_s": cpu_s(donor.pid) - donor_s}
        return Outcome({**outcome.figures, **used}, outcome.latency)

    return run


def _ended_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
