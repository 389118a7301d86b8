# SPDX-License-Identifier: MIT
"""The memory server beside nbdkit's memory plugin and qemu-nbd over a file in RAM, in the same run, interleaved.

    PYTHONPATH=.:tests python tests/bench/memserver_bench.py [--rounds 5] [--seconds 2] [--only REGEX] [--json]

Every load runs against every server in each round, in an order that rotates. A figure is the median over the rounds; a
ratio is taken within a round, memory server to reference, and shown as median with its smallest and largest value.
CPU is the server's own, user and system, from /proc/PID/stat, which counts in ticks: short runs are coarse.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ghostbox import processes
from helpers.memserver import built_program, process_cpu_s, program

EXPORT_BYTES = 256 << 20
OURS = "memserver"
REFERENCES = ("nbdkit", "qemu-nbd")


@dataclass(frozen=True)
class Load:
    """What is asked of a server. ``tool`` is ``fio`` (its nbd engine) or ``lean`` (qemu/bench/nbd_load.c)."""

    tool: str
    mode: str
    pattern: str
    request_bytes: int
    depth: int
    connections: int = 1

    @property
    def name(self) -> str:
        """Short name, as ``--only`` matches it."""
        size = f"{self.request_bytes >> 10}k"
        return f"{self.tool} {self.pattern} {self.mode} {size} depth {self.depth} x{self.connections}"


@dataclass(frozen=True)
class Target:
    """A running server."""

    name: str
    pid: int
    port: int


@dataclass(frozen=True)
class Figure:
    """One run of one load against one server."""

    iops: float
    cpu_us_per_request: float


LOADS = (
    *(Load("fio", "read", "random", 4096, depth) for depth in (1, 16, 64)),
    *(Load("fio", "write", "random", 4096, depth) for depth in (1, 16, 64)),
    *(Load("lean", "read", "random", 4096, depth) for depth in (1, 16, 64)),
    *(Load("lean", "write", "random", 4096, depth) for depth in (1, 16, 64)),
    Load("lean", "read", "random", 4096, 16, connections=4),
    Load("lean", "write", "random", 4096, 16, connections=4),
    Load("lean", "read", "sequential", 256 << 10, 8),
    Load("lean", "write", "sequential", 256 << 10, 8),
)


def free_port() -> int:
    """Return a TCP port that was free a moment ago, for servers that cannot pick one."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def is_listening(port: int) -> bool:
    """Tell whether something accepts connections."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def running(name: str, argv: list[str], port: int) -> Iterator[Target]:
    """Run a server until the end of the block, its export ``a`` filled with random bytes."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        processes.wait_until(lambda: is_listening(port), timeout_s=20, what=f"{name} to listen")
        yield Target(name, process.pid, port)
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def all_servers(poll_us: int | None) -> Iterator[list[Target]]:
    """Run the memory server and its references."""
    with contextlib.ExitStack() as stack:
        shm = stack.enter_context(tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="ghostbox-bench-"))
        shm.truncate(EXPORT_BYTES)
        ports = [free_port() for _ in range(3)]
        size = str(EXPORT_BYTES)
        polling = [] if poll_us is None else ["--poll-us", str(poll_us)]
        ours = [program(), "--port", str(ports[0]), "--size", size, "--export", f"a={size}", *polling]
        nbdkit = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(ports[1]), "memory", size]
        qemu = ["qemu-nbd", "-t", "-f", "raw", "-b", "127.0.0.1", "-p", str(ports[2]), "-x", "a", "-e", "64", shm.name]
        argvs = {OURS: ours, "nbdkit": nbdkit, "qemu-nbd": qemu}
        targets = [
            stack.enter_context(running(name, argv, port))
            for (name, argv), port in zip(argvs.items(), ports, strict=True)
        ]
        content = stack.enter_context(tempfile.NamedTemporaryFile(prefix="ghostbox-bench-"))
        content.write(os.urandom(1 << 20) * (EXPORT_BYTES >> 20))
        content.flush()
        for target in targets:
            subprocess.run(["nbdcopy", content.name, f"nbd://127.0.0.1:{target.port}/a"], check=True, timeout=120)
        yield targets


def fio_run(load: Load, target: Target, seconds: int) -> tuple[int, float]:
    """Return requests done and requests a second."""
    rw = {"random": "rand", "sequential": ""}[load.pattern] + load.mode
    argv = ["fio", "--name=bench", "--ioengine=nbd", f"--uri=nbd://127.0.0.1:{target.port}/a", f"--rw={rw}"]
    argv += [f"--bs={load.request_bytes}", f"--iodepth={load.depth}", f"--size={EXPORT_BYTES}"]
    argv += ["--time_based", f"--runtime={seconds}", "--output-format=json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=seconds + 60)
    job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0][load.mode]
    return int(job["total_ios"]), float(job["iops"])


