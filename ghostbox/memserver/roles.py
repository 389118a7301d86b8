# SPDX-License-Identifier: MIT
"""Define what a client may have of a donor: limits, the roles that give them, and how they are kept in the file.

A client has the limits of its role, but for those that were set for the client alone; a role has its built-in limits,
but for those that the owner has set. In the file each limit is a number, `NO_LIMIT`, or NULL: as the role, or the
built-in limit, says. A role that nobody has made (only a damaged or foreign file names one) counts as `GUEST`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ghostbox.units import MIB, PAGE_BYTES

NO_LIMIT = -1
"""Stands for no limit in the file, where NULL stands for the limit of the role."""
GUEST = "guest"
"""The role with the least, which a role counts as that is not known."""


@dataclass(frozen=True)
class Limits:
    """Holds what a client may have in all its leases together; None: no limit."""

    memory_bytes: int | None = None
    leases: int | None = None
    connections: int | None = None
    bytes_per_s: int | None = None


FIELDS = ("memory_bytes", "leases", "connections", "bytes_per_s")
"""The names of the limits, which are those of the file's columns as well."""


@dataclass(frozen=True)
class _BuiltIn:
    """Holds the limits of a built-in role; ``memory_share`` is the part of the lent memory that it may lease."""

    limits: Limits
    memory_share: float | None = None


BUILT_IN: Mapping[str, _BuiltIn] = {
    # The owner's own machines.
    "admin": _BuiltIn(Limits()),
    # Machines of people whom the owner trusts. What bounds them is beyond what a host with dozens of VMs has, and
    # keeps one that is broken from taking all the connections of the memory server (1024).
    "user": _BuiltIn(Limits(leases=64, connections=256)),
    # One VM, and a lease beside it for `ghostbox donor bench`. A VM has three connections, six while its pager is
    # replaced. The bandwidth is about a quarter of what 1 Gbit/s carries.
    GUEST: _BuiltIn(Limits(leases=2, connections=16, bytes_per_s=32 * MIB), memory_share=0.25),
}


@dataclass(frozen=True)
class Role:
    """Describes a role. ``own`` names the limits that the owner has set."""

    name: str
    built_in: bool
    limits: Limits
    own: tuple[str, ...]


Kept = Mapping[str, int | None]
"""Limits as the file has them, by the name of each; a limit that is missing counts as NULL."""


def limits_of_role(name: str, kept: Mapping[str, Kept], lent_bytes: int) -> Limits:
    """Return the limits of a role.

    Args:
        name: of the role.
        kept: what the file says of each role that it has.
        lent_bytes: the memory that the donor lends in all.
    """
    known = name if name in BUILT_IN or name in kept else GUEST
    return overlaid(_built_in_limits(known, lent_bytes), kept.get(known, {}))


def overlaid(base: Limits, kept: Kept) -> Limits:
    """Return limits in which those that the file has replace the others."""
    values = {name: getattr(base, name) if kept.get(name) is None else kept[name] for name in FIELDS}
    return Limits(**{name: None if value == NO_LIMIT else value for name, value in values.items()})


def own_of(kept: Kept) -> tuple[str, ...]:
    """Return the names of the limits that the file has."""
    return tuple(name for name in FIELDS if kept.get(name) is not None)


def _built_in_limits(name: str, lent_bytes: int) -> Limits:
    found = BUILT_IN.get(name)
    if found is None:
        return Limits()
    if found.memory_share is None:
        return found.limits
    share_bytes = int(lent_bytes * found.memory_share) // PAGE_BYTES * PAGE_BYTES
    return Limits(share_bytes, found.limits.leases, found.limits.connections, found.limits.bytes_per_s)
