# SPDX-License-Identifier: MIT
"""Each command that changes the donors of a running VM knows a donor by its identity, and a machine by its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ghostbox import donors, pager
from ghostbox.donors.client import DonorClient
from ghostbox.errors import GhostboxError, Refused
from ghostbox.session import observe, pool, supervisor, view
from ghostbox.session.record import THIS_HOST, LeaseRecord, VmState
from ghostbox.system import processes
from ghostbox.system.processes import ControlError
from ghostbox.units import MIB
from helpers.donor import RunningDonor, running_donor
from helpers.pager import running_memserver
from helpers.reconcile_lab import Lab, laboratory, leases_of

pytestmark = pytest.mark.timeout(180)


def _other_address(donor: RunningDonor) -> str:
    """Return another name of the donor's address: 127.0.0.1 if the donor listens on all addresses."""
    return donor.address.replace("127.0.0.2", "127.2")


def _leases(lab: Lab) -> tuple[LeaseRecord, ...]:
    record = lab.book.load()
    assert record is not None
    return record.leases


def test_a_donor_that_is_used_is_not_taken_twice_whatever_its_address_is_spelt_like(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["96M"]) as lab:
        [donor] = lab.donors
        known, other = donor.address, _other_address(donor)
        for address, known_as in ((known, ""), (other, f", as {known}")):
            lab.book.load()
            with pytest.raises(Refused) as caught:
                pool.add(lab.book, address, 16 * MIB)
            assert caught.value.message == f"VM 'lab' uses donor {address} already{known_as}: it lends 64 MiB"
            assert caught.value.hint == f"to borrow more from it: ghostbox donor add {known} --vm lab --more"
        assert leases_of(donor) == 1
        pool.add(lab.book, other, 16 * MIB, more=True)
        assert [lease.donor for lease in _leases(lab)] == [known, known]
        names = {each.lender for each in _leases(lab)}
        assert len(names) == 1


def test_a_pager_that_has_no_place_left_for_a_donor_says_what_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["96M"]) as lab, running_memserver(x="4M") as other:
        control = lab.book.files.pager_control
        with pytest.raises(ControlError, match="at most 64 donors"):
            for _ in range(64):
                pager.add_donor(control, other.uri("x"))
                pager.drain_donor(control, other.uri("x"))
                processes.wait_until(lambda: removed(lab, other.uri("x")), timeout_s=20, what="the drain")
        lab.book.load()
        before = leases_of(lab.donors[0])
        with pytest.raises(GhostboxError) as caught:
            pool.add(lab.book, lab.donors[0].address, 16 * MIB, more=True)
        assert caught.value.message == f"the pager cannot use donor {lab.donors[0].address}"
        assert "at most 64 donors, those included that were removed since" in str(caught.value.why)
        assert caught.value.hint == "ghostbox recover --restart lab"
        assert leases_of(lab.donors[0]) == before


def removed(lab: Lab, uri: str) -> bool:
    """Remove a donor from the pager, if the donor holds nothing any more."""
    try:
        pager.remove_donor(lab.book.files.pager_control, uri)
    except ControlError as err:
        assert err.code == "busy"
        return False
    return True


def test_a_second_copy_never_goes_to_the_machine_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines = ["tower", "attic", "tower"]
    with laboratory(tmp_path, monkeypatch, ["96M", "96M", "96M"], machines=machines, replicas=2) as lab:
        record = lab.book.load()
        assert record is not None
        hosts = {donor.uri: donor.host for donor in pool.status(lab.book).donors}
        assert len(set(hosts.values())) == 2
        assert {lease.machine for lease in record.leases} == set(hosts.values())
        lab.client.command("fill", seed=1)
        lab.until_mended()
        with pytest.raises(Refused, match="does not fit on the others") as caught:
            pool.drain(lab.book, lab.donors[1].address)
        assert "are on one machine" in str(caught.value.why)


