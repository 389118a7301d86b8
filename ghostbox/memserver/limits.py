# SPDX-License-Identifier: MIT
"""Say whether a lease is within its client's limits, and what a limit means that is below what the client holds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ghostbox.donors.models import LimitFields
from ghostbox.memserver.model import PlaneClient
from ghostbox.memserver.role_store import Standing
from ghostbox.memserver.roles import Limits
from ghostbox.units import format_bytes


@dataclass(frozen=True)
class Held:
    """Holds what a client has: its leases, and what the data plane says of it, None if that knows nothing of it."""

    leases: int
    leased_bytes: int
    use: PlaneClient | None = None


@dataclass(frozen=True)
class Exceeded:
    """Is why a lease is over a limit: a sentence, and what to do."""

    message: str
    hint: str


def exceeded(name: str, size_bytes: int, standing: Standing, held: Held) -> Exceeded | None:
    """Return why a client may not have one more lease; None if it may."""
    limits, owner = standing.limits, "the donor's owner can raise the limit: ghostbox memserver client set"
    if limits.leases is not None and held.leases >= limits.leases:
        return Exceeded(
            f"lease '{name}': this host may have {limits.leases} leases here, and has {held.leases}",
            f"release another lease, or add another donor; {owner} {standing.host} --leases",
        )
    if limits.memory_bytes is not None and held.leased_bytes + size_bytes > limits.memory_bytes:
        return Exceeded(
            f"lease '{name}': {format_bytes(size_bytes)} asked; this host may lease"
            f" {format_bytes(limits.memory_bytes)} here, {format_bytes(held.leased_bytes)} of that is leased",
            f"ask for less, release another lease, or add another donor; {owner} {standing.host} --memory",
        )
    return None


def said(limits: Limits | LimitFields) -> str:
    """Return limits in words."""
    found = {
        "memory": None if limits.memory_bytes is None else format_bytes(limits.memory_bytes),
        "leases": limits.leases,
        "connections": limits.connections,
        "bandwidth": None if limits.bytes_per_s is None else f"{format_bytes(limits.bytes_per_s)}/s",
    }
    return ", ".join(f"{name} {limit}" for name, limit in found.items() if limit is not None) or "no limits"


def room_bytes(free_bytes: int, limits: Limits, held: Held) -> int:
    """Return how much of what is free a client may still lease."""
    if limits.leases is not None and held.leases >= limits.leases:
        return 0
    if limits.memory_bytes is None:
        return free_bytes
    return max(0, min(free_bytes, limits.memory_bytes - held.leased_bytes))


def notes(standing: Standing, held: Held) -> list[str]:
    """Say of each limit that is below what a client holds what it does and what it leaves alone."""
    return [f"{standing.host} {text}" for text in _overdrawn(standing.limits, held)]


def _overdrawn(limits: Limits, held: Held) -> Iterator[str]:
    memory_bytes = limits.memory_bytes
    if memory_bytes is not None and held.leased_bytes > memory_bytes:
        resident_bytes = held.use.resident_bytes if held.use is not None else 0
        most = format_bytes(memory_bytes)
        yield (
            f"has leased {format_bytes(held.leased_bytes)}, more than {most}: its leases stay, and what is in them"
            f" ({format_bytes(resident_bytes)}) can be read and written; a page that would be more than {most} gets"
            " ENOSPC, and its VMs keep it with them until there is room"
        )
    if limits.leases is not None and held.leases > limits.leases:
        yield f"has {held.leases} leases, more than {limits.leases}: they stay, and it gets no other one"
    if limits.connections is not None and held.use is not None and held.use.connections > limits.connections:
        yield (
            f"has {held.use.connections} connections, more than {limits.connections}: they stay open, and no other one"
            " comes in"
        )