def lean_run(load: Load, target: Target, seconds: int) -> tuple[int, float]:
    """Return requests done and requests a second."""
    words = [f"port={target.port}", "export=a", f"depth={load.depth}", f"bytes={load.request_bytes}"]
    words += [f"mode={load.mode}", f"pattern={load.pattern}", f"connections={load.connections}", f"ms={seconds * 1000}"]
    argv = [built_program("ghostbox-bench-client", "qemu/bench"), "load", *words]
    done = subprocess.run(
        [str(word) for word in argv], capture_output=True, text=True, check=True, timeout=seconds + 60
    )
    result = json.loads(done.stdout)
    return int(result["count"]), float(result["per_s"])


def measure(load: Load, target: Target, seconds: int) -> Figure:
    """Run one load against one server."""
    before_s = process_cpu_s(target.pid)
    requests, iops = (fio_run if load.tool == "fio" else lean_run)(load, target, seconds)
    return Figure(iops, (process_cpu_s(target.pid) - before_s) * 1e6 / max(requests, 1))


def spread(values: list[float]) -> dict[str, float]:
    """Return median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def compare(ours: list[Figure], reference: list[Figure]) -> dict[str, Any]:
    """Return the ratios of one load, taken round by round."""
    pairs = list(zip(ours, reference, strict=True))
    # A tick is the least that can be seen: a run within one is no figure to divide by.
    cpu = [a.cpu_us_per_request / b.cpu_us_per_request for a, b in pairs if b.cpu_us_per_request > 0]
    return {
        "iops": spread([a.iops / b.iops for a, b in pairs]),
        "cpu": spread(cpu) if cpu else None,
    }


def bench(loads: list[Load], *, rounds: int, seconds: int, poll_us: int | None = None) -> list[dict[str, Any]]:
    """Run everything and return one entry a load: figures of each server, ratios to each reference."""
    figures: dict[tuple[Load, str], list[Figure]] = {}
    with all_servers(poll_us) as targets:
        for number in range(rounds):
            for load in loads:
                for target in targets[number % len(targets) :] + targets[: number % len(targets)]:
                    figures.setdefault((load, target.name), []).append(measure(load, target, seconds))
            print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    return [_entry(load, figures) for load in loads]


def _entry(load: Load, figures: dict[tuple[Load, str], list[Figure]]) -> dict[str, Any]:
    servers = {
        name: {
            "iops": spread([figure.iops for figure in figures[load, name]]),
            "cpu_us_per_request": spread([figure.cpu_us_per_request for figure in figures[load, name]]),
        }
        for name in (OURS, *REFERENCES)
    }
    ratios = {name: compare(figures[load, OURS], figures[load, name]) for name in REFERENCES}
    return {"load": load.name, **asdict(load), "servers": servers, "ratios": ratios}


def table(entries: list[dict[str, Any]]) -> str:
    """Return the result for people."""
    lines = [
        f"{'':38} {'memserver':>19}   {'nbdkit':>19}   {'ratio of requests/s':>22}   {'ratio of CPU a request':>22}"
    ]
    for entry in entries:
        cells = [
            f"{entry['servers'][name]['iops']['median']:9.0f}/s"
            f" {entry['servers'][name]['cpu_us_per_request']['median']:5.2f} µs"
            for name in (OURS, "nbdkit")
        ]
        for kind in ("iops", "cpu"):
            ratio = entry["ratios"]["nbdkit"][kind]
            cells.append(f"{ratio['median']:5.2f} ({ratio['min']:.2f}–{ratio['max']:.2f})" if ratio else "-")
        lines.append(f"{entry['load']:38} {cells[0]:>19}   {cells[1]:>19}   {cells[2]:>22}   {cells[3]:>22}")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--only", default="", metavar="REGEX", help="loads whose name matches")
    parser.add_argument("--poll-us", type=int, help="the memory server's --poll-us")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    options = parser.parse_args()
    loads = [load for load in LOADS if re.search(options.only, load.name)]
    entries = bench(loads, rounds=options.rounds, seconds=options.seconds, poll_us=options.poll_us)
    print(table(entries))
    if options.json:
        options.json.write_text(json.dumps(entries, indent=1))


if __name__ == "__main__":
    main()
