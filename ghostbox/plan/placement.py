# SPDX-License-Identifier: MIT
"""Split remote memory over donors. All functions are pure: offers come in, the shares to borrow go out.

With replicas, every extent has several copies, each on another machine. So of ``n`` extents no machine can hold more
than ``n`` copies, and ``r`` copies of each fit if and only if the sum of the machines' room, each counted up to ``n``,
is at least ``r * n``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ghostbox.errors import DonorTooSmall, Refused
from ghostbox.units import format_bytes


@dataclass(frozen=True)
class Offer:
    """Describes what one donor has free, in bytes.

    ``machine`` is the machine that it runs on and ``donor`` its id, whatever address was used; both are empty if they
    are not known: then the address stands for them.
    """

    address: str
    free_bytes: int
    machine: str = ""
    donor: str = ""


@dataclass(frozen=True)
class Held:
    """Describes what a donor lends already, in bytes; the other fields are as in `Offer`."""

    address: str
    size_bytes: int
    machine: str = ""
    donor: str = ""


@dataclass(frozen=True)
class Share:
    """Says what one donor is to lend, in bytes, a multiple of the extent."""

    address: str
    size_bytes: int


Place = Offer | Held


def host_of(address: str) -> str:
    """Return the machine in a donor's address: the part before the port."""
    return re.sub(r":\d+$", "", address).lower()


def donor_of(place: Place) -> str:
    """Return the identity of a donor: its id, or its address if the id is not known."""
    return place.donor or place.address


def distinct(offers: Sequence[Offer]) -> list[Offer]:
    """Return each donor once, under its first address: several addresses of one donor offer the same memory."""
    found: dict[str, Offer] = {}
    for offer in offers:
        found.setdefault(donor_of(offer), offer)
    return list(found.values())


def split(
    needed_bytes: int,
    offers: Sequence[Offer],
    *,
    extent_bytes: int,
    replicas: int = 1,
    same_host: bool = False,
    held: Sequence[Held] = (),
) -> tuple[Share, ...]:
    """Return a share for each donor that is needed, in proportion to its free memory.

    The shares are multiples of the extent and add up to ``replicas`` times ``needed_bytes``, rounded up to an extent.
    By that proportion every donor keeps the same fraction of its free memory, so that no machine is filled up while
    another one has room.

    Args:
        needed_bytes: the size of the remote memory.
        offers: the donors' free memory.
        extent_bytes: the unit.
        replicas: copies of each extent, each on another machine.
        same_host: copies need only be on different donors.
        held: memory that is lent already; the shares are what is missing beside it.

    Raises:
        DonorTooSmall: the donors together have too little.
        Refused: there are fewer machines than copies.
    """
    given, offers = offers, distinct(offers)
    n_extents = -(-needed_bytes // extent_bytes)
    groups = _groups(offers, held, same_host=same_host)
    if replicas > len(groups):
        raise _too_few(given, held, replicas, same_host=same_host)
    there = _held_extents(held, extent_bytes, same_host=same_host)
    free = {donor_of(offer): offer.free_bytes // extent_bytes for offer in offers}
    room = {
        group: min(sum(free.get(donor, 0) for donor in members), max(n_extents - there.get(group, 0), 0))
        for group, members in groups.items()
    }
    missing = replicas * n_extents - sum(min(count, n_extents) for count in there.values())
    if sum(room.values()) < missing:
        raise _too_small(needed_bytes, offers, replicas=replicas, held_bytes=sum(each.size_bytes for each in held))
    offered = {group: sum(free.get(donor, 0) for donor in members) for group, members in groups.items()}
    of_group = _with_limit(max(missing, 0), offered, room)
    shares: dict[str, int] = {}
    for group, members in groups.items():
        taken = _in_proportion(of_group[group], [free.get(donor, 0) for donor in members])
        shares.update(zip(members, taken, strict=True))
    return tuple(
        Share(offer.address, shares[donor_of(offer)] * extent_bytes) for offer in offers if shares[donor_of(offer)]
    )


def missing(
    needed_bytes: int, held: Sequence[Held], *, extent_bytes: int, replicas: int = 1, same_host: bool = False
) -> int:
    """Return how many bytes the copies need beyond ``held``, of which each machine counts up to one copy."""
    n_extents = -(-needed_bytes // extent_bytes)
    there = _held_extents(held, extent_bytes, same_host=same_host).values()
    return max(replicas * n_extents - sum(min(count, n_extents) for count in there), 0) * extent_bytes


def _group_of(place: Place, *, same_host: bool) -> str:
    return donor_of(place) if same_host else place.machine or host_of(place.address)


def _groups(offers: Sequence[Offer], held: Sequence[Held], *, same_host: bool) -> dict[str, list[str]]:
    """Return the donors, each once, by machine (each donor by itself if ``same_host``)."""
    groups: dict[str, list[str]] = {}
    places: list[Place] = [*held, *offers]
    for place in {donor_of(place): place for place in places}.values():
        groups.setdefault(_group_of(place, same_host=same_host), []).append(donor_of(place))
    return groups


def _held_extents(held: Sequence[Held], extent_bytes: int, *, same_host: bool) -> dict[str, int]:
    """Return how many extents each machine holds already."""
    there: dict[str, int] = {}
    for each in held:
        group = _group_of(each, same_host=same_host)
        there[group] = there.get(group, 0) + each.size_bytes // extent_bytes
    return there


def _with_limit(needed: int, free: Mapping[str, int], room: Mapping[str, int]) -> dict[str, int]:
    """Return whole numbers that add up to ``needed``, in proportion to ``free``, each at most its ``room``.

    A machine whose proportional part exceeds its room gets its room, and the rest is split anew among the others.
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
    """Return whole numbers that add up to ``needed``, each at most its ``free``, in proportion to ``free``.

    This is the largest remainder method: rounding down leaves less than one unit a donor, which goes to the donors with
    the largest remainders.
    """
    total = sum(free)
    if needed == 0 or total == 0:
        return [0] * len(free)
    taken = [needed * each // total for each in free]
    by_remainder = sorted(range(len(free)), key=lambda i: needed * free[i] % total, reverse=True)
    for i in by_remainder[: needed - sum(taken)]:
        taken[i] += 1
    return taken


def _too_few(offers: Sequence[Offer], held: Sequence[Held], replicas: int, *, same_host: bool) -> Refused:
    groups = _groups(distinct(offers), held, same_host=same_host)
    return Refused(
        f"{replicas} copies need donors on {replicas} machines, and these are on {len(groups)}",
        why="; ".join(same_machines((*offers, *held), same_host=same_host)) or "no donor answers",
        hint="add a donor on another machine; or --allow-same-host; or --replicas 1 with --backup PATH",
    )


def same_machines(places: Sequence[Place], *, same_host: bool = False) -> list[str]:
    """Return a sentence for each machine: its donors, and the addresses that are one donor."""
    machines: dict[str, dict[str, list[str]]] = {}
    for place in places:
        donors = machines.setdefault(_group_of(place, same_host=same_host), {})
        addresses = donors.setdefault(donor_of(place), [])
        if place.address not in addresses:
            addresses.append(place.address)
    sentences = []
    for donors in machines.values():
        sentences += [f"{_listed(each)} are one donor" for each in donors.values() if len(each) > 1]
        if len(donors) > 1:
            sentences.append(f"{_listed([each[0] for each in donors.values()])} are on one machine")
        elif len(next(iter(donors.values()))) == 1:
            sentences.append(next(iter(donors.values()))[0])
    return sentences


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"


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
