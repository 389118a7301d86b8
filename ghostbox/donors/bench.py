# SPDX-License-Identifier: MIT
"""Measure the link to a donor, over a short lease, and keep the result for predictions.

A C program measures (qemu/bench/nbd_load.c); it waits for answers in the same way as the pager. One file for each
donor, and one for this host, is kept in the state directory: a later measurement replaces an earlier one.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from ghostbox.donors.client import DonorClient, DonorStatus, Lease, host_name, parse_address
from ghostbox.donors.leases import Assignment, acquire, release, survey
from ghostbox.donors.models import Holder
from ghostbox.errors import DonorError, DonorTooSmall, GhostboxError, ProgramError, hint_for
from ghostbox.paths import Paths, make_directory
from ghostbox.plan.prediction import HostCosts, Link
from ghostbox.system import documents, processes, state_files
from ghostbox.units import KIB, MIB, PAGE_BYTES, format_bytes

LEASE_BYTES = 64 * MIB
_LEASE_MIN_BYTES = 1 * MIB
_REQUEST_BYTES = 256 * KIB
_DEPTH = 8
_POLL_MAX_US = 10_000  # equals SPIN_MAX_US of qemu/bench/bench.h
_HOST_FILE = "host.json"
_TIMEOUT_S = 120.0

Say = Callable[[str], None]
T = TypeVar("T", Link, HostCosts)


@dataclass(frozen=True)
class Duration:
    """Holds how long each figure is measured, in milliseconds, and how many faults are timed."""

    bandwidth_ms: int = 500
    round_trip_ms: int = 1000
    n_faults: int = 5000


@dataclass(frozen=True)
class Measured:
    """Holds one donor's link, or the error that prevented its measurement."""

    address: str
    name: str | None
    link: Link | None
    error: GhostboxError | None


def measure(
    addresses: Sequence[str], paths: Paths, *, poll_us: int, say: Say, duration: Duration | None = None
) -> list[Measured]:
    """Measure the links to donors, one after the other, and keep the results; a failure is part of the result.

    Args:
        addresses: ``host[:port]`` of the donors' control APIs.
        paths: where the program is and where results are kept.
        poll_us: how long the pager polls before it sleeps.
        say: receives what is being measured.
        duration: how long each figure is measured.

    Raises:
        GhostboxError: a result cannot be written.
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
        ProgramError: userfaultfd cannot be used, or the program is not installed.
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
    """Return the links that were measured earlier, by the addresses as given."""
    found = {address: _load(paths, _link_file(address), Link) for address in addresses}
    return {address: link for address, link in found.items() if link is not None}


def kept_host(paths: Paths) -> HostCosts | None:
    """Return this host's costs, if they were measured earlier."""
    return _load(paths, _HOST_FILE, HostCosts)


def resolve(word: str, configured: Sequence[str]) -> str:
    """Return the address of the configured donor that has the name ``word``; without one, ``word`` is the address."""
    if word in configured:
        return word
    for item in survey(configured):
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
    """Hold a lease on each donor until the end of the block.

    Args:
        sizes: bytes to lease, by address.
        purpose: the holder's VM name, which the donor's owner sees.
    """
    host = host_name()
    tag = secrets.token_hex(4)
    wanted = [
        Assignment(address, f"{purpose}-{tag}-{number}", size, Holder(host, purpose))
        for number, (address, size) in enumerate(sizes.items())
    ]
    leases = acquire(wanted)
    try:
        yield leases
    finally:
        release(leases, force=True)


@contextlib.contextmanager
def key_file(paths: Paths, lease: Lease) -> Iterator[Path | None]:
    """Hold the key of a lease in a file until the end of the block; None for a lease without a key.

    Raises:
        GhostboxError: the file cannot be written.
    """
    if lease.tls_psk is None:
        yield None
        return
    file = paths.runtime / f"bench-{lease.export}.psk"
    try:
        make_directory(file.parent)
        state_files.replace(file, f"{lease.export}:{lease.tls_psk}\n".encode())
    except OSError as err:
        raise GhostboxError(f"cannot write the key of a lease, {file}: {err.strerror}", hint=hint_for(err)) from err
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _measure_link(address: str, paths: Paths, poll_us: int, say: Say, duration: Duration) -> tuple[str, Link]:
    say(f"{address}: asking for a lease")
    with DonorClient(address) as control:
        status = control.status()
    with leased({address: _lease_bytes(address, status)}, "donor-bench") as (lease,), key_file(paths, lease) as keys:
        return status.name, _measure_lease(address, lease, keys, paths, poll_us=poll_us, say=say, duration=duration)


def _lease_bytes(address: str, status: DonorStatus) -> int:
    size = min(LEASE_BYTES, status.free_bytes // _REQUEST_BYTES * _REQUEST_BYTES)
    if size < _LEASE_MIN_BYTES and not status.draining:
        raise DonorTooSmall(
            f"donor {address}: has {format_bytes(status.free_bytes)} free,"
            f" a measurement needs {format_bytes(_LEASE_MIN_BYTES)}",
            why=f"it lends {format_bytes(status.exported_bytes)} of {format_bytes(status.size_bytes)}"
            f" in {status.leases} leases",
            hint=f"measure before `ghostbox up`; ghostbox donor leases {address} shows who holds its memory;"
            " ghostbox top shows its latency for a running VM",
        )
    return max(size, _LEASE_MIN_BYTES)  # a donor that is draining refuses the lease itself


def _measure_lease(
    address: str, lease: Lease, keys: Path | None, paths: Paths, *, poll_us: int, say: Say, duration: Duration
) -> Link:
    words: dict[str, object] = {"host": parse_address(address).host, "port": lease.nbd_port, "export": lease.export}
    if keys is not None:
        words["keys"] = keys

    def load(**more: object) -> dict[str, Any]:
        try:
            return client(paths, "load", {**words, "poll_us": min(poll_us, _POLL_MAX_US), **more})
        except ProgramError as err:
            raise _unserved(address, lease, err) from err

    bulk = {"pattern": "sequential", "bytes": _REQUEST_BYTES, "depth": _DEPTH, "ms": duration.bandwidth_ms}
    say(f"{address}: writes of 256 KiB")
    writes = load(mode="write", **bulk)
    # Only written data is read: the server answers a hole without sending its bytes.
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
        hint = f"give both ends, and all devices between, the same MTU; to test it: ping -M do -s 8972 {host}"
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
        state_files.replace(directory / name, json.dumps(asdict(found), indent=2).encode())
    except OSError as err:
        raise GhostboxError(f"cannot keep the measurement in {directory}: {err.strerror}") from err


def _load(paths: Paths, name: str, kind: type[T]) -> T | None:
    """Return the kept measurement; None if there is none, or if its file makes no sense."""
    try:
        return kind(**documents.known(json.loads((_directory(paths) / name).read_text()), kind))
    except (OSError, ValueError, TypeError, AttributeError):
        return None
