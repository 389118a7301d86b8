# SPDX-License-Identifier: MIT
"""Donors that want their memory back, and what keeps it there: asked by whoever shows how a VM does.

The supervisor sees it, too, and moves what it can. But it may be late, or there may be no room; and a donor whose owner
ends it lives on only until it is empty or its owner loses patience. So ``status`` and ``list`` ask the donors
themselves: what they show is true from the first second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ghostbox import donors
from ghostbox.donors import Survey
from ghostbox.errors import Refused
from ghostbox.plan import shares_of
from ghostbox.session import pool
from ghostbox.session.record import THIS_HOST, LeaseRecord, Record

ASK_TIMEOUT_S = 1.0
"""A donor that does not answer so long says nothing: whoever waits for it is shown what the pager says."""


def noted(record: Record, found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Add to the pager's status which donors want to leave: their state, and ``leaving`` with the reasons.

    ``leaving`` is ``{causes, stays}``; ``stays`` says why what it holds cannot move to the others, None if it can.
    """
    if found is None:
        return None
    leases = _reachable(record, found)
    asked = donors.survey(sorted({lease.donor for lease in leases}), timeout_s=ASK_TIMEOUT_S)
    minds = {item.address: item.status for item in asked if item.status is not None}
    by_uri: dict[str, dict[str, Any]] = {}
    for address in dict.fromkeys(lease.donor for lease in leases):
        own = [lease for lease in leases if lease.donor == address]
        status = minds.get(address)
        if status is not None and status.draining and pool.lent_by(record, status, address):
            leaving = {"causes": list(status.drain_causes), "stays": _stays(record, found, own, asked)}
            by_uri |= {str(lease.nbd_uri): leaving for lease in own}
    if not by_uri:
        return found
    level = "degraded" if found.get("health", "ok") == "ok" else found["health"]
    return {**found, "health": level, "donors": [_as_leaving(each, by_uri) for each in found["donors"]]}


def _reachable(record: Record, found: dict[str, Any]) -> list[LeaseRecord]:
    """Return the leases of donors that answer the pager."""
    by_uri = pool.states(found)
    usable = pool.USABLE | pool.LEAVING
    return [
        lease
        for lease in record.leases
        if lease.donor != THIS_HOST and by_uri.get(lease.nbd_uri or "", {}).get("state") in usable
    ]


def _as_leaving(donor: dict[str, Any], leaving: Mapping[str, object]) -> dict[str, Any]:
    if donor["uri"] not in leaving or not donor.get("used_slots"):
        return donor
    state = "draining" if donor["state"] in pool.USABLE else donor["state"]
    return {**donor, "state": state, "leaving": leaving[str(donor["uri"])]}


def _stays(
    record: Record,
    found: dict[str, Any],
    leases: Sequence[LeaseRecord],
    asked: Sequence[Survey],
) -> str | None:
    """Return why what a donor holds cannot move to the others; None if it can, or is on its way."""
    by_uri = pool.states(found)
    if record.pager is None or all(by_uri[str(lease.nbd_uri)]["state"] in pool.LEAVING for lease in leases):
        return None
    known = [item.address for item in asked]
    more = [address for address in record.donors if not any(pool.same_donor(address, each) for each in known)]
    others = [item for item in asked if item.address != leases[0].donor]
    offers = [
        donors.offer_of(item.address, item.status)
        for item in (*others, *donors.survey(more, timeout_s=ASK_TIMEOUT_S))
        if item.status is not None and not pool.is_drained(record, item.status, item.address)
    ]
    try:
        shares_of(record.pager, offers, pool.held(record, found, {str(lease.nbd_uri) for lease in leases}))
    except Refused as err:
        return f"{err.message}: {err.why}" if err.why else err.message
    return None
