# SPDX-License-Identifier: MIT
"""Ask several donors in parallel, and make leases on all of them or on none.

Every function reports all donors that failed, not only the first.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from ghostbox.donors.client import DonorClient, DonorStatus, Lease, NoAnswer, parse_address
from ghostbox.donors.models import Holder
from ghostbox.errors import DonorError, GhostboxError, NotFound
from ghostbox.plan.placement import Offer
from ghostbox.system.machine import machine_digest

_log = logging.getLogger(__name__)

_MAX_THREADS = 16
_UNDO_WAIT_S = 30.0
_EXPORT_SAFE = "@:"

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Assignment:
    """Describes a lease that is to be made."""

    donor_address: str
    lease_name: str
    size_bytes: int
    holder: Holder


@dataclass(frozen=True)
class Survey:
    """Holds one donor's status, or the error in its place."""

    address: str
    status: DonorStatus | None
    error: GhostboxError | None


def survey(addresses: Sequence[str], *, timeout_s: float | None = None) -> list[Survey]:
    """Ask donors for their status, each for ``timeout_s`` at most; a failure is part of the result."""

    def ask(address: str) -> DonorStatus:
        with _client(address, timeout_s) as client:
            return client.status()

    futures = _in_parallel(ask, addresses)
    return [
        Survey(address, None if _failure(future) else future.result(), _failure(future))
        for address, future in zip(addresses, futures, strict=True)
    ]


def _client(address: str, timeout_s: float | None) -> DonorClient:
    if timeout_s is None:
        return DonorClient(address)
    return DonorClient(address, timeout_s=timeout_s, connect_timeout_s=timeout_s)


def query(addresses: Sequence[str]) -> list[DonorStatus]:
    """Return the status of each donor, in the order of ``addresses``.

    Raises:
        GhostboxError: donors failed; the error is the only one, or lists all.
    """
    found = survey(addresses)
    _raise_together([item.error for item in found if item.error is not None])
    return [item.status for item in found if item.status is not None]


def acquire(assignments: Sequence[Assignment]) -> list[Lease]:
    """Make all leases, or none: if one fails, or the user interrupts, the leases already made are released.

    Raises:
        LeaseExists: a name is taken.
        DonorTooSmall: a donor has less free memory than the lease needs.
        GhostboxError: any other failure, or a list of several.
    """
    futures: list[Future[Lease]] = []
    try:
        _in_parallel(_create, assignments, into=futures)
        _raise_together([error for future in futures if (error := _failure(future)) is not None])
        return [future.result() for future in futures]
    except BaseException:
        _undo(assignments, futures)
        raise


def release(leases: Sequence[Lease], *, force: bool = False) -> None:
    """Release leases; a lease that is gone already is no error.

    Raises:
        GhostboxError: some leases could not be released; the others are.
    """

    def give_back(lease: Lease) -> None:
        with DonorClient(lease.donor_address) as client:
            try:
                client.release_lease(lease.name, force=force)
            except NotFound as err:
                _log.debug("%s", err)

    futures = _in_parallel(give_back, leases)
    _raise_together([error for future in futures if (error := _failure(future)) is not None])


def nbd_uri(address: str, lease: Lease, keys: Path | None = None) -> str:
    """Return the NBD URI of a lease on the donor at ``address`` (``host[:port]`` of its control API).

    ``keys`` is the whole path of the file that has the export's key; a lease with a key needs it.
    """
    place = f"{parse_address(address).uri_host}:{lease.nbd_port}"
    export = quote(lease.export, safe=_EXPORT_SAFE)
    if lease.tls_psk is None:
        return f"nbd://{place}/{export}"
    assert keys is not None, "a lease with a key is used with the file of its key"
    return f"nbds://{quote(lease.export, safe='')}@{place}/{export}?tls-psk-file={quote(os.fsencode(keys))}"


def offer_of(address: str, status: DonorStatus | None) -> Offer:
    """Return a donor's offer: no memory while it is draining, or does not answer (``status`` is None)."""
    if status is None:
        return Offer(address, 0, machine_at(address))
    free_bytes = 0 if status.draining else status.free_bytes
    return Offer(address, free_bytes, status.machine or machine_at(address), donor_key(status.id, status.incarnation))


