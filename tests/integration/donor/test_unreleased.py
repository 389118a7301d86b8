# SPDX-License-Identifier: MIT
"""Leases that a silent donor holds are noted, retried in the background, and written off at the user's command."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ghostbox import donors
from ghostbox.cli.output import Stages
from ghostbox.donors import Assignment
from ghostbox.donors import known as known_donors
from ghostbox.donors.client import DonorClient, NoAnswer
from ghostbox.donors.models import Holder
from ghostbox.errors import GhostboxError, NotFound, Refused
from ghostbox.paths import Paths, find, make_directory
from ghostbox.session import cleanup, donor_commands, pool, unreleased
from ghostbox.session.record import Book, LeaseRecord, Record, VmState
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers.donor import RunningDonor, running_donor
from helpers.pager import short_dir
from helpers.ports import free_port


@pytest.fixture
def own() -> Iterator[Paths]:
    with short_dir() as root:
        yield Paths(root / "s", root / "r", root / "c", root / "e", find().native)


def _lease(donor: RunningDonor, name: str = "w-1") -> LeaseRecord:
    asked = LeaseRecord(donor.address, name, 4 * MIB)
    [made] = donors.acquire([Assignment(asked.donor, asked.name, asked.size_bytes, Holder("here", "work"))])
    return pool.as_made(asked, made)


def _stopped(own: Paths, *leases: LeaseRecord, state: VmState = VmState.STOPPED) -> Book:
    book = Book(own.vm("work"))
    make_directory(book.files.state)
    book.save(
        Record(
            name="work", state=state, uuid="u", mac="m", ssh_port=1, created_at="2026-01-01T00:00:00+00:00",
            domain="ghostbox-work", libvirt_uri="test:///default", image="none", user="ghost", virt="tcg", cpus=1,
            memory_bytes=1, remote_memory_bytes=1, cache_bytes=1, disk_bytes=1, new=False, leases=leases,
        )
    )  # fmt: skip
    return book


@contextmanager
def _silent() -> Iterator[str]:
    """Yield an address where connections are neither accepted nor refused, as with a donor that is off."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for each in waiting:
                each.setblocking(False)
                each.connect_ex(full.getsockname())
            yield f"127.0.0.1:{full.getsockname()[1]}"
        finally:
            for each in waiting:
                each.close()


def test_leases_of_silent_donors_leave_the_record_at_once_and_are_noted(own: Paths) -> None:
    with _silent() as one, _silent() as two:
        leases = [LeaseRecord(address, f"w-{number}", MIB) for number, address in enumerate((one, two, one, two))]
        book = _stopped(own, *leases)
        errors = cleanup.release_all(book)
    assert len(errors) == 4
    assert "lease w-0 could not be released: cannot reach donor" in errors[0].message
    assert errors[0].hint is not None
    assert f"if the donor is gone for good: ghostbox donor forget {one} --write-off" in errors[0].hint
    assert book.record.leases == ()
    noted = unreleased.load(own.state)
    assert [each.lease for each in noted] == leases
    assert noted[0].vm == "work"
    assert "cannot reach donor" in noted[0].why


def test_what_was_noted_is_released_when_the_donor_is_back(own: Paths, tmp_path: Path) -> None:
    with running_donor(tmp_path, control_port=str(free_port())) as donor:
        lease = _lease(donor)
        donor.kill_control_plane()
        book = _stopped(own, lease)
        assert len(cleanup.release_all(book)) == 1
        assert unreleased.settle(own) == 1
        assert unreleased.load(own.state)[0].why.startswith("cannot reach donor")
        donor.restart()
        with DonorClient(donor.address) as client:
            assert len(client.leases()) == 1
            os.utime(own.state / "unreleased-leases.trying", (0, 0))  # no command has tried lately
            assert unreleased.try_in_background(own)
            assert not unreleased.try_in_background(own)
            processes.wait_until(lambda: not client.leases(), timeout_s=30, what="the release")
        processes.wait_until(lambda: not unreleased.load(own.state), timeout_s=30, what="the note being struck out")
        assert not unreleased.try_in_background(own)