def test_a_donor_that_the_user_drained_is_not_used_until_the_user_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["96M", "96M"]) as lab:
        first = lab.donors[0].address
        lab.book.load()
        pool.drain(lab.book, "d0")  # by the donor's name
        lab.until_mended()
        assert all(lease.donor != first for lease in _leases(lab))
        record = lab.book.load()
        assert record is not None
        assert [each.address for each in pool.offers(record)] == [lab.donors[1].address]
        assert [each.name for each in record.drained] == ["d0"]
        lab.book.load()
        with pytest.raises(Refused, match="does not fit on the others") as caught:  # not to the first donor
            pool.drain(lab.book, lab.donors[1].address)
        assert f"ghostbox donor add {first} --vm lab uses that drained donor again; or " in str(caught.value.hint)
        pool.add(lab.book, _other_address(lab.donors[0]), 32 * MIB)
        record = lab.book.load()
        assert record is not None
        assert record.drained == ()
        assert len(pool.offers(record)) == 2


def test_a_drain_that_is_called_off_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with laboratory(tmp_path, monkeypatch, ["96M", "96M"], rebuild_rate_bytes=MIB) as lab:
        lab.client.command("fill", seed=2)
        lab.book.load()
        pool.drain(lab.book, lab.donors[0].address)
        assert len(lab.book.record.drained) == 1
        with pytest.raises(Refused, match="is moving away from donor") as caught:
            pool.add(lab.book, lab.donors[0].address, None)
        assert str(caught.value.hint).startswith("to use it after all: ghostbox donor keep")
        pool.keep(lab.book, "d0")
        assert not lab.book.record.drained


def test_memory_of_this_host_is_on_the_machine_of_the_donors_that_run_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_donor(tmp_path, machine=None) as own, DonorClient(own.address) as client:
        held = pool.held_by(LeaseRecord(THIS_HOST, "x", MIB))
        assert client.status().machine == held.machine
        assert donors.machine_at("localhost:1") == held.machine
        old = dataclasses.replace(client.status(), machine="", id="")
        assert donors.offer_of(own.address, old).machine == held.machine


def test_oddities_of_donors_that_a_user_names_are_said(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor, DonorClient(donor.address) as client:
        status = client.status()
    clone = dataclasses.replace(status, incarnation="other", machine="m2")
    assert donors.oddities([("a", status), ("b", status)]) == ["a and b are one donor: it is used once"]
    [line] = donors.oddities([("a", status), ("b", clone)])
    assert line.startswith("'donor' at a and 'donor' at b have one id, so one was cloned: they are two donors here")
    assert donors.donor_key(clone.id, clone.incarnation) != donors.donor_key(status.id, status.incarnation)


def test_a_clone_at_its_address_does_not_speak_for_a_donor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with laboratory(tmp_path, monkeypatch, ["48M", "48M"]) as lab:
        first, second = _leases(lab)
        gone = dataclasses.replace(first, name="not-there", plane="of the original")
        clone = dataclasses.replace(second, donor_id=first.donor_id, plane=first.plane)
        for leases, expected in (((gone, second), True), ((gone, clone), False)):
            lab.reconciler._book.save(dataclasses.replace(lab.book.record, leases=leases))
            assert lab.reconciler._absence(gone).gone is expected
        lab.reconciler._book.save(lab.book.record)


def test_a_donor_that_ends_is_shown_as_leaving_from_the_first_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["48M", "48M"]) as lab:
        lab.client.command("fill", seed=3)
        lab.until_mended()
        first = lab.donors[0]
        assert lab.shown() == ""
        first.interrupt()
        first.wait_for_log("leases are held, and no new ones are given")
        assert lab.level() == "degraded"
        said = lab.shown()
        assert said.startswith(f"donor {first.address} wants its memory back (it is being shut down, and ends when it")
        other = lab.donors[1].address
        assert f"which have no room elsewhere: donor {other}: offers 16 MiB, the VM needs 64 MiB and has 32 MiB" in said
        assert f"ghostbox donor drain {first.address} --vm lab --to-host" in lab.advice()
        monkeypatch.setattr(observe, "heal_if_idle", lambda book: observe.Seen(VmState.RUNNING))
        monkeypatch.setattr(supervisor, "ensure", lambda book, paths: False)
        assert [each.health for each in view.summaries(lab.paths)] == ["degraded"]
