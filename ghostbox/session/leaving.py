# SPDX-License-Identifier: MIT
"""Show which donors want their memory back, and what keeps the VM's extents there.

The supervisor also asks the donors, and moves what it can. But it asks only now and then, and there may be no room; and
the process of a donor whose owner ends it runs on only until the donor is empty or the owner ends it at once. So
``status`` and ``list`` ask the donors themselves, and show a drain as soon as it begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ghostbox import donors
from ghostbox.donors import Survey
from ghostbox.errors import Refused
from ghostbox.pager.model import Leaving, PagerDonor, PagerStatus
from ghostbox.plan.plan import shares_of
from ghostbox.session import pool
from ghostbox.session.record import THIS_HOST, LeaseRecord, Record

ASK_TIMEOUT_S = 1.0
"""How long a donor may take to answer; for a slower donor, the user is shown what the pager says."""


def noted(record: Record, found: PagerStatus | None) -> PagerStatus | None:
    """Add to the pager's status which donors want to leave: their state, and ``leaving`` with the reasons."""
    if found is None:
        return None
    leases = _reachable(record, found)
    asked = donors.survey(sorted({lease.donor for lease in leases}), timeout_s=ASK_TIMEOUT_S)
    statuses = {item.address: item.status for item in asked if item.status is not None}
    by_uri: dict[str, Leaving] = {}
    for address in dict.fromkeys(lease.donor for lease in leases):
        own = [lease for lease in leases if lease.donor == address]
        status = statuses.get(address)
        if status is not None and status.draining and pool.lent_by(record, status, address):
            leaving = Leaving(causes=status.drain_causes, stays=_reason_to_stay(record, found, own, asked))
            by_uri |= {str(lease.nbd_uri): leaving for lease in own}
    if not by_uri:
        return found
    level = "degraded" if found.health == "ok" else found.health
    shown = tuple(_as_leaving(each, by_uri) for each in found.donors)
    return found.model_copy(update={"health": level, "donors": shown})


def _reachable(record: Record, found: PagerStatus) -> list[LeaseRecord]:
    """Return the leases of donors that the pager can use or is moving extents away from."""
    usable = {donor.uri for donor in found.donors if donor.state in pool.USABLE | pool.LEAVING}
    return [lease for lease in record.leases if lease.donor != THIS_HOST and lease.nbd_uri in usable]


def _as_leaving(donor: PagerDonor, leaving: Mapping[str, Leaving]) -> PagerDonor:
    if donor.uri not in leaving or not donor.used_slots:
        return donor
    state = "draining" if donor.state in pool.USABLE else donor.state
    return donor.model_copy(update={"state": state, "leaving": leaving[donor.uri]})


def _reason_to_stay(
    record: Record,
    found: PagerStatus,
    leases: Sequence[LeaseRecord],
    asked: Sequence[Survey],
) -> str | None:
    """Return why the content of a donor cannot move to the others; None if it can move, or is being moved."""
    by_uri = pool.states(found)
    if record.pager is None or all(by_uri[str(lease.nbd_uri)].state in pool.LEAVING for lease in leases):
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
