# SPDX-License-Identifier: MIT
"""Measure the memory server beside nbdkit's memory plugin and qemu-nbd over a file in RAM: requests/s, CPU a request.

There are two loads: fio's nbd engine, and GhostBox's lean client, which leaves the limit to the server
(qemu/bench/nbd_load.c).
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ghostbox.bench.lab import EXPORT, Lab, Server, cpu_s, missing_tool
from ghostbox.bench.model import Contender, Outcome, RowSpec, Scenario, Source, Target, at_least, at_most
from ghostbox.system import processes
from ghostbox.units import KIB

NAMES = ("memserver", "nbdkit", "qemu-nbd")
_FIO_TIMEOUT_S = 60.0
_CPU_NOTE = (
    "of the process. As root, while that serves more, the memserver asks the kernel to keep processors quick to wake: "
    "then their idle loop may poll, and no process is charged for it (`ghostbox-memserver --keep-awake never`)"
)


@dataclass(frozen=True)
class Load:
    """Describes the requests to a server."""

    tool: str
    mode: str
    pattern: str
    request_bytes: int
    depth: int
    connections: int = 1

    @property
    def name(self) -> str:
        """Return the scenario's name."""
        shape = "" if self.pattern == "random" else f"{self.pattern}-"
        return f"server/{self.tool}/{shape}{self.mode}/{self.depth}x{self.connections}"

    @property
    def title(self) -> str:
        """Return the title for people."""
        many = f", {self.connections} connections" if self.connections > 1 else ""
        return f"{self.request_bytes // KIB} KiB {self.pattern} {self.mode}, {self.tool}, depth {self.depth}{many}"


LOADS = (
    *(
        Load("fio", mode, "random", 4096, depth, n)
        for n in (1, 4)
        for mode in ("read", "write")
        for depth in (1, 16, 64)
    ),
    *(Load("lean", mode, "random", 4096, depth, n) for n in (1, 4) for mode in ("read", "write") for depth in (16, 64)),
    *(Load("lean", mode, "sequential", 256 * KIB, 8) for mode in ("read", "write")),
)


def scenarios(lab: Lab) -> list[Scenario]:
    """Return a scenario for each load."""
    return [_scenario(lab, load) for load in LOADS]


def _scenario(lab: Lab, load: Load) -> Scenario:
    contenders = tuple(_contender(lab, load, name) for name in NAMES)
    rate_target, cpu_target = _targets(load)
    rate, unit = ("per_s", "/s") if load.pattern == "random" else ("bytes_per_s", "B/s")
    rows = (
        _row(load.title, unit, rate, rate_target),
        _row(f"{load.title}: CPU a request", "µs", "cpu_us", cpu_target, _CPU_NOTE),
    )
    return Scenario(load.name, load.title, contenders, rows)


def _targets(load: Load) -> tuple[Target, Target]:
    """Return the targets of requests (or bytes) a second, and of CPU a request."""
    if load.pattern == "sequential":
        return at_least(1.2), at_most(0.8)
    if load.tool == "lean":
        return at_least(2.0), at_most(0.5)
    return at_least(1.0), at_most(0.8 if load.depth == 1 else 0.5)


def _row(what: str, unit: str, figure: str, target: Target, note: str = "") -> RowSpec:
    references = tuple(Source(name, figure) for name in NAMES[1:])
    return RowSpec(what, unit, Source(NAMES[0], figure), references, target, note)


def _contender(lab: Lab, load: Load, name: str) -> Contender:
    # The donor and nbdkit are shared with the scenarios that fill them.
    start = {"memserver": lab.donor, "nbdkit": lab.nbdkit_donor, "qemu-nbd": lab.qemu_donor}[name]
    tools = ([] if name == "memserver" else [name]) + (["fio"] if load.tool == "fio" else [])
    # Not every fio has the nbd engine: then its rows are missing, but GhostBox has not failed.
    ours = name == "memserver" and load.tool != "fio"
    return Contender(name, lambda: _measure(lab, load, start()), missing_tool(*tools), ours=ours)


def _measure(lab: Lab, load: Load, server: Server) -> Outcome:
    before_s = cpu_s(server.pid)
    count, per_s = (_fio if load.tool == "fio" else _lean)(lab, load, server)
    used_us = (cpu_s(server.pid) - before_s) * 1e6
    return Outcome(
        {"per_s": per_s, "bytes_per_s": per_s * load.request_bytes, "cpu_us": used_us / max(count, 1), "count": count}
    )


def _fio(lab: Lab, load: Load, server: Server) -> tuple[int, float]:
    """Return the number of requests, and requests a second."""
    kind = ("rand" if load.pattern == "random" else "") + load.mode
    argv = ["fio", "--name=bench", "--ioengine=nbd", f"--uri={server.uri}", f"--rw={kind}", "--thread"]
    argv += [f"--bs={load.request_bytes}", f"--iodepth={load.depth}", f"--size={lab.scale.data_bytes}"]
    argv += [f"--numjobs={load.connections}", "--group_reporting", "--randrepeat=0", "--time_based"]
    argv += [f"--runtime={lab.scale.load_ms}ms", "--output-format=json"]
    said = processes.run(argv, timeout_s=_FIO_TIMEOUT_S)
    # Messages of the engine may precede the JSON.
    job = json.loads(said[said.index("{") :])["jobs"][0][load.mode]
    return int(job["total_ios"]), float(job["iops"])


def _lean(lab: Lab, load: Load, server: Server) -> tuple[int, float]:
    """Return the number of requests, and requests a second."""
    words = {"port": server.port, "export": EXPORT, "depth": load.depth, "bytes": load.request_bytes}
    words |= {"mode": load.mode, "pattern": load.pattern, "connections": load.connections, "ms": lab.scale.load_ms}
    result = lab.client("load", words)
    return int(result["count"]), float(result["per_s"])
