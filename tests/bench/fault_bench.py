# SPDX-License-Identifier: MIT
"""Measure cold faults through shim, pager and memory server, beside a mapped file of nbdfuse (donor: nbdkit memory).

    PYTHONPATH=.:tests python tests/bench/fault_bench.py [--rounds 5] [--count 4000] [--size 64M] [--json FILE]

Both hold the same bytes, and the same program reads them: one page after the other in random order (each page once,
with the time of each access), then all of it in order. The two alternate within a round; a ratio is taken within a
round and shown as median with its smallest and largest value. Every measurement begins cold: the pager's cache is
emptied and then given room for everything, and nbdfuse is mounted anew, so that no page of its file is cached.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostbox.system import processes
from ghostbox.units import parse_bytes
from helpers.pager import (
    MemoryClient,
    RunningPager,
    installed_build,
    memory_client,
    nbdkit_memory,
    running_memserver,
    running_pager,
    short_dir,
)

OURS, REFERENCE = "ghostbox", "nbdfuse"
COLD_BYTES = 1 << 20


@dataclass(frozen=True)
class Metric:
    """Describe a figure of a round; ``scale`` converts it to ``unit``."""

    name: str
    command: str
    field: str
    scale: float
    unit: str


METRICS = (
    Metric("random 4 KiB fault, p50", "random-read", "p50_ns", 1e-3, "us"),
    Metric("random 4 KiB fault, p99", "random-read", "p99_ns", 1e-3, "us"),
    Metric("random 4 KiB fault, mean", "random-read", "mean_ns", 1e-3, "us"),
    Metric("sequential read", "seq-read", "bytes_per_s", 1e-6, "MB/s"),
)
Round = dict[str, float]


def read_at_random(client: MemoryClient, pages: int, count: int, seed: int) -> dict[str, Any]:
    """Read pages at random, but not the end of the memory, of which some may be in the cache."""
    cold = pages - pages // 32
    return client.command("random-read", n=cold, count=min(count, cold), seed=seed, timeout_s=300)


def figures(*answers: dict[str, Any]) -> Round:
    """Pick the metrics from the client's answers."""
    by_command = {answer["command"]: answer for answer in answers}
    return {metric.name: by_command[metric.command][metric.field] * metric.scale for metric in METRICS}


def make_cold(pager: RunningPager, size_bytes: int) -> None:
    """Push all but 1 MiB out to the donor, then give the cache room for everything, as nbdfuse's file has."""
    pager.command("set-cache", cache_bytes=COLD_BYTES)
    processes.wait_until(lambda: pager.resident_bytes() <= COLD_BYTES, timeout_s=60, what="all pages on the donor")
    pager.command("set-cache", cache_bytes=2 * size_bytes)


