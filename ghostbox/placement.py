# SPDX-License-Identifier: MIT
"""Splits remote memory over donors. Pure: what is offered comes in, what to take from each goes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ghostbox.errors import DonorTooSmall
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


def split(needed_bytes: int, offers: Sequence[Offer], *, extent_bytes: int) -> tuple[Share, ...]:
    """Return a share for each donor that is needed, in proportion to what each has free.

    The shares are multiples of the extent and add up to ``needed_bytes``, rounded up to an extent. Proportion to the
    free memory leaves every donor with the same fraction of it, so that no machine is filled to its limit while
    another one idles.

    Raises:
        DonorTooSmall: together they have too little.
    """
    needed_extents = -(-needed_bytes // extent_bytes)
    free_extents = [offer.free_bytes // extent_bytes for offer in offers]
    if sum(free_extents) < needed_extents:
        raise _too_small(needed_bytes, offers)
    taken = _in_proportion(needed_extents, free_extents)
    return tuple(
        Share(offer.address, extents * extent_bytes) for offer, extents in zip(offers, taken, strict=True) if extents
    )


def _in_proportion(needed: int, free: Sequence[int]) -> list[int]:
    """Return whole numbers adding up to ``needed``, each at most its ``free``, in proportion to ``free``.

    Largest remainder: rounding down leaves less than one unit a donor, given to those whose share was cut most.
    """
    total = sum(free)
    taken = [needed * each // total for each in free]
    by_remainder = sorted(range(len(free)), key=lambda i: needed * free[i] % total, reverse=True)
    for i in by_remainder[: needed - sum(taken)]:
        taken[i] += 1
    return taken


def _too_small(needed_bytes: int, offers: Sequence[Offer]) -> DonorTooSmall:
    hint = "lower vm.remote_memory or add a donor"
    needed = format_bytes(needed_bytes)
    if len(offers) == 1:
        offer = offers[0]
        return DonorTooSmall(
            f"donor {offer.address}: offers {format_bytes(offer.free_bytes)}, the VM needs {needed}", hint=hint
        )
    total = format_bytes(sum(offer.free_bytes for offer in offers))
    each = ", ".join(f"{offer.address} {format_bytes(offer.free_bytes)}" for offer in offers)
    return DonorTooSmall(f"{len(offers)} donors: offer {total} together, the VM needs {needed}", why=each, hint=hint)
