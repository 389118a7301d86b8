# SPDX-License-Identifier: MIT
"""Remote memory is split over donors in proportion to what they have free."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostbox.errors import DonorTooSmall
from ghostbox.placement import Offer, Share, split
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