def measure_ours(pager: RunningPager, client: MemoryClient, size_bytes: int, count: int, seed: int) -> Round:
    """Return GhostBox's figures of one round; both parts begin cold."""
    make_cold(pager, size_bytes)
    random = read_at_random(client, size_bytes // 4096, count, seed)
    make_cold(pager, size_bytes)
    return figures(random, client.command("seq-read", timeout_s=300))


@contextlib.contextmanager
def ghostbox_memory(size_bytes: int, options: dict[str, Any]) -> Iterator[tuple[RunningPager, MemoryClient]]:
    """Yield filled memory, most of which the memory server holds."""
    cache = max(size_bytes // 64, 1 << 20)
    with (
        running_memserver(size=str(size_bytes), m=str(size_bytes)) as donor,
        running_pager([donor.uri("m")], cache=str(cache), **options) as pager,
        memory_client(str(size_bytes), pager) as client,
    ):
        client.command("fill", seed=1, timeout_s=300)
        yield pager, client


@contextlib.contextmanager
def nbdfuse_file(uri: str) -> Iterator[Path]:
    """Mount an export as a file."""
    with short_dir() as place:
        mount, pid_file = place / "m", place / "pid"
        mount.mkdir()
        process = subprocess.Popen(["nbdfuse", "-P", str(pid_file), str(mount / "nbd"), uri])
        try:
            processes.wait_until(
                lambda: pid_file.exists() or process.poll() is not None, timeout_s=30, what="mount by nbdfuse"
            )
            if process.poll() is not None:
                raise RuntimeError(f"nbdfuse ended with status {process.returncode}")
            yield mount / "nbd"
        finally:
            subprocess.run(["fusermount3", "-u", str(mount)], check=False)
            process.terminate()
            process.wait(10)


@contextlib.contextmanager
def file_client(path: Path, size_bytes: int) -> Iterator[MemoryClient]:
    """Yield the same program on a file, without the shim."""
    process = subprocess.Popen(
        [str(installed_build().client), "--bytes", str(size_bytes), "--file", str(path), "hold"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    client = MemoryClient(process)
    try:
        client.result("hold", timeout_s=30)
        yield client
    finally:
        client.kill()


def measure_reference(uri: str, size_bytes: int, count: int, seed: int) -> Round:
    """Return nbdfuse's figures of one round, with a mount for each part."""
    with nbdfuse_file(uri) as path, file_client(path, size_bytes) as client:
        random = read_at_random(client, size_bytes // 4096, count, seed)
    with nbdfuse_file(uri) as path, file_client(path, size_bytes) as client:
        return figures(random, client.command("seq-read", timeout_s=300))


def fill_export(uri: str, size_bytes: int) -> None:
    """Put bytes that are not zero into every page."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as image:
        block = os.urandom(1 << 20)
        for _ in range(size_bytes >> 20):
            image.write(block)
        image.flush()
        subprocess.run(["nbdcopy", image.name, uri], check=True, timeout=120)


def run_rounds(size_bytes: int, count: int, rounds: int, options: dict[str, str]) -> dict[str, list[Round]]:
    """Measure GhostBox and nbdfuse by turns; rounds alternate which of them is first."""
    results: dict[str, list[Round]] = {OURS: [], REFERENCE: []}
    with nbdkit_memory(str(size_bytes)) as uri, ghostbox_memory(size_bytes, options) as (pager, client):
        fill_export(uri, size_bytes)
        runs: dict[str, Callable[[int], Round]] = {
            OURS: lambda seed: measure_ours(pager, client, size_bytes, count, seed),
            REFERENCE: lambda seed: measure_reference(uri, size_bytes, count, seed),
        }
        for number in range(rounds):
            for name in sorted(runs, reverse=number % 2 == 1):
                results[name].append(runs[name](number + 1))
    return results


def spread(values: list[float]) -> dict[str, float]:
    """Return median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(results: dict[str, list[Round]]) -> list[dict[str, Any]]:
    """Return an entry for each metric: both figures and their ratio."""
    entries = []
    for metric in METRICS:
        ours, reference = ([one[metric.name] for one in results[name]] for name in (OURS, REFERENCE))
        ratios = [a / b for a, b in zip(ours, reference, strict=True)]
        both = {OURS: spread(ours), REFERENCE: spread(reference)}
        entries.append({"metric": metric.name, "unit": metric.unit, **both, "ratio": spread(ratios)})
    return entries


def print_table(entries: list[dict[str, Any]]) -> None:
    """Print the summary as a table."""
    print(f"{'':28}{OURS:>12}{REFERENCE:>12}   ratio (min to max)")
    for entry in entries:
        ratio = entry["ratio"]
        print(
            f"{entry['metric']:28}{entry[OURS]['median']:>12.1f}{entry[REFERENCE]['median']:>12.1f} {entry['unit']:5}"
            f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        )


def main() -> None:
    """Run the rounds that the command line asks for, and print the summary."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=4000, help="random faults a round")
    parser.add_argument("--size", default="64M", help="memory, a power of two from 64M on is best")
    parser.add_argument("--poll-us", help="passed to the pager")
    parser.add_argument("--readahead", help="passed to the pager")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    args = parser.parse_args()
    given = {"poll_us": args.poll_us, "readahead": args.readahead}
    options = {key: str(value) for key, value in given.items() if value is not None}
    entries = summarise(run_rounds(parse_bytes(args.size), args.count, args.rounds, options))
    print_table(entries)
    if args.json:
        args.json.write_text(json.dumps(entries, indent=2) + "\n")


if __name__ == "__main__":
    main()
