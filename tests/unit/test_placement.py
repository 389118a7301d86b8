# SPDX-License-Identifier: MIT
"""Remote memory is split over donors in proportion to their free memory."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ghostbox.errors import DonorTooSmall, Refused
from ghostbox.plan.placement import Held, Offer, Share, distinct, missing, split
from ghostbox.units import GIB, MIB

EXTENT = 16 * MIB


def test_one_donor_gives_all() -> None:
    assert split(GIB, [Offer("a", 4 * GIB)], extent_bytes=EXTENT) == (Share("a", GIB),)


def test_donors_give_in_proportion_to_what_is_free() -> None:
    shares = split(2 * GIB, [Offer("a", GIB), Offer("b", 3 * GIB)], extent_bytes=EXTENT)
    assert shares == (Share("a", GIB // 2), Share("b", 3 * GIB // 2))


def test_donor_that_is_not_needed_gets_no_lease() -> None:
    offers = [Offer("tiny", EXTENT), Offer("full", 0), Offer("big", 64 * GIB)]
    assert split(GIB, offers, extent_bytes=EXTENT) == (Share("big", GIB),)


def test_exactly_what_is_free_fits() -> None:
    offers = [Offer("a", GIB), Offer("b", GIB)]
    assert split(2 * GIB, offers, extent_bytes=EXTENT) == (Share("a", GIB), Share("b", GIB))


def test_single_donor_too_small_is_named_with_the_figures() -> None:
    with pytest.raises(DonorTooSmall, match=re.escape("donor tower:10810: offers 2 GiB, the VM needs 8 GiB")) as caught:
        split(8 * GIB, [Offer("tower:10810", 2 * GIB)], extent_bytes=EXTENT)
    assert caught.value.hint == "lower vm.remote_memory or add a donor"
    assert caught.value.exit_code == 5


def test_donors_that_are_too_small_together_are_listed() -> None:
    with pytest.raises(DonorTooSmall, match="2 donors: offer 3 GiB together, the VM needs 8 GiB") as caught:
        split(8 * GIB, [Offer("a", GIB), Offer("b", 2 * GIB)], extent_bytes=EXTENT)
    assert caught.value.why == "a 1 GiB, b 2 GiB"


@settings(deadline=None)  # a busy machine may stop any of the runs for a while
@given(
    needed=st.integers(1, 64 * GIB),
    free=st.lists(st.integers(0, 64 * GIB), min_size=1, max_size=8),
    extent=st.sampled_from([64 * 1024, EXTENT, GIB]),
)
def test_shares_add_up_and_never_exceed_what_is_free(needed: int, free: list[int], extent: int) -> None:
    offers = [Offer(str(number), n_bytes) for number, n_bytes in enumerate(free)]
    try:
        shares = split(needed, offers, extent_bytes=extent)
    except DonorTooSmall:
        assert sum(n_bytes // extent for n_bytes in free) < -(-needed // extent)
        return
    assert sum(share.size_bytes for share in shares) == -(-needed // extent) * extent
    for share in shares:
        assert 0 < share.size_bytes <= free[int(share.address)]
        assert share.size_bytes % extent == 0


def test_two_copies_lie_on_different_machines_and_none_holds_more_than_one() -> None:
    offers = [Offer("big:1", 64 * GIB), Offer("a:1", 2 * GIB), Offer("b:1", 2 * GIB)]
    shares = split(2 * GIB, offers, extent_bytes=EXTENT, replicas=2)
    assert shares == (Share("big:1", 2 * GIB), Share("a:1", GIB), Share("b:1", GIB))


def test_two_donors_of_one_machine_count_as_one_unless_that_is_allowed() -> None:
    offers = [Offer("tower:1", 4 * GIB), Offer("tower:2", 4 * GIB)]
    with pytest.raises(Refused, match="2 copies need donors on 2 machines, and these are on 1") as caught:
        split(GIB, offers, extent_bytes=EXTENT, replicas=2)
    assert caught.value.why == "tower:1 and tower:2 are on one machine"
    assert "--allow-same-host" in str(caught.value.hint) and "--backup PATH" in str(caught.value.hint)
    allowed = split(GIB, offers, extent_bytes=EXTENT, replicas=2, same_host=True)
    assert allowed == (Share("tower:1", GIB), Share("tower:2", GIB))


def test_memory_that_only_one_machine_has_is_too_little_for_two_copies() -> None:
    with pytest.raises(DonorTooSmall, match=re.escape("the VM needs 8 GiB (2 copies of 4 GiB)")) as caught:
        split(4 * GIB, [Offer("a", 64 * GIB), Offer("b", GIB)], extent_bytes=EXTENT, replicas=2)
    assert caught.value.why == "a 64 GiB, b 1 GiB; no machine can hold more than one copy, 4 GiB"


def test_what_is_held_already_is_not_taken_again() -> None:
    held = [Held("a", GIB), Held("b", GIB)]
    assert split(2 * GIB, [Offer("a", GIB), Offer("c", 8 * GIB)], extent_bytes=EXTENT, held=held) == ()
    shares = split(2 * GIB, [Offer("a", GIB), Offer("c", GIB)], extent_bytes=EXTENT, replicas=2, held=held)
    assert shares == (Share("a", GIB), Share("c", GIB))


@settings(deadline=None)  # a busy machine may stop any of the runs for a while
@given(
    needed=st.integers(1, 8 * GIB),
    free=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 8 * GIB), st.integers(0, 4 * GIB)), min_size=1, max_size=6
    ),
    replicas=st.sampled_from([1, 2]),
    same_host=st.booleans(),
)
def test_copies_fit_whenever_they_can(
    needed: int, free: list[tuple[int, int, int]], replicas: int, same_host: bool
) -> None:
    """The rule at the module's top holds, and taken and held memory can be laid out by it."""
    offers = [Offer(f"h{host}:{number + 1}", n_bytes) for number, (host, n_bytes, _) in enumerate(free)]
    held = [Held(offer.address, there) for offer, (_, _, there) in zip(offers, free, strict=True) if there]
    there = {each.address: each.size_bytes for each in held}
    n_extents = -(-needed // EXTENT)

    def usable(more: dict[str, int]) -> int:
        per_host: dict[str, int] = {}
        for offer in offers:
            host = offer.address if same_host else offer.address.partition(":")[0]
            own = there.get(offer.address, 0) // EXTENT + more.get(offer.address, 0) // EXTENT
            per_host[host] = per_host.get(host, 0) + own
        return sum(min(count, n_extents) for count in per_host.values())

    try:
        shares = split(needed, offers, extent_bytes=EXTENT, replicas=replicas, same_host=same_host, held=held)
    except Refused:
        assert usable({offer.address: offer.free_bytes for offer in offers}) < replicas * n_extents
        return
    assert usable({share.address: share.size_bytes for share in shares}) >= replicas * n_extents
    free_of = {offer.address: offer.free_bytes for offer in offers}
    assert all(0 < share.size_bytes <= free_of[share.address] for share in shares)


def test_one_donor_under_two_addresses_is_one_donor() -> None:
    offers = [Offer("127.0.0.1:1", GIB, "m", "d"), Offer("localhost:1", GIB, "m", "d")]
    assert distinct(offers) == offers[:1]
    assert split(GIB, offers, extent_bytes=EXTENT) == (Share("127.0.0.1:1", GIB),)
    with pytest.raises(DonorTooSmall, match=re.escape("donor 127.0.0.1:1: offers 1 GiB, the VM needs 2 GiB")):
        split(2 * GIB, offers, extent_bytes=EXTENT)
    for same_host in (False, True):
        with pytest.raises(Refused, match="2 copies need donors on 2 machines, and these are on 1") as caught:
            split(GIB, offers, extent_bytes=EXTENT, replicas=2, same_host=same_host)
        assert caught.value.why == "127.0.0.1:1 and localhost:1 are one donor"


def test_two_donors_of_one_machine_on_two_networks_are_on_one_machine() -> None:
    offers = [Offer("10.0.0.2", GIB, "m", "d1"), Offer("192.168.7.2", GIB, "m", "d2"), Offer("attic", GIB, "n", "d3")]
    assert split(GIB, offers, extent_bytes=EXTENT, replicas=2) == (
        Share("10.0.0.2", GIB // 2),
        Share("192.168.7.2", GIB // 2),
        Share("attic", GIB),
    )
    with pytest.raises(Refused) as caught:
        split(GIB, offers[:2], extent_bytes=EXTENT, replicas=2)
    assert caught.value.why == "10.0.0.2 and 192.168.7.2 are on one machine"


def test_what_a_donor_lends_already_counts_for_it_under_any_address() -> None:
    held = [Held("10.0.0.2", GIB, "m", "d1")]
    offers = [Offer("192.168.7.2", 4 * GIB, "m", "d1"), Offer("attic", 4 * GIB, "n", "d3")]
    assert split(GIB, offers, extent_bytes=EXTENT, replicas=2, held=held) == (Share("attic", GIB),)
    assert split(GIB, offers, extent_bytes=EXTENT, replicas=2, held=held, same_host=True) == (Share("attic", GIB),)
    assert missing(GIB, held, extent_bytes=EXTENT, replicas=2) == GIB


def test_donors_that_were_cloned_are_two() -> None:
    offers = [Offer("a", GIB, "m", "id/1"), Offer("b", GIB, "n", "id/2")]
    assert len(split(GIB, offers, extent_bytes=EXTENT, replicas=2)) == 2
