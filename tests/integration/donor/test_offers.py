# SPDX-License-Identifier: MIT
"""``up`` and ``plan`` take memory of a VM's donors as they offer it, and report each donor that does not offer it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

import pytest

from ghostbox.donors.client import DonorClient, NoAnswer
from ghostbox.donors.known import KnownDonor
from ghostbox.errors import Refused
from ghostbox.paths import Paths, find, make_directory
from ghostbox.plan.placement import Offer
from ghostbox.session import planning, pool
from ghostbox.session.record import Book, LeaseRecord, Record, VmState
from ghostbox.units import MIB
from helpers.donor import RunningDonor, running_donor
from helpers.pager import short_dir
from helpers.reconcile_lab import PLAN, record_of


@pytest.fixture(scope="module")
def donor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    with running_donor(tmp_path_factory.mktemp("donor"), size="64M") as running:
        yield running


@pytest.fixture
def book(donor: RunningDonor) -> Iterator[Book]:
    with short_dir() as root:
        made = Book(Paths(root / "s", root / "r", root / "c", root / "e", find().native).vm("lab"))
        make_directory(made.files.state)
        made.save(record_of(PLAN, (donor.address,), None))
        yield made


def _known(donor: RunningDonor, address: str | None = None) -> KnownDonor:
    with DonorClient(donor.address) as client:
        status = client.status()
    return KnownDonor(address or donor.address, status.id, status.name, status.machine)


def _changed(book: Book, **fields: object) -> Record:
    return book.save(dataclasses.replace(book.record, **fields))  # type: ignore[arg-type]


def test_a_donor_that_was_drained_is_not_taken_by_the_next_up_until_it_is_named(
    book: Book, donor: RunningDonor, caplog: pytest.LogCaptureFixture
) -> None:
    other = donor.address.replace("127.0.0.1", "localhost")
    record = _changed(book, state=VmState.STOPPED, drained=(_known(donor),))
    with pytest.raises(Refused, match="all donors of this VM were drained from it") as caught:
        planning.offers((donor.address, other), record)
    assert caught.value.hint == "name those to use again: ghostbox up --donor ADDRESS"
    assert f"donor {donor.address} was drained from VM 'lab' and is not used; to use it again: ghostbox up lab" in (
        caplog.text
    )
    pool.use_again(book, [other])
    assert book.record.drained == ()
    assert len(planning.offers((donor.address,), book.record)) == 1


def test_two_addresses_of_one_donor_are_said_to_be_one(donor: RunningDonor, caplog: pytest.LogCaptureFixture) -> None:
    other = donor.address.replace("127.0.0.1", "localhost")
    offers = planning.offers((donor.address, other))
    assert {offer.donor for offer in offers} == {offers[0].donor}
    assert f"{donor.address} and {other} are one donor: it is used once" in caplog.text
    caplog.clear()
    planning.offers((donor.address, other), again=True)
    assert caplog.text == ""


def test_a_plan_for_a_vm_that_runs_counts_what_it_holds(book: Book, donor: RunningDonor) -> None:
    lease = pool.borrow(book, LeaseRecord(donor.address, "lab-own", 48 * MIB))
    try:
        [offer] = planning.offers((donor.address,))
        assert offer.free_bytes == 16 * MIB
        record = _changed(book, leases=(lease,))
        [offer] = planning.offers((donor.address,), record)
        assert offer.free_bytes == 64 * MIB
    finally:
        with DonorClient(donor.address) as client:
            client.release_lease("lab-own")


def test_of_donors_that_are_only_known_those_that_answer_count(
    donor: RunningDonor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    found = planning.offers((donor.address, "127.0.0.1:1"), named=False)
    assert [type(each) for each in found] == [Offer]
    assert "donor 127.0.0.1:1 is known here and does not answer: it is left out" in caplog.text
    with pytest.raises(NoAnswer, match="cannot reach donor 127.0.0.1:1"):
        planning.offers(("127.0.0.1:1",), named=False)
    with pytest.raises(NoAnswer):
        planning.offers((donor.address, "127.0.0.1:1"))
