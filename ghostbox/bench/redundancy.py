# SPDX-License-Identifier: MIT
"""Measure the cost of writing pages back so that a lost donor is survived: a second copy, or XOR parity.

The requests are measured alone (qemu/bench/redundancy.c has the layout of pages on the servers), and the pager with one
copy and with two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ghostbox.bench.lab import EXPORT, Lab, Server, cpu_s
from ghostbox.bench.model import Contender, Outcome, RowSpec, Scenario, Source
from ghostbox.units import PAGE_BYTES

_N_SERVERS = 4
# The pager's evict thread has this many buffers, one for each page without a neighbour (STAGES in
# qemu/pager/evict/evict.h).
_DEPTH = 32
_ONE = "one copy"
_REQUESTS = "the requests alone"
_BYTES_NOTE = "NBD requests and replies, both directions"


@dataclass(frozen=True)
class Way:
    """Is a way to write pages back: ``mode`` and ``k`` are those of ``ghostbox-bench-client redundancy``."""

    name: str
    mode: str
    k: int
    note: str = ""


_IN_PLACE = "read page and parity as they are, write both"
_WHOLE = "stripes that leave as a whole: nothing is read"
WAYS = (
    Way("two copies", "copies", 2),
    Way("parity 2+1 in place", "parity", 2, _IN_PLACE),
    Way("parity 3+1 in place", "parity", 3, _IN_PLACE),
    Way("parity 2+1 of whole stripes", "stripes", 2, _WHOLE),
    Way("parity 3+1 of whole stripes", "stripes", 3, _WHOLE),
)


def scenarios(lab: Lab) -> list[Scenario]:
    """Return the scenario of the requests alone, and the pager's."""
    return [_requests(lab), _pagers(lab)]


def _requests(lab: Lab) -> Scenario:
    contenders = tuple(
        Contender(way.name, lambda way=way: _measure(lab, way), ours=True)  # type: ignore[misc]
        for way in (Way(_ONE, "copies", 1), *WAYS)
    )
    rows = tuple(
        row for way in WAYS for row in _rows(way.name, way.name, "; ".join(filter(None, (_REQUESTS, way.note))))
    )
    return Scenario("redundancy/requests", "write-back with redundancy, requests alone", contenders, rows)


def _rows(what: str, subject: str, note: str) -> list[RowSpec]:
    title = f"a page written back, {what}"
    return [
        RowSpec(title, "µs", Source(subject, "us"), (Source(_ONE, "us"),), None, note),
        RowSpec(
            f"{title}: CPU, host and donors", "µs", Source(subject, "cpu_us"), (Source(_ONE, "cpu_us"),), None, note
        ),
        RowSpec(f"{title}: bytes", "B", Source(subject, "bytes"), (Source(_ONE, "bytes"),), None, _BYTES_NOTE),
    ]


@contextlib.contextmanager
def _servers(lab: Lab) -> Iterator[tuple[Server, ...]]:
    with contextlib.ExitStack() as stack:
        yield tuple(stack.enter_context(lab.memserver(lab.scale.array_bytes)) for _ in range(_N_SERVERS))


def _kept_servers(lab: Lab) -> tuple[Server, ...]:
    return lab.kept("redundancy", lambda: _servers(lab))


def _measure(lab: Lab, way: Way) -> Outcome:
    """Fill all places, so that none is a hole and each stripe has its parity; then write at random."""
    servers = _kept_servers(lab)
    ports = ",".join(str(server.port) for server in servers)
    words = {"ports": ports, "export": EXPORT, "k": way.k}
    fill = {**words, "depth": 128, "pattern": "sequential", "count": lab.scale.array_bytes // PAGE_BYTES}
    lab.client("redundancy", {**fill, "mode": "copies", "k": _N_SERVERS})
    if way.mode == "parity":
        lab.client("redundancy", {**fill, "mode": "stripes"})
    before_s = _cpu_s(servers)
    result = lab.client("redundancy", {**words, "mode": way.mode, "depth": _DEPTH, "ms": lab.scale.load_ms})
    servers_s = _cpu_s(servers) - before_s
    n_pages, client_s = int(result["pages"]), float(result["cpu_s"])
    return Outcome(
        {
            "us": float(result["seconds"]) * 1e6 / n_pages,
            "cpu_us": (client_s + servers_s) * 1e6 / n_pages,
            "client_cpu_us": client_s * 1e6 / n_pages,
            "servers_cpu_us": servers_s * 1e6 / n_pages,
            "bytes": (result["sent_bytes"] + result["received_bytes"]) / n_pages,
            "sent_bytes": result["sent_bytes"] / n_pages,
            "p99_us": float(result["latency"]["p99_us"]),
        }
    )


def _cpu_s(servers: tuple[Server, ...]) -> float:
    return sum(cpu_s(server.pid) for server in servers)


def _pagers(lab: Lab) -> Scenario:
    names = {_ONE: 1, "two copies": 2}
    contenders = tuple(
        Contender(name, lambda n=n: _pager(lab, n), ours=True)  # type: ignore[misc]
        for name, n in names.items()
    )
    note = "random writes over 4 × the cache; each page is also fetched before it is written to"
    rows = tuple(_rows("two copies, by the pager", "two copies", note))
    return Scenario("redundancy/pager", "write-back with redundancy, by the pager", contenders, rows, takes_memory=True)


def _pager(lab: Lab, n_copies: int) -> Outcome:
    servers = _kept_servers(lab)
    cache = lab.scale.array_bytes // 4
    options = ("--contents", "fresh", "--replicas", str(n_copies), "--allow-same-host")
    before_s = _cpu_s(servers)
    with lab.pager(replace(servers[0], others=servers[1:]), cache, *options) as running:
        result = lab.client("write", {"bytes": cache * 4, "count": cache * 8 // PAGE_BYTES, "threads": 2}, running)
        used_s = cpu_s(running.pid) + _cpu_s(servers) - before_s
        n_pages = running.status().evictions.dirty
        moved_bytes = sum(running.network_bytes())
    return Outcome(
        {
            "us": float(result["seconds"]) * 1e6 / n_pages,
            "cpu_us": used_s * 1e6 / n_pages,
            "bytes": moved_bytes / n_pages,
        }
    )
