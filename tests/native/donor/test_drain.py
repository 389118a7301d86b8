# SPDX-License-Identifier: MIT
"""How a memserver ends: at once without leases; with leases it says who holds them and waits."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from ghostbox import processes
from ghostbox.donor_client import DonorClient, Holder
from ghostbox.errors import DonorError
from ghostbox.units import MIB
from helpers.donor import RunningDonor, running_donor
from helpers.nbd import held_connection


def _lease(donor: RunningDonor, name: str = "one") -> None:
    with DonorClient(donor.address) as client:
        client.create_lease(name, 4 * MIB, Holder("tower", "ana"))


def _assert_nothing_is_left(donor: RunningDonor) -> None:
    for pid in donor.data_plane_pids:
        assert not processes.pid_alive(pid)
    assert not donor.control_socket.parent.exists()


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_without_leases_it_ends_at_once_and_leaves_nothing(tmp_path: Path, sig: signal.Signals) -> None:
    with running_donor(tmp_path) as donor:
        donor.interrupt(sig)
        assert donor.wait() == 0
        _assert_nothing_is_left(donor)
        assert donor.stderr() == ""


def test_with_leases_it_names_the_holders_refuses_new_ones_and_ends_with_the_last(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor, DonorClient(donor.address) as client:
        _lease(donor, "one")
        _lease(donor, "two")
        with held_connection(donor.uri("one")):
            donor.interrupt()
            donor.wait_for_log("two: 4 MiB, held by tower/ana, 0 connections")
            assert "one: 4 MiB, held by tower/ana, 1 connections" in donor.stderr()
            assert "waiting 5 min 0 s for their release (a second signal ends at once)" in donor.stderr()
            with pytest.raises(DonorError, match="is being shut down and gives no new leases"):
                _lease(donor, "three")
            assert client.status().draining is True
            client.release_lease("two")
            assert donor.process.poll() is None
        processes.wait_until(lambda: client.lease("one").connections == 0, timeout_s=10, what="the connection's end")
        client.release_lease("one")
        assert donor.wait() == 0
        _assert_nothing_is_left(donor)


def test_a_second_signal_ends_it_with_leases_held(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        _lease(donor)
        donor.interrupt()
        donor.wait_for_log("waiting 5 min")
        donor.interrupt(signal.SIGINT)
        assert donor.wait() == 130
        assert "memserver 'donor' ended with 1 leases held: their memory is lost" in donor.stderr()
        assert "a second signal came" in donor.stderr()
        _assert_nothing_is_left(donor)


def test_the_drain_timeout_ends_it_with_leases_held(tmp_path: Path) -> None:
    with running_donor(tmp_path, drain_timeout="300ms") as donor:
        _lease(donor)
        donor.interrupt()
        assert donor.wait() == 124
        assert "ended with 1 leases held: their memory is lost" in donor.stderr()
        assert "they were not released within 0.3 s" in donor.stderr()
        _assert_nothing_is_left(donor)
        donor.process.stdout.close() if donor.process.stdout else None
        donor.restart()
        with DonorClient(donor.address) as client:
            assert client.leases() == []


def test_a_data_plane_that_dies_while_draining_does_not_end_the_wait(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor, DonorClient(donor.address) as client:
        _lease(donor)
        donor.interrupt()
        donor.wait_for_log("waiting 5 min")
        processes.terminate(donor.data_plane_pid)
        donor.wait_for_log("restarted with empty memory")
        client.release_lease("one")
        assert donor.wait() == 0
