# SPDX-License-Identifier: MIT
"""Measure cold memory: random faults, sequential reads, several threads."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ghostbox.bench.lab import Lab, Server, missing_tool
from ghostbox.bench.model import Buckets, Contender, Outcome, RowSpec, Scenario, Source, at_least, at_most
from ghostbox.system import processes
from ghostbox.units import MIB, PAGE_BYTES

THREADS = (1, 2, 4, 8)
NBDCOPY_NOTE = "nbdcopy from the same memserver to null:"
_MEMSERVER_POLL_US = 100  # the default of ghostbox-memserver's --poll-us
_COPY_TIMEOUT_S = 120.0
_READ_AROUND = "nbdfuse, no advice"
# With so few touches, none falls into the 32 pages that the kernel reads around another touch.
_SPARSE = 20


def scenarios(lab: Lab) -> list[Scenario]:
    """Return the scenarios on cold memory."""
    return [_random(lab), _sequential(lab), _threads(lab)]


def latency(result: dict[str, Any]) -> Outcome:
    """Return a client's latency as figures and histogram."""
    found = result["latency"]
    figures = {key: float(found[key]) for key in ("p50_us", "p99_us", "p999_us", "mean_us")}
    figures["per_s"] = float(result.get("per_s", 0.0))
    return Outcome(figures, [(float(upper), int(count)) for upper, count in found["buckets"]])


def nbdfuse_contender(lab: Lab, command: str, words: Mapping[str, object], name: str = "nbdfuse") -> Contender:
    """Return the client on an nbdfuse file mapped shared, served by nbdkit: what a user could do without GhostBox."""

    def run() -> Outcome:
        with lab.nbdfuse(lab.fuse_donor()) as path:
            return _outcome(lab.client(command, {"memory": "file", "path": path, **words}))

    return Contender(name, run, lab.fuse_missing())


def _outcome(result: dict[str, Any]) -> Outcome:
    if "latency" in result:
        return latency(result)
    return Outcome({key: float(value) for key, value in result.items()})


def _cold_cache_bytes(lab: Lab) -> int:
    """Return the size of a cache in which nothing that a run touches is evicted."""
    return lab.scale.n_faults * PAGE_BYTES * 2 + 32 * MIB


def cold_random(lab: Lab, server: Server | None = None) -> Outcome:
    """Touch pages in random order, each for the first time; return the latency of a touch."""
    with lab.pager(server or lab.donor(), _cold_cache_bytes(lab)) as running:
        return latency(lab.client("random", _random_words(lab), running))


def _random_words(lab: Lab) -> dict[str, object]:
    return {"bytes": lab.scale.data_bytes, "count": lab.scale.n_faults}


