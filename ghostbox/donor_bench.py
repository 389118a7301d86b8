# SPDX-License-Identifier: MIT
"""Measures the link to a donor, over a short lease of its own, and keeps what was found for predictions.

The C program does the measuring (qemu/bench/nbd_load.c); it waits as the pager would. Kept is one file a donor, and one
for this host, in the state directory: a later measurement replaces an earlier one.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from ghostbox import donors, processes
from ghostbox.donor_client import DonorClient, DonorStatus, Holder, Lease, host_name, parse_address
from ghostbox.donors import Assignment
from ghostbox.errors import DonorError, DonorTooSmall, GhostboxError, ProgramError
from ghostbox.paths import Paths, make_directory
from ghostbox.prediction import HostCosts, Link
from ghostbox.units import KIB, MIB, PAGE_BYTES, format_bytes

LEASE_BYTES = 64 * MIB
_LEASE_MIN_BYTES = 1 * MIB
_REQUEST_BYTES = 256 * KIB
_DEPTH = 8
_POLL_MAX_US = 10_000  # SPIN_MAX_US of qemu/bench/bench.h
_HOST_FILE = "host.json"
_TIMEOUT_S = 120.0

Say = Callable[[str], None]
T = TypeVar("T", Link, HostCosts)


@dataclass(frozen=True)
class Duration:
    """How long each figure is measured."""

    bandwidth_ms: int = 500
    round_trip_ms: int = 1000
    n_faults: int = 5000


@dataclass(frozen=True)
class Measured:
    """One donor's link, or why there is none."""

    address: str
    name: str | None
    link: Link | None
    error: GhostboxError | None


def measure(
    addresses: Sequence[str], paths: Paths, *, poll_us: int, say: Say, duration: Duration | None = None
) -> list[Measured]:
    """Measure the links to donors, one after the other, and keep the results; one that fails is part of the result.

    Args:
        addresses: ``host[:port]`` of the donors' control APIs.
        paths: where the program is and where results are kept.
        poll_us: how long the pager polls before it sleeps.
        say: told what is being measured.
        duration: how long.
    """
    found = []
    for address in addresses:
        try:
            name, link = _measure_link(address, paths, poll_us, say, duration or Duration())
        except GhostboxError as err:
            found.append(Measured(address, None, None, err))
        else:
            _keep(paths, _link_file(address), link)
            found.append(Measured(address, name, link, None))
    return found


