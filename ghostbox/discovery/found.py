# SPDX-License-Identifier: MIT
"""Describe a donor that a scan found, and tell whether two such are one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ghostbox.discovery.record import Announced
from ghostbox.donors.client import DonorStatus
from ghostbox.errors import GhostboxError


@dataclass(frozen=True)
class Found:
    """Describes a donor that was found.

    ``name``, ``id`` and ``version`` are its own words: from its status if it gave one, else from its announcement.
    ``fingerprint`` is that of the certificate which it showed at ``address``; empty: it showed none. ``also`` are other
    addresses at which it answers. ``announced`` is what it said by mDNS under the name ``instance``, None if only its
    address was given. ``unreached`` says why it cannot be reached. ``refusal`` is why it gave no status. ``problem``
    and ``hint`` say why it is not to be trusted, and what to do.
    """

    name: str
    id: str
    address: str
    also: tuple[str, ...] = ()
    announced: Announced | None = None
    instance: str = ""
    round_trip_us: float | None = None
    version: str = ""
    fingerprint: str = ""
    paired: bool = False
    status: DonorStatus | None = None
    unreached: str = ""
    refusal: GhostboxError | None = None
    problem: str = ""
    hint: str = ""

    @property
    def state(self) -> str:
        """Return in few words how this host stands with the donor."""
        if self.problem:
            return "do not trust"
        if self.unreached:
            return "no answer"
        if self.fingerprint:
            return "paired" if self.paired else "not paired"
        return "not encrypted" if self.status or self.announced else "no donor"

    @property
    def is_there(self) -> bool:
        """Tell whether a donor answers, as far as one can see."""
        return not self.unreached and bool(self.fingerprint or self.status or self.announced)

    @property
    def title(self) -> str:
        """Return the name and the address, or the address alone, for a sentence."""
        return f"'{self.name}' at {self.address}" if self.name else f"the one at {self.address}"

    def is_same(self, other: Found) -> bool:
        """Tell whether two rows are one donor.

        A donor announces itself once, with all of its addresses. So two announcements are one donor only if they lead
        to one address, or to one process.
        """
        if {self.address, *self.also} & {other.address, *other.also}:
            return True
        if self.status and other.status:
            return (self.id, self.status.incarnation) == (other.id, other.status.incarnation)
        both_announced = self.announced is not None and other.announced is not None
        return bool(self.fingerprint) and self.fingerprint == other.fingerprint and not both_announced

    def joined(self, other: Found) -> Found:
        """Return the two rows of one donor as one; of two addresses the nearer one is the first."""
        near, far = sorted((self, other), key=_distance)
        addresses = dict.fromkeys((*near.also, far.address, *far.also))
        addresses.pop(near.address, None)
        return replace(
            near,
            name=near.name or far.name,
            id=near.id or far.id,
            version=near.version or far.version,
            also=tuple(addresses),
            announced=self.announced or other.announced,
            instance=self.instance or other.instance,
            paired=near.paired or far.paired,
            status=near.status or far.status,
        )


def _distance(row: Found) -> float:
    return float("inf") if row.round_trip_us is None else row.round_trip_us
