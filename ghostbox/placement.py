# SPDX-License-Identifier: MIT
"""Splits remote memory over donors. Pure: what is offered comes in, what to take from each goes out.

With replicas every extent has that many copies, each on another machine. So of ``n`` extents no machine can hold more
than ``n`` copies, and ``r`` copies of each fit if and only if the machines' room, counted up to ``n`` each, adds up to
``r * n``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ghostbox.errors import DonorTooSmall, Refused
from ghostbox.units import format_bytes


@dataclass(frozen=True)
class Offer:
    """What one donor has free, in bytes."""

    address: str
    free_bytes: int


@dataclass(frozen=True)
class Share:
    """What one donor is to lend, in bytes, a multiple of the extent."""

    address: str
    size_bytes: int


def host_of(address: str) -> str:
    """Return the machine of a donor's address: the part before the port."""
    return re.sub(r":\d+$", "", address).lower()


def split(
    needed_bytes: int,
    offers: Sequence[Offer],
    *,
    extent_bytes: int,
    replicas: int = 1,
    same_host: bool = False,
    held: Mapping[str, int] | None = None,
) -> tuple[Share, ...]:
    """Return a share for each donor that is needed, in proportion to what each has free.

    The shares are multiples of the extent and add up to ``replicas`` times ``needed_bytes``, rounded up to an extent.
    Proportion to the free memory leaves every donor with the same fraction of it, so that no machine is filled to its
    limit while another one idles.

    Args:
        needed_bytes: the remote memory.
        offers: what the donors have free.
        extent_bytes: the unit.
        replicas: copies of each extent, each on another machine.
        same_host: each on another donor only.
        held: bytes that are there already, by address; the shares are then what is still missing.

    Raises:
        DonorTooSmall: together they have too little.
        Refused: they are fewer machines than copies.
    """
    offers = list({offer.address: offer for offer in offers}.values())
    n_extents = -(-needed_bytes // extent_bytes)
    groups = _groups(offers, held or {}, same_host=same_host)
    if replicas > len(groups):
        raise _too_few(list(groups), replicas)
    there = {
        host: sum(_extents(held or {}, address, extent_bytes) for address in group) for host, group in groups.items()
    }
    free = {offer.address: offer.free_bytes // extent_bytes for offer in offers}
    room = {
        host: min(sum(free.get(address, 0) for address in group), max(n_extents - there[host], 0))
        for host, group in groups.items()
    }
    missing = replicas * n_extents - sum(min(count, n_extents) for count in there.values())
    if sum(room.values()) < missing:
        raise _too_small(needed_bytes, offers, replicas=replicas, held_bytes=sum((held or {}).values()))
    of_host = _with_limit(max(missing, 0), {host: sum(free.get(a, 0) for a in groups[host]) for host in groups}, room)
    shares: dict[str, int] = {}
    for host, group in groups.items():
        taken = _in_proportion(of_host[host], [free.get(address, 0) for address in group])
        shares.update(zip(group, taken, strict=True))
    return tuple(
        Share(offer.address, shares[offer.address] * extent_bytes) for offer in offers if shares[offer.address]
    )


def missing(
    needed_bytes: int, held: Mapping[str, int], *, extent_bytes: int, replicas: int = 1, same_host: bool = False
) -> int:
    """Return how many bytes more than ``held`` the copies take, on machines that have room for them."""
    n_extents = -(-needed_bytes // extent_bytes)
    groups = _groups((), held, same_host=same_host).values()
    there = (sum(_extents(held, address, extent_bytes) for address in group) for group in groups)
    return max(replicas * n_extents - sum(min(count, n_extents) for count in there), 0) * extent_bytes


def _groups(offers: Sequence[Offer], held: Mapping[str, int], *, same_host: bool) -> dict[str, list[str]]:
    """Return the addresses by machine (each its own where that does not matter), each once."""
    groups: dict[str, list[str]] = {}
    for address in dict.fromkeys([*(offer.address for offer in offers), *held]):
        groups.setdefault(address if same_host else host_of(address), []).append(address)
    return groups


def _extents(held: Mapping[str, int], address: str, extent_bytes: int) -> int:
    return held.get(address, 0) // extent_bytes


def _with_limit(needed: int, free: Mapping[str, int], room: Mapping[str, int]) -> dict[str, int]:
    """Return whole numbers adding up to ``needed``, in proportion to ``free``, each at most its ``room``.

    Who would get more than it has room for gets just that, and the rest is split anew among the others.
    """
    taken: dict[str, int] = {}
    while True:
        open_hosts = [host for host in free if host not in taken]
        rest = needed - sum(taken.values())
        proposed = dict(zip(open_hosts, _in_proportion(rest, [free[host] for host in open_hosts]), strict=True))
        full = {host: room[host] for host, count in proposed.items() if count > room[host]}
        if not full:
            return {**taken, **proposed}
        taken.update(full)


def _in_proportion(needed: int, free: Sequence[int]) -> list[int]:
    """Return whole numbers adding up to ``needed``, each at most its ``free``, in proportion to ``free``.

    Largest remainder: rounding down leaves less than one unit a donor, given to those whose share was cut most.
    """
    total = sum(free)
    if needed == 0 or total == 0:
        return [0] * len(free)
    taken = [needed * each // total for each in free]
    by_remainder = sorted(range(len(free)), key=lambda i: needed * free[i] % total, reverse=True)
    for i in by_remainder[: needed - sum(taken)]:
        taken[i] += 1
    return taken


def _too_few(hosts: Sequence[str], replicas: int) -> Refused:
    return Refused(
        f"{replicas} copies need donors on {replicas} machines, and these are on {len(hosts)}",
        why=", ".join(hosts) or "no donor is there",
        hint="add a donor on another machine; or --allow-same-host; or --replicas 1 with --backup PATH",
    )


def _too_small(needed_bytes: int, offers: Sequence[Offer], *, replicas: int, held_bytes: int) -> DonorTooSmall:
    hint = "lower vm.remote_memory or add a donor"
    needed = format_bytes(needed_bytes)
    if replicas > 1:
        needed = f"{format_bytes(replicas * needed_bytes)} ({replicas} copies of {needed})"
    if held_bytes:
        needed += f" and has {format_bytes(held_bytes)}"
    if len(offers) == 1:
        offer = offers[0]
        return DonorTooSmall(
            f"donor {offer.address}: offers {format_bytes(offer.free_bytes)}, the VM needs {needed}", hint=hint
        )
    total = format_bytes(sum(offer.free_bytes for offer in offers))
    why = ", ".join(f"{offer.address} {format_bytes(offer.free_bytes)}" for offer in offers)
    if replicas > 1:
        why += f"; no machine can hold more than one copy, {format_bytes(needed_bytes)}"
    return DonorTooSmall(f"{len(offers)} donors: offer {total} together, the VM needs {needed}", why=why, hint=hint)