def measure_host(paths: Paths, *, poll_us: int, say: Say, duration: Duration | None = None) -> HostCosts:
    """Measure this host's part of a fault, and keep it.

    Raises:
        ProgramError: no userfaultfd can be had, or the program is not installed.
    """
    say("this host")
    times = duration or Duration()
    fault = client(paths, "userfault", {"count": times.n_faults, "poll_us": min(poll_us, _POLL_MAX_US)})
    words = {"memory": "local", "bytes": 128 * MIB, "ms": times.bandwidth_ms, "warm_ms": times.bandwidth_ms // 4}
    steps = client(paths, "zipf", words)
    latency = fault["latency"]
    costs = HostCosts(_now(), float(latency["p50_us"]), float(latency["mean_us"]), 1e6 / float(steps["per_s"]))
    _keep(paths, _HOST_FILE, costs)
    return costs


def kept_links(addresses: Sequence[str], paths: Paths) -> dict[str, Link]:
    """Return the links that were measured before, by the addresses as given."""
    found = {address: _load(paths, _link_file(address), Link) for address in addresses}
    return {address: link for address, link in found.items() if link is not None}


def kept_host(paths: Paths) -> HostCosts | None:
    """Return this host's part, if it was measured before."""
    return _load(paths, _HOST_FILE, HostCosts)


def resolve(word: str, configured: Sequence[str]) -> str:
    """Return the address that ``word`` means: the name of a configured donor, or an address as it stands."""
    if word in configured:
        return word
    for item in donors.survey(configured):
        if item.status is not None and item.status.name == word:
            return item.address
    return word


def client(paths: Paths, command: str, words: Mapping[str, object]) -> dict[str, Any]:
    """Run one command of ``ghostbox-bench-client`` and return its result."""
    argv: list[str | Path] = [
        paths.program("ghostbox-bench-client"),
        command,
        *(f"{key}={value}" for key, value in words.items()),
    ]
    return dict(json.loads(processes.run(argv, timeout_s=_TIMEOUT_S)))


@contextlib.contextmanager
def leased(sizes: Mapping[str, int], purpose: str) -> Iterator[list[Lease]]:
    """Hold a lease on each donor until the end of the block, however it ends.

    Args:
        sizes: bytes to lease, by address.
        purpose: what the donor's owner sees as the holder's VM.
    """
    host = host_name()
    tag = secrets.token_hex(4)
    wanted = [
        Assignment(address, f"{purpose}-{tag}-{number}", size, Holder(host, purpose))
        for number, (address, size) in enumerate(sizes.items())
    ]
    leases = donors.acquire(wanted)
    try:
        yield leases
    finally:
        donors.release(leases, force=True)


def _measure_link(address: str, paths: Paths, poll_us: int, say: Say, duration: Duration) -> tuple[str, Link]:
    say(f"{address}: asking for a lease")
    with DonorClient(address) as control:
        status = control.status()
    with leased({address: _lease_bytes(address, status)}, "donor-bench") as (lease,):
        return status.name, _measure_lease(address, lease, paths, poll_us, say, duration)


def _lease_bytes(address: str, status: DonorStatus) -> int:
    size = min(LEASE_BYTES, status.free_bytes // _REQUEST_BYTES * _REQUEST_BYTES)
    if size < _LEASE_MIN_BYTES and not status.draining:
        raise DonorTooSmall(
            f"donor {address}: has {format_bytes(status.free_bytes)} free,"
            f" a measurement needs {format_bytes(_LEASE_MIN_BYTES)}",
            why=f"it lends {format_bytes(status.exported_bytes)} of {format_bytes(status.size_bytes)}"
            f" in {status.leases} leases",
            hint=f"measure before `ghostbox up`; who holds its memory: ghostbox donor leases {address};"
            " how it does for a VM that runs: ghostbox top",
        )
    return max(size, _LEASE_MIN_BYTES)  # one that is draining says so itself


def _measure_lease(address: str, lease: Lease, paths: Paths, poll_us: int, say: Say, duration: Duration) -> Link:
    words: dict[str, object] = {"host": parse_address(address).host, "port": lease.nbd_port, "export": lease.export}

    def load(**more: object) -> dict[str, Any]:
        try:
            return client(paths, "load", {**words, "poll_us": min(poll_us, _POLL_MAX_US), **more})
        except ProgramError as err:
            raise _unserved(address, lease, err) from err

    bulk = {"pattern": "sequential", "bytes": _REQUEST_BYTES, "depth": _DEPTH, "ms": duration.bandwidth_ms}
    say(f"{address}: writes of 256 KiB")
    writes = load(mode="write", **bulk)
    # Only what was written is read: a hole is answered without its bytes.
    span = min(lease.size_bytes, int(writes["count"]) * _REQUEST_BYTES)
    say(f"{address}: reads of 256 KiB")
    reads = load(mode="read", span=span, **bulk)
    say(f"{address}: round trips of 4 KiB")
    trips = load(mode="read", span=span, bytes=PAGE_BYTES, depth=1, ms=duration.round_trip_ms)["latency"]
    return Link(
        address=str(parse_address(address)),
        measured_at=_now(),
        rtt_p50_us=float(trips["p50_us"]),
        rtt_p99_us=float(trips["p99_us"]),
        rtt_mean_us=float(trips["mean_us"]),
        read_bytes_per_s=float(reads["bytes_per_s"]),
        write_bytes_per_s=float(writes["bytes_per_s"]),
    )


def _unserved(address: str, lease: Lease, err: ProgramError) -> DonorError:
    why = err.why or err.message
    hint = f"see that this host reaches its NBD port {lease.nbd_port}: a firewall may let only the control port in"
    if "MTU" in why:
        host = parse_address(address).host
        hint = f"give both ends, and all between, the same MTU; what passes: ping -M do -s 8972 {host}"
    return DonorError(f"donor {address} granted a lease, but its memory cannot be used", why=why, hint=hint)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _directory(paths: Paths) -> Path:
    return paths.state / "links"


def _link_file(address: str) -> str:
    return quote(str(parse_address(address)), safe="") + ".json"


def _keep(paths: Paths, name: str, found: Link | HostCosts) -> None:
    directory = _directory(paths)
    try:
        make_directory(directory)
        draft = directory / f"{name}.{os.getpid()}"
        draft.write_text(json.dumps(asdict(found), indent=2))
        draft.replace(directory / name)
    except OSError as err:
        raise GhostboxError(f"cannot keep the measurement in {directory}: {err.strerror}") from err


def _load(paths: Paths, name: str, kind: type[T]) -> T | None:
    """Return what was kept; a file that makes no sense is as good as none: it is measured again some day."""
    try:
        return kind(**json.loads((_directory(paths) / name).read_text()))
    except (OSError, ValueError, TypeError):
        return None