def oddities(found: Sequence[tuple[str, DonorStatus]]) -> list[str]:
    """Return notes on donors that the user named: several addresses of one donor, and donors that were cloned."""
    by_donor: dict[str, list[str]] = {}
    by_id: dict[str, dict[str, str]] = {}
    for address, status in found:
        if not status.id:
            continue
        by_donor.setdefault(donor_key(status.id, status.incarnation), []).append(address)
        by_id.setdefault(status.id, {}).setdefault(status.incarnation, f"'{status.name}' at {address}")
    lines = [
        f"{' and '.join(addresses)} are one donor: it is used once" for addresses in by_donor.values() if addresses[1:]
    ]
    lines += [
        f"{' and '.join(copies.values())} have one id, so one was cloned: they are two donors here; for an id of its"
        " own, end one, remove identity.json from its state directory, and start it"
        for copies in by_id.values()
        if len(copies) > 1
    ]
    return lines


def donor_key(donor_id: str, incarnation: str) -> str:
    """Return the identity of a donor. Donors that were cloned have the same id, but different incarnations."""
    return f"{donor_id}/{incarnation}"


def machine_at(address: str) -> str:
    """Return the machine behind the address of a donor that does not say: its IP address, or this machine's digest."""
    host = parse_address(address).host
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return host.lower()
    addresses = [ipaddress.ip_address(str(sockaddr[0])) for *_, sockaddr in found]
    mapped = [each.ipv4_mapped or each if isinstance(each, ipaddress.IPv6Address) else each for each in addresses]
    return machine_digest() if any(each.is_loopback for each in mapped) else str(mapped[0])


def _create(assignment: Assignment) -> Lease:
    with DonorClient(assignment.donor_address) as client:
        return client.create_lease(assignment.lease_name, assignment.size_bytes, assignment.holder)


def _undo(assignments: Sequence[Assignment], futures: Sequence[Future[Lease]]) -> None:
    """Release the leases that were made; an interrupt may have come while others were still being made."""
    asked = dict(zip(futures, assignments, strict=False))
    try:
        for future in as_completed(asked, timeout=_UNDO_WAIT_S):
            _undo_one(asked[future], future.exception())
    except TimeoutError:
        slow = [asked[future].lease_name for future in asked if not future.done()]
        _log.warning("no answer about leases %s: they may have been made", ", ".join(slow))


def _undo_one(assignment: Assignment, error: BaseException | None) -> None:
    """Release a lease that was made (no error), or that may have been made although no answer came."""
    if error is not None and not isinstance(error, NoAnswer):
        return
    try:
        with DonorClient(assignment.donor_address) as client:
            if error is None or client.lease(assignment.lease_name).holder == assignment.holder:
                client.release_lease(assignment.lease_name)
    except NotFound:
        return
    except GhostboxError as err:
        level = logging.WARNING if error is None else logging.DEBUG
        _log.log(level, "lease %s could not be released: %s", assignment.lease_name, err)


def _in_parallel(work: Callable[[T], R], items: Sequence[T], *, into: list[Future[R]] | None = None) -> list[Future[R]]:
    """Run ``work`` on every item in a thread of its own; return when all are done, in the order of ``items``."""
    futures: list[Future[R]] = [] if into is None else into
    with ThreadPoolExecutor(max_workers=_MAX_THREADS) as pool:
        futures.extend(pool.submit(work, item) for item in items)
    return futures


def _failure(future: Future[R]) -> GhostboxError | None:
    """Return the error of a piece of work; an error that is no GhostboxError is a programming error and is raised."""
    error = future.exception()
    if error is None or isinstance(error, GhostboxError):
        return error
    raise error


def _raise_together(errors: Sequence[GhostboxError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise DonorError(
            f"{len(errors)} donors failed",
            why="\n".join(f"{err.message}: {err.why}" if err.why else err.message for err in errors),
            hint=next((err.hint for err in errors if err.hint), None),
        )
