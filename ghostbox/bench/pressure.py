# SPDX-License-Identifier: MIT
"""Measure memory that exceeds the cache: the steady state, a scanner beside it, write-back."""

from __future__ import annotations

from concurrent import futures
from pathlib import Path

from ghostbox.bench import cgroup
from ghostbox.bench.lab import Lab, Pager
from ghostbox.bench.model import Contender, Outcome, RowSpec, Scenario, Source, at_least, at_most
from ghostbox.system import processes
from ghostbox.units import KIB, MIB, PAGE_BYTES

WRITES_NOTE = "each page is also fetched before it is written to"
CACHE_PERCENTS = (75, 50, 25, 10)
# The client's memory beside the array: the drawn sequence and its code. The reference gets it in addition.
_CLIENT_BYTES = 12 * MIB
_WARM_TIMEOUT_S = 120.0


def scenarios(lab: Lab) -> list[Scenario]:
    """Return the scenarios with eviction."""
    return [*(_overcommit(lab, percent) for percent in CACHE_PERCENTS), _traffic(lab), _mixed(lab), _writes(lab)]


def _zipf_words(lab: Lab) -> dict[str, object]:
    return {"bytes": lab.scale.array_bytes, "ms": lab.scale.run_ms, "warm_ms": lab.scale.warm_ms}


def _cache_bytes(lab: Lab, percent: int) -> int:
    return lab.scale.array_bytes * percent // 100 // PAGE_BYTES * PAGE_BYTES


def _zipf(lab: Lab, percent: int, *options: str, **words: object) -> Outcome:
    with (
        lab.pager(lab.donor(), _cache_bytes(lab, percent), *options) as running,
        futures.ThreadPoolExecutor(max_workers=1) as aside,
    ):
        mark = lab.directory / "warm"
        mark.unlink(missing_ok=True)
        before = aside.submit(_network_bytes_at, mark, running)
        try:
            result = lab.client("zipf", {**_zipf_words(lab), **words, "mark": mark}, running)
        finally:
            mark.touch()  # after a failed client, the other thread must not wait
        moved = sum(running.network_bytes()) - before.result()
        figures = {key: float(value) for key, value in result.items()}
        return Outcome({**figures, "bytes_per_step": moved / figures["count"]})


def _network_bytes_at(mark: Path, pager: Pager) -> int:
    """Wait until the client has warmed up; return the bytes that went over the network so far."""
    processes.wait_until(mark.exists, timeout_s=_WARM_TIMEOUT_S, what="the client to warm up", interval_s=0.002)
    return sum(pager.network_bytes())


def _overcommit(lab: Lab, percent: int) -> Scenario:
    def local() -> Outcome:
        result = lab.client("zipf", {**_zipf_words(lab), "memory": "local"})
        return Outcome({key: float(value) for key, value in result.items()})

    def nbdfuse() -> Outcome:
        limit = _cache_bytes(lab, percent) + _CLIENT_BYTES
        with lab.nbdfuse(lab.fuse_donor()) as path, cgroup.memory_limited(limit) as group:
            result = lab.client("zipf", {**_zipf_words(lab), "memory": "file", "path": path, "cgroup": group})
        return Outcome({key: float(value) for key, value in result.items()})

    contenders = (
        Contender("pager", lambda: _zipf(lab, percent), ours=True),
        Contender("local", local),
        Contender("nbdfuse", nbdfuse, lab.fuse_missing() or cgroup.missing()),
    )
    what = f"Zipf 0.9, 10 % writes, cache {percent} %"
    rate = Source("pager", "per_s")
    target = at_least(3.0) if percent == 50 else None
    rows = (
        RowSpec(what, "/s", rate, (Source("local", "per_s"),), None, "all of it in local memory"),
        RowSpec(what, "/s", rate, (Source("nbdfuse", "per_s"),), target, "nbdfuse in a cgroup with the same limit"),
    )
    return Scenario(
        f"overcommit/{percent}",
        f"steady overcommit, cache {percent} % of the array",
        contenders,
        rows,
        takes_memory=True,
    )


def _traffic(lab: Lab) -> Scenario:
    contenders = (
        Contender("pager", lambda: _zipf(lab, 50), ours=True),
        Contender("fifo", lambda: _zipf(lab, 50, "--fifo")),
    )
    figure = "bytes_per_step"
    rows = (
        RowSpec(
            "network bytes a step, Zipf 0.9, cache 50 %",
            "B",
            Source("pager", figure),
            (Source("fifo", figure),),
            at_most(0.7),
            "the same pager without second chance (--fifo)",
        ),
    )
    return Scenario("traffic", "network bytes beside FIFO", contenders, rows, takes_memory=True)


def _mixed(lab: Lab) -> Scenario:
    array = lab.scale.array_bytes
    words = {"bytes": min(array * 4, lab.scale.data_bytes), "array": array}
    contenders = (
        Contender("beside a scanner", lambda: _zipf(lab, 50, **words, scan=1), ours=True),
        Contender("alone", lambda: _zipf(lab, 50, **words, scan=0), ours=True),
    )
    rows = (
        RowSpec(
            "Zipf 0.9 beside a sequential scanner",
            "/s",
            Source("beside a scanner", "per_s"),
            (Source("alone", "per_s"),),
            at_least(0.8),
        ),
    )
    return Scenario("mixed", "a scanner beside the Zipf reader", contenders, rows, takes_memory=True)


def write_back(lab: Lab) -> Outcome:
    """Write to random pages of 4 × the cache."""
    cache = lab.scale.write_cache_bytes
    words = {"bytes": cache * 4, "count": cache * 8 // PAGE_BYTES, "threads": 2}
    with lab.pager(lab.donor(), cache) as running:
        result = lab.client("write", words, running)
        read_bytes, written_bytes = running.network_bytes()
    seconds = float(result["seconds"])
    rates = {"written_bytes_per_s": written_bytes / seconds, "read_bytes_per_s": read_bytes / seconds}
    return Outcome({**rates, "per_s": float(result["per_s"]), "seconds": seconds})


def _writes(lab: Lab) -> Scenario:
    def wire() -> Outcome:
        if lab.donors:
            bulk = {"mode": "write", "pattern": "sequential", "bytes": 256 * KIB, "depth": 8}
            return Outcome(
                {"bytes_per_s": float(lab.load(lab.donor(), {**bulk, "ms": lab.scale.run_ms})["bytes_per_s"])}
            )
        return Outcome({"bytes_per_s": float(lab.client("wire", {"ms": lab.scale.run_ms})["bytes_per_s"])})

    raw = "writes of 256 KiB over the link (to the first donor)" if lab.donors else "raw TCP over loopback"
    rows = (
        RowSpec(
            "dirty bytes written back, random writes over 4 × the cache",
            "B/s",
            Source("pager", "written_bytes_per_s"),
            (Source("wire", "bytes_per_s"),),
            at_least(0.6),
            f"{raw}; {WRITES_NOTE}",
        ),
    )
    return Scenario(
        "writes",
        "write-heavy eviction",
        (Contender("pager", lambda: write_back(lab), ours=True), Contender("wire", wire)),
        rows,
        takes_memory=True,
    )