def _random(lab: Lab) -> Scenario:
    words = _random_words(lab)
    sparse = {**words, "count": lab.scale.n_faults // _SPARSE}

    contenders = (
        Contender("pager", lambda: cold_random(lab), ours=True),
        Contender("floor", lambda: floor(lab)),
        nbdfuse_contender(lab, "random", {**words, "advise_random": 1}),
        nbdfuse_contender(lab, "random", sparse, _READ_AROUND),
    )
    wire = "an NBD read of 4 KiB over the link" if lab.donors else "TCP ping-pong"
    at_least_needed = f"{wire} plus an empty userfaultfd round trip"
    fuse = "file of nbdfuse mapped shared, with MADV_RANDOM: at its best, each touch is one read of 4 KiB"
    around = "the same as a program maps it that knows nothing (QEMU): the kernel reads around each touch"
    p50, p99 = Source("pager", "p50_us"), Source("pager", "p99_us")
    rows = (
        RowSpec("cold random fault, p50", "µs", p50, (Source("floor", "p50_us"),), at_most(1.2), at_least_needed),
        RowSpec("cold random fault, p99", "µs", p99, (Source("floor", "p99_us"),), at_most(2.0), at_least_needed),
        RowSpec("cold random fault, p50", "µs", p50, (Source("nbdfuse", "p50_us"),), at_most(0.6), fuse),
        RowSpec("cold random fault, p50", "µs", p50, (Source(_READ_AROUND, "p50_us"),), at_most(0.6), around),
    )
    return Scenario("faults", "cold random 4 KiB faults, 1 thread", contenders, rows, takes_memory=True)


def floor(lab: Lab) -> Outcome:
    """Measure a request of 4 KiB over the network, and an empty round trip of a userfaultfd; return their sum."""
    count = lab.scale.n_floor
    fault = lab.client("userfault", {"count": count, "poll_us": lab.poll_us})
    if lab.donors:
        ping = lab.load(lab.donor(), {"ms": lab.scale.load_ms, "poll_us": lab.poll_us})
        ping_us = _drawn(ping["latency"]["buckets"], count)
    else:
        words = {"count": count, "client_us": lab.poll_us, "server_us": _MEMSERVER_POLL_US}
        ping = lab.client_and_peer("ping-pong", words)
        ping_us = np.asarray(ping["ns"]) / 1000.0
    shuffled = np.random.default_rng(1).permutation(np.asarray(fault["ns"]))
    total_us = ping_us + shuffled / 1000.0
    figures = {
        "p50_us": float(np.quantile(total_us, 0.5)),
        "p99_us": float(np.quantile(total_us, 0.99)),
        "p999_us": float(np.quantile(total_us, 0.999)),
        "mean_us": float(total_us.mean()),
        "ping_pong_p50_us": float(ping["latency"]["p50_us"]),
        "userfault_p50_us": float(fault["latency"]["p50_us"]),
    }
    return Outcome(figures, _buckets(total_us))


def _drawn(buckets: Buckets, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return ``count`` values with a histogram's distribution, in ascending order."""
    uppers, counts = np.array(buckets, dtype=np.float64).T
    places = (np.arange(count) + 0.5) / count * counts.sum()
    found: np.ndarray[Any, np.dtype[np.float64]] = uppers[np.searchsorted(np.cumsum(counts), places)]
    return found


def _buckets(values_us: np.ndarray[Any, np.dtype[np.float64]]) -> Buckets:
    """Return a histogram with 16 buckets a power of two, like those of the C programs."""
    uppers = 2.0 ** (np.ceil(np.log2(values_us) * 16) / 16)
    found, counts = np.unique(np.round(uppers, 3), return_counts=True)
    return [(float(upper), int(count)) for upper, count in zip(found, counts, strict=True)]


def cold_sequential(lab: Lab, server: Server | None = None) -> Outcome:
    """Touch all pages in order, each for the first time."""
    size = lab.scale.data_bytes
    with lab.pager(server or lab.donor(), size + 64 * MIB) as running:
        return _outcome(lab.client("sequential", {"bytes": size}, running))


def nbdcopy(lab: Lab) -> Outcome:
    """Copy the same export to null."""
    uri = lab.donor().uri
    began = time.monotonic()
    processes.run([*lab.prefix(), "nbdcopy", uri, "null:"], timeout_s=_COPY_TIMEOUT_S)
    return Outcome({"bytes_per_s": lab.scale.data_bytes / (time.monotonic() - began)})


def _sequential(lab: Lab) -> Scenario:
    contenders = (
        Contender("pager", lambda: cold_sequential(lab), ours=True),
        Contender("nbdcopy", lambda: nbdcopy(lab), lab.single_missing("nbdcopy") or missing_tool("nbdcopy")),
        nbdfuse_contender(lab, "sequential", {"bytes": lab.scale.data_bytes}),
    )
    rate = Source("pager", "bytes_per_s")
    rows = (
        RowSpec("cold sequential read", "B/s", rate, (Source("nbdcopy", "bytes_per_s"),), at_least(0.8), NBDCOPY_NOTE),
        RowSpec("cold sequential read", "B/s", rate, (Source("nbdfuse", "bytes_per_s"),), at_least(2.0)),
    )
    return Scenario("sequential", "cold sequential read, 1 thread", contenders, rows, takes_memory=True)


def _threads(lab: Lab) -> Scenario:
    def contender(n_threads: int) -> Contender:
        def run() -> Outcome:
            with lab.pager(lab.donor(), _cold_cache_bytes(lab)) as running:
                words = {"bytes": lab.scale.data_bytes, "count": lab.scale.n_faults, "threads": n_threads}
                return latency(lab.client("random", words, running))

        return Contender(_threads_name(n_threads), run, ours=True)

    free = (os.cpu_count() or 1) >= 4
    base = (Source(_threads_name(1), "per_s"),)
    rows = tuple(
        RowSpec(
            f"random faults/s, {n} threads",
            "/s",
            Source(_threads_name(n), "per_s"),
            base,
            at_least(1.5 if n == 4 and free else 1.0),
            "" if n != 4 or free else "≥ 1.5 × where two CPUs are free beside the server and the pager",
        )
        for n in THREADS[1:]
    )
    return Scenario(
        "threads", "random faults by several threads", tuple(map(contender, THREADS)), rows, takes_memory=True
    )


def _threads_name(n_threads: int) -> str:
    return f"{n_threads} thread{'s' if n_threads > 1 else ''}"
