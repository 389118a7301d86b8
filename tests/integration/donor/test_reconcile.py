# SPDX-License-Identifier: MIT
"""The supervisor's rounds recover a VM after a death: with real donors, a real pager, and a process in QEMU's place.

Tests that need a VM (its domain, its pauses, the supervisor as a process) are in tests/vm.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from ghostbox import pager
from ghostbox.donors.client import DonorClient
from ghostbox.errors import Refused
from ghostbox.session import backup, pool
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers.donor import running_donor
from helpers.reconcile_lab import POOL, kill, laboratory, leases_of, supervised

pytestmark = pytest.mark.timeout(180)


def test_copies_of_a_dead_donor_find_room_on_the_others_and_it_can_lend_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["128M"] * 3, replicas=2) as lab:
        lab.client.command("fill", seed=4)
        lab.until_mended()
        dead = lab.donors[0]
        kill(dead)

        def noticed() -> bool:
            lab.reconciler.round()
            return f"donor {dead.address} was up and is down" in lab.said()

        processes.wait_until(noticed, timeout_s=20, what="the donor's death")
        processes.wait_until(
            lambda: lab.reconciler.round() and lab.lent(1) + lab.lent(2) >= 2 * POOL,
            timeout_s=30,
            what="room for the copies",
        )
        lab.client.command("verify", seed=4)
        dead.restart()
        lab.until_mended()
        lab.client.command("verify", seed=4)
        assert leases_of(dead) == 0, "its lease held nothing any more"
        assert f"memory-gone: {dead.address} runs again, without the" in lab.said()
        assert f"donor-removed: {dead.address} holds nothing of this VM any more" in lab.said()


def test_only_the_donor_that_lent_memory_is_believed_when_it_says_that_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["128M"]) as lab:
        [donor] = lab.donors
        lab.client.command("fill", seed=6)
        with DonorClient(donor.address) as client:
            own = client.status().id
        donor.kill_control_plane()
        host, _, port = donor.address.rpartition(":")
        data_plane = donor.data_plane_pid
        os.kill(data_plane, signal.SIGSTOP)
        try:
            with running_donor(tmp_path, size="64M", name="other", bind=host, control_port=port) as other:
                processes.wait_until(
                    lambda: lab.reconciler.round() and "another-donor" in lab.said(),
                    timeout_s=30,
                    what="a word about it",
                )
                with DonorClient(other.address) as client:
                    strange = client.status().id
                text = f"another memserver answers at that address: 'other' (id {strange}) instead of 'd0' (id {own})"
                waits = "the VM waits for the donor that has its memory"
                assert f"another-donor: {donor.address}: {text}: {waits}" in lab.said()
                assert lab.shown().startswith(f"donor {donor.address} has not answered for ")
                assert f": {text}; it holds 64 MiB" in lab.shown()
        finally:
            os.kill(data_plane, signal.SIGCONT)
        donor.restart()
        lab.reconciler.forget()
        lab.until_mended()
        lab.client.command("verify", seed=6)
        assert "memory-gone" not in lab.said()
        kill(donor)
        donor.restart()
        processes.wait_until(lambda: lab.reconciler.round() and "is lost" in lab.said(), timeout_s=30, what="the loss")
        with DonorClient(donor.address) as client:
            assert client.status().id == own


def test_copy_on_disk_outlives_the_only_donor_which_then_lends_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["96M"], with_backup=True) as lab:
        lab.client.command("fill", seed=5)
        lab.until_mended()
        kill(lab.donors[0])
        processes.wait_until(
            lambda: lab.reconciler.round() and "room-failed" in lab.said(), timeout_s=30, what="a word about room"
        )
        assert "the VM needs 64 MiB" in lab.said()
        lab.client.command("verify", seed=5)
        [server] = backup.find(lab.book.files)
        lab.donors[0].restart()
        lab.reconciler.forget()
        lab.until_mended()
        lab.client.command("verify", seed=5)
        os.kill(server, signal.SIGKILL)
        processes.wait_until(lambda: not backup.find(lab.book.files), timeout_s=10, what="its end")
        lab.reconciler.round()
        assert "backup-restarted" in lab.said()
        lab.until_mended()


def test_drains_outlive_the_supervisor_and_only_the_donor_that_asked_can_take_its_own_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["96M"] * 3, rebuild_rate_bytes=1 * MIB) as lab:
        lab.client.command("fill", seed=7)
        control = lab.book.files.pager_control
        first, second = (lab.donors[number].address for number in (0, 1))
        with DonorClient(first) as client:
            with supervised(lab):
                client.drain()
                lab.wait_for(f"move from {first} to the others")
            client.keep()
            lab.book.load()
            begun = pool.drain(lab.book, second)
            assert begun.bytes_to_move > 8 * MIB
            with supervised(lab):
                lab.wait_for(f"drain-ended: {first} is kept")
                processes.control_request(control, "set-rebuild-rate", bytes_per_s=0)
                processes.wait_until(lambda: leases_of(lab.donors[1]) == 0, timeout_s=40, what="the end of its leases")
        assert f"drain-ended: {second}" not in lab.said()
        lab.until_mended()
        lab.client.command("verify", seed=7)
        record = lab.book.load()
        assert record is not None
        assert record.asked_to == ()


def test_drain_that_does_not_fit_is_refused_with_figures_and_said_once_if_the_donor_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["48M", "48M"]) as lab:
        first = lab.donors[0].address
        lab.book.load()
        with pytest.raises(Refused, match=f"what donor {first} holds does not fit on the others") as caught:
            pool.drain(lab.book, first)
        assert "offers 16 MiB, the VM needs 64 MiB and has 32 MiB" in str(caught.value.why)
        assert f"ghostbox donor drain {first} --vm lab --to-host" in str(caught.value.hint)
        lab.donors[0].interrupt()
        processes.wait_until(
            lambda: lab.reconciler.round() and "drain-failed" in lab.said(), timeout_s=30, what="a word about the drain"
        )
        lab.reconciler.forget()
        assert lab.reconciler.round()
        assert lab.said().count("drain-failed") == 1


@pytest.mark.parametrize("pager_dies", [False, True])
def test_runtime_directory_that_was_removed_is_made_anew_under_a_vm_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pager_dies: bool
) -> None:
    """If the pager dies before its page map has a name again, only the supervisor still holds the map open."""
    with laboratory(tmp_path, monkeypatch, ["96M"]) as lab:
        lab.client.command("fill", seed=9)
        lab.until_mended()
        runtime = lab.book.files.runtime
        pid = pager.find(lab.book.files.pager_control)
        shutil.rmtree(runtime)
        if pager_dies:
            os.kill(pid[0], signal.SIGKILL)
            processes.wait_until(lambda: not processes.pid_alive(pid[0]), timeout_s=10, what="its end")
        lab.until_mended()
        lab.client.command("verify", seed=9)
        found = pager.status(lab.book.files.pager_control)
        assert found is not None
        assert (found.pid == pid[0]) is not pager_dies
        assert ("pager-recovered" if pager_dies else "runtime-restored") in lab.said()
        assert lab.book.files.pager_state.exists()
        assert leases_of(lab.donors[0]) == 1
