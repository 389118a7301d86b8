# SPDX-License-Identifier: MIT
"""Which rows of a scan are one donor, and which are not what they seem."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ghostbox.discovery.doubts import judged
from ghostbox.discovery.found import Found
from ghostbox.discovery.record import Announced
from ghostbox.discovery.scan import merged
from ghostbox.donors.client import DonorStatus
from ghostbox.donors.pairings import Pairing

PRINT = "ab" * 32
OTHER_PRINT = "cd" * 32
ID, OTHER_ID = "0123456789abcdef", "fedcba9876543210"
KNOWN = [Pairing((), PRINT, "", "", donor=ID, name="tower")]
TOWER = Found(
    "tower",
    ID,
    "192.0.2.2:10810",
    announced=Announced("tower", ID, "0.2.0", PRINT),
    instance="tower",
    round_trip_us=200.0,
    fingerprint=PRINT,
)
GIVEN = Found("", "", "198.51.100.2:10810", round_trip_us=100.0, fingerprint=PRINT)


def status(name: str = "tower", donor_id: str = ID, incarnation: str = "one") -> DonorStatus:
    return DonorStatus("", name, "0.2.0", incarnation, 10809, 1, 0, 1, 0, 0, False, id=donor_id)


def imitation(**changed: Any) -> Found:
    said = Announced("tower", ID, "0.2.0", OTHER_PRINT)
    fake = replace(TOWER, address="192.0.2.66:10810", instance="tower-2", announced=said, fingerprint=OTHER_PRINT)
    return replace(fake, **changed)


def problem_of(row: Found, *others: Found) -> str:
    return judged([row, *others], KNOWN)[0].problem


def test_a_paired_donor_is_trusted() -> None:
    (row,) = judged([replace(TOWER, paired=True)], KNOWN)
    assert (row.problem, row.state) == ("", "paired")


def test_a_donor_with_the_name_of_a_paired_one_and_another_certificate_is_named() -> None:
    (row,) = judged([imitation(id=OTHER_ID)], KNOWN)
    assert row.state == "do not trust"
    assert row.problem == (
        "it calls itself 'tower', which this host is paired with, but shows the certificate cdcdcdcdcdcdcdcd instead of"
        " abababababababab"
    )
    assert "ghostbox donor forget tower" in row.hint


def test_a_donor_with_the_id_of_a_paired_one_and_no_certificate_is_named() -> None:
    said = Announced("attic", ID, "0.2.0")
    row = imitation(name="attic", announced=said, fingerprint="")
    assert "shows no certificate instead of abababababababab" in problem_of(row)


def test_a_donor_that_shows_another_certificate_than_it_announces_is_named() -> None:
    said = Announced("attic", OTHER_ID, "0.2.0", PRINT)
    row = imitation(name="attic", id=OTHER_ID, announced=said)
    assert problem_of(row) == "it announces the certificate abababababababab and shows cdcdcdcdcdcdcdcd"
    assert problem_of(replace(row, fingerprint="")) == "it announces the certificate abababababababab and shows none"


def test_a_donor_that_announces_another_name_than_its_own_is_named() -> None:
    said = Announced("attic", OTHER_ID, "0.2.0")
    row = imitation(name="cellar", id=OTHER_ID, announced=said, fingerprint="", status=status("cellar", OTHER_ID))
    assert problem_of(row) == "it announces itself as 'attic' and says that it is 'cellar'"


def test_two_donors_with_one_id_are_both_named() -> None:
    one = replace(TOWER, name="attic", id=OTHER_ID, announced=None, fingerprint="", status=status("attic", OTHER_ID))
    two = replace(one, address="192.0.2.9:10810", name="copy", status=status("copy", OTHER_ID, "two"))
    rows = judged(merged([one, two]), [])
    assert [row.problem.partition(":")[0] for row in rows] == [
        "it has the same id as 'copy' at 192.0.2.9",
        "it has the same id as 'attic' at 192.0.2.2",
    ]
    assert "remove identity.json from its state directory" in rows[0].hint


def test_two_strangers_with_one_name_are_both_named() -> None:
    one = replace(TOWER, name="attic", id=OTHER_ID, announced=None, fingerprint=OTHER_PRINT)
    two = replace(one, id="0" * 16, address="192.0.2.9:10810", fingerprint="ef" * 32)
    rows = judged([one, two], [])
    assert rows[0].problem == "two donors are called 'attic': this one, and the one at 192.0.2.9:10810"
    assert "memserver.name" in rows[1].hint


def test_the_paired_donor_is_not_blamed_for_its_imitator() -> None:
    real, fake = judged([replace(TOWER, paired=True), imitation(id=OTHER_ID)], KNOWN)
    assert (real.problem, bool(fake.problem)) == ("", True)


def test_one_donor_at_two_addresses_is_one_row_with_the_nearer_address_first() -> None:
    (row,) = merged([TOWER, GIVEN])
    assert (row.name, row.address, row.also) == ("tower", "198.51.100.2:10810", ("192.0.2.2:10810",))
    assert row.announced == TOWER.announced


def test_one_process_at_two_addresses_is_one_row() -> None:
    one = replace(GIVEN, id=ID, fingerprint="", status=status())
    (row,) = merged([one, replace(one, address="[fd00::2]:10810", round_trip_us=50.0)])
    assert (row.address, row.also) == ("[fd00::2]:10810", ("198.51.100.2:10810",))


def test_two_announcements_of_one_certificate_from_two_addresses_are_two_donors() -> None:
    twin = replace(TOWER, address="192.0.2.9:10810", instance="tower-2")
    rows = judged(merged([TOWER, twin]), [])
    assert len(rows) == 2
    assert all("it has the same id as" in row.problem for row in rows)


def test_an_address_that_does_not_answer_is_no_imitation() -> None:
    row = imitation(unreached="connection refused", round_trip_us=None, fingerprint="")
    (found,) = judged([row], KNOWN)
    assert (found.problem, found.state) == ("", "no answer")
