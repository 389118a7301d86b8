# SPDX-License-Identifier: MIT
"""This host knows each donor once, however its address is spelt."""

from __future__ import annotations

from pathlib import Path

import pytest

from ghostbox.donors import known as known_donors
from ghostbox.donors.client import DonorStatus
from ghostbox.donors.known import KnownDonor
from ghostbox.errors import GhostboxError, NotFound, UsageError
from ghostbox.paths import Paths


@pytest.fixture
def own(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "s", tmp_path / "r", tmp_path / "c", tmp_path / "e", tmp_path / "n")


def _status(id: str, *, name: str = "tower", machine: str = "m1") -> DonorStatus:
    return DonorStatus("-", name, "1", "i", 10809, 1, 0, 1, 0, 0, draining=False, id=id, machine=machine)


def test_what_was_noted_is_known_until_it_is_forgotten(own: Paths) -> None:
    assert known_donors.load(own) == ()
    tower, new = known_donors.note(own, _status("a"), "tower")
    assert new
    attic, _ = known_donors.note(own, _status("b", name="attic", machine="m2"), "192.168.7.3")
    assert known_donors.load(own) == (KnownDonor("tower", "a", "tower", "m1"), attic)
    assert known_donors.forget(own, "attic") == attic
    assert known_donors.forget(own, "tower:10810") == tower
    assert known_donors.load(own) == ()


def test_a_donor_under_another_address_is_the_same_donor(own: Paths) -> None:
    known_donors.note(own, _status("a"), "tower")
    known_donors.note(own, _status("b", name="attic"), "attic")
    found, new = known_donors.note(own, _status("a"), "192.168.7.2:10810")
    assert not new
    assert [each.address for each in known_donors.load(own)] == [found.address, "attic"]


def test_donors_that_were_cloned_are_two(own: Paths) -> None:
    known_donors.note(own, _status("a"), "192.168.7.2")
    _, new = known_donors.note(own, _status("a", machine="m2"), "192.168.7.3")
    assert new
    assert len(known_donors.load(own)) == 2
    with pytest.raises(UsageError, match="'tower' is the name of 2 donors") as caught:
        known_donors.forget(own, "tower")
    assert caught.value.hint == "give the address of one: 192.168.7.2, 192.168.7.3"


def test_what_is_not_known_is_not_forgotten(own: Paths) -> None:
    known_donors.note(own, _status("a"), "tower")
    with pytest.raises(NotFound, match="no donor 'attic' is known") as caught:
        known_donors.forget(own, "attic")
    assert caught.value.hint == "known are: tower"


def test_a_damaged_file_is_named(own: Paths) -> None:
    own.state.mkdir()
    (own.state / "known-donors.json").write_text("[")
    with pytest.raises(GhostboxError, match=r"cannot read .*known-donors.json") as caught:
        known_donors.load(own)
    assert "mend it, or rm" in str(caught.value.hint)