def test_another_donor_at_the_address_releases_nothing(own: Paths, tmp_path: Path) -> None:
    port = free_port()
    with running_donor(tmp_path, control_port=str(port)) as donor:
        lease = _lease(donor)
        donor.kill_control_plane()
        with running_donor(tmp_path, name="other", control_port=str(port)) as other:
            with DonorClient(other.address) as client:
                client.create_lease(lease.name, MIB, Holder("x", "y"))
                with pytest.raises(NoAnswer, match="another memserver answers at"):
                    unreleased.release(lease)
                assert len(client.leases()) == 1
            # The donor's present address is known: the release is asked for there, too.
            donor.restart(control_port=str(free_port()))
            with DonorClient(donor.address) as client:
                known_donors.note(own, client.status(), donor.address)
                unreleased.note(own.state, "work", lease, "away")
                assert unreleased.settle(own) == 0
                assert client.leases() == []
            with DonorClient(other.address) as client:
                assert len(client.leases()) == 1


def test_listing_donors_asks_none_of_before(own: Paths, tmp_path: Path) -> None:
    """A donor that is asked no question is waited for no moment."""
    with (
        running_donor(tmp_path) as donor,
        DonorClient(donor.address) as client,
        socket.create_server(("127.0.0.1", 0)) as gone,
    ):
        gone.setblocking(False)
        silent = f"127.0.0.1:{gone.getsockname()[1]}"
        known_donors.note(own, client.status(), donor.address)
        unreleased.note(own.state, "gone", LeaseRecord(silent, "g-1", MIB), "away")
        (own.state / "unreleased-leases.trying").touch()
        rows = donor_commands.listed([donor.address, "localhost:1"], own)
        with pytest.raises(BlockingIOError):
            gone.accept()
    assert [(row.address, row.known, row.status is not None, len(row.unreleased)) for row in rows] == [
        (donor.address, True, True, 0),
        ("localhost:1", False, False, 0),
        (silent, False, False, 1),
    ]
    assert rows[2].error is None


def test_memory_of_a_donor_that_is_gone_is_written_off_unless_a_vm_runs_on_it(own: Paths) -> None:
    lease = LeaseRecord("attic:1", "w-1", 8 * MIB, donor_name="attic", nbd_uri="nbd://attic/w-1")
    unreleased.note(own.state, "gone", lease, "away")
    assert donor_commands.owed_by("attic", own) == donor_commands.owed_by("attic:1", own) != ()
    _stopped(own, lease, state=VmState.RUNNING)
    with pytest.raises(Refused, match="VM 'work' runs and has 8 MiB on donor attic: that memory is not written off"):
        donor_commands.check_unused("attic", own)
    _stopped(own)
    donor_commands.check_unused("attic", own)
    assert donor_commands.forget("attic", own) is None
    unreleased.write_off(own.state, donor_commands.owed_by("attic", own))
    assert unreleased.load(own.state) == ()
    with pytest.raises(NotFound, match="no donor 'attic' is known"):
        donor_commands.forget("attic", own)


def test_a_donor_is_noted_when_no_vm_runs(own: Paths, tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        found = donor_commands.add(None, "work", donor.address, None, own, Stages())
        assert (found.new, found.vm, found.lease) == (True, None, None)
        assert (found.donor.address, found.donor.name) == (donor.address, "donor")
        assert not donor_commands.add(None, "work", "donor", None, own, Stages()).new  # by the donor's name
        with pytest.raises(GhostboxError, match="no VM 'work' runs that could borrow from donor"):
            donor_commands.add(None, "work", donor.address, MIB, own, Stages())
        os.kill(donor.data_plane_pid, signal.SIGKILL)
    with pytest.raises(NoAnswer):
        donor_commands.add(None, "work", donor.address, None, own, Stages())


def test_a_donor_that_moved_is_known_once_though_it_was_rebooted(own: Paths, tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor, DonorClient(donor.address) as client:
        before = dataclasses.replace(client.status(), machine="of the boot before")
        known_donors.note(own, before, "localhost:1")
        donor_commands.add(None, "work", donor.address, None, own, Stages())
    assert [each.address for each in known_donors.load(own)] == [donor.address]


def test_a_damaged_note_is_named(own: Paths) -> None:
    own.state.mkdir()
    (own.state / "unreleased-leases.json").write_text("{}")
    with pytest.raises(GhostboxError, match=r"cannot read .*unreleased-leases\.json"):
        unreleased.load(own.state)
    assert not unreleased.try_in_background(own)  # and no command fails because of the donor
    book = _stopped(own, LeaseRecord("localhost:1", "w-1", MIB))
    assert len(cleanup.release_all(book)) == 1
    assert len(book.record.leases) == 1  # no lease is forgotten
