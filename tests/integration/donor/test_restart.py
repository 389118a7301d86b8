# SPDX-License-Identifier: MIT
"""The control plane, the data plane or both die and are started again: leased memory is kept, or known to be lost."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from ghostbox import paths
from ghostbox.donors.client import DonorClient, Lease
from ghostbox.donors.models import Holder
from ghostbox.errors import NotFound
from ghostbox.memserver.data_plane import OOM_SCORE_ADJ
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers.donor import RunningDonor, running_donor
from helpers.nbd import held_connection, read_export, write_export
from helpers.ports import free_port

ANA = Holder("tower", "ana")


def _lease(donor: RunningDonor, name: str = "one", size_bytes: int = 4 * MIB) -> Lease:
    with DonorClient(donor.address) as client:
        return client.create_lease(name, size_bytes, ANA)


def _fill(donor: RunningDonor, name: str, tmp_path: Path) -> bytes:
    content = random.Random(7).randbytes(4 * MIB)
    (tmp_path / "in").write_bytes(content)
    write_export(donor.uri(name), tmp_path / "in")
    return content


def test_a_killed_control_plane_is_restarted_with_leases_and_memory_intact(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        before = _lease(donor)
        content = _fill(donor, "one", tmp_path)
        data_plane = donor.data_plane_pid
        with held_connection(donor.uri("one")):
            donor.kill_control_plane()
            assert read_export(donor.uri("one"), tmp_path / "out") == content  # the data plane serves meanwhile
            donor.restart()
            with DonorClient(donor.address) as client:
                after = client.lease("one")
                assert client.status().incarnation == donor.ready["incarnation"]
            assert after.connections == 1
        assert donor.ready["adopted"] is True
        assert donor.ready["leases"] == 1
        assert donor.data_plane_pid == data_plane
        kept = ("name", "size_bytes", "incarnation", "holder", "created_at", "nbd_port")
        assert [getattr(after, key) for key in kept] == [getattr(before, key) for key in kept]
        assert read_export(donor.uri("one"), tmp_path / "out") == content


def test_clients_notice_nothing_of_a_control_plane_that_is_killed_again_and_again(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        _lease(donor, size_bytes=16 * MIB)
        words = {"port": donor.nbd_port, "export": "one", "trickle": 200, "vanish": 4, "ms": 600_000}
        program = paths.find().native / "ghostbox-bench-client"
        argv = [str(program), "crowd", *(f"{key}={value}" for key, value in words.items())]
        load = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            for _ in range(2):
                _wait_for_reads(donor)
                donor.kill_control_plane()
                _wait_for_reads(donor)
                donor.restart()
                with DonorClient(donor.address) as client:
                    assert client.lease("one").connections >= 200
            assert load.poll() is None, load.stderr.read() if load.stderr else ""
        finally:
            load.kill()
            load.communicate()
        assert _counters(donor)["errors"] == 0


def _wait_for_reads(donor: RunningDonor) -> None:
    """Wait until each of 200 clients was served at least once more."""
    wanted = _counters(donor)["reads"] + 1000
    processes.wait_until(lambda: _counters(donor)["reads"] > wanted, timeout_s=60, what="clients to be served")


def _counters(donor: RunningDonor) -> dict[str, int]:
    counters: dict[str, int] = processes.control_request(donor.control_socket, "status")["counters"]
    return counters


@pytest.mark.parametrize("adopted", [False, True])
def test_a_killed_data_plane_is_restarted_and_its_leases_are_of_a_new_incarnation(
    tmp_path: Path, adopted: bool
) -> None:
    with running_donor(tmp_path) as donor:
        if adopted:
            donor.kill_control_plane()
            donor.restart()
        before = _lease(donor)
        _fill(donor, "one", tmp_path)
        first_plane, first_incarnation = donor.data_plane_pid, donor.ready["incarnation"]
        os.kill(first_plane, signal.SIGKILL)
        donor.wait_for_log("restarted with empty memory; 1 leases lost their content")
        assert f"the data plane (pid {first_plane}) died: " in donor.stderr()
        assert ("it was adopted" if adopted else "killed by SIGKILL") in donor.stderr()
        assert "the memory of lease one (held by tower/ana) was lost" in donor.stderr()
        with DonorClient(donor.address) as client:
            after, status = client.lease("one"), client.status()
        assert donor.data_plane_pid != first_plane
        assert after.incarnation != before.incarnation
        assert status.incarnation != first_incarnation
        kept = ("name", "size_bytes", "holder", "created_at", "nbd_port")
        assert [getattr(after, key) for key in kept] == [getattr(before, key) for key in kept]
        assert read_export(donor.uri("one"), tmp_path / "out") == bytes(4 * MIB)
        # and the records follow: a control plane that adopts the new data plane finds nothing lost
        donor.kill_control_plane()
        donor.restart()
        with DonorClient(donor.address) as client:
            assert client.lease("one").incarnation == after.incarnation


def test_leases_whose_memory_is_gone_at_start_are_lost_and_never_made_again(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        _lease(donor)
        data_plane = donor.data_plane_pid
        donor.kill_control_plane()
        os.kill(data_plane, signal.SIGKILL)
        processes.wait_until(lambda: not processes.pid_alive(data_plane), timeout_s=10, what="end of the data plane")
        donor.restart(port="0")
        assert donor.ready["adopted"] is False
        assert "lease one (4 MiB, held by tower/ana) is gone: its memory was lost" in donor.stderr()
        with DonorClient(donor.address) as client:
            assert client.leases() == []
            assert client.status().free_bytes == 64 * MIB
            with pytest.raises(
                NotFound, match=r"no lease named 'one': its memory \(4 MiB, held by tower/ana\) was lost"
            ):
                client.lease("one")
            client.create_lease("one", MIB, ANA)  # the name is free


def test_an_export_of_another_incarnation_than_recorded_is_a_lost_lease(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        _lease(donor)
        donor.kill_control_plane()
        processes.control_request(donor.control_socket, "export-remove", name="one", force=True)
        processes.control_request(donor.control_socket, "export-add", name="one", size_bytes=4 * MIB)
        donor.restart()
        assert "lease one (4 MiB, held by tower/ana) is gone: its memory was lost" in donor.stderr()


def test_memory_without_a_record_is_kept_and_said_so(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        before = _lease(donor)
        content = _fill(donor, "one", tmp_path)
        donor.kill_control_plane()
        (donor.state_dir / "leases.json").unlink()
        donor.restart()
        assert "export one has no lease record: kept, its holder is unknown" in donor.stderr()
        with DonorClient(donor.address) as client:
            after = client.lease("one")
        assert (after.incarnation, str(after.holder)) == (before.incarnation, "unknown/unknown")
        assert read_export(donor.uri("one"), tmp_path / "out") == content


@pytest.mark.parametrize("made", [False, True])
def test_a_lease_cut_off_while_it_was_made_is_completed_or_forgotten(tmp_path: Path, made: bool) -> None:
    with running_donor(tmp_path) as donor:
        _lease(donor)
        donor.kill_control_plane()
        records = donor.state_dir / "leases.json"
        document = json.loads(records.read_text())
        document["leases"][0]["incarnation"] = None  # the record is written before the data plane makes the export
        records.write_text(json.dumps(document))
        if not made:
            processes.control_request(donor.control_socket, "export-remove", name="one")
        donor.restart()
        with DonorClient(donor.address) as client:
            assert [(lease.name, lease.holder) for lease in client.leases()] == ([("one", ANA)] if made else [])
        assert "lost" not in donor.stderr()


def test_a_data_plane_that_keeps_dying_ends_the_memserver(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        for number in range(1, 6):
            os.kill(donor.data_plane_pid, signal.SIGKILL)
            donor.wait_for_log("was restarted with empty memory", times=number)
        os.kill(donor.data_plane_pid, signal.SIGKILL)
        assert donor.wait() == 1
        assert "the data plane died 6 times within 1 min 0 s" in donor.stderr()


def test_a_stopped_data_plane_is_not_taken_for_a_dead_one(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        _lease(donor)
        pid = donor.data_plane_pid
        donor.kill_control_plane()
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(RuntimeError, match=rf"(?s)does not answer on.*kill -CONT {pid}"):
                donor.restart()
        finally:
            os.kill(pid, signal.SIGCONT)
        donor.restart()
        assert donor.ready["leases"] == 1


def test_adopting_with_another_size_is_refused_while_leases_are_held(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        _lease(donor)
        donor.kill_control_plane()
        message = r"(?s)status 5.*still\s+holds\s+1\s+leases.*it\s+lends\s+64\s+MiB,\s+--size\s+says\s+32M"
        with pytest.raises(RuntimeError, match=message) as caught:
            donor.restart(size="32M")
        said = " ".join(str(caught.value).split())
        assert "to keep it: --size 67108864; another size needs an empty donor: ghostbox memserver drain" in said
        donor.restart(size="64M")
        assert donor.ready["leases"] == 1


def test_memory_that_is_not_locked_is_not_locked_behind_its_holders_back(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        unlocked = donor.data_plane_pid
        _lease(donor)
        donor.kill_control_plane()
        donor.argv.append("--lock-memory")
        with pytest.raises(RuntimeError) as caught:
            donor.restart()
        said = " ".join(str(caught.value).split())
        assert "it does not lock its memory, some of which may be in this machine's swap" in said
        assert "to keep it: no --lock-memory; to lock it, get the memory back first" in said
        donor.argv.remove("--lock-memory")
        donor.restart()
        with DonorClient(donor.address) as client:
            client.release_lease("one")
        donor.kill_control_plane()
        donor.argv.append("--lock-memory")
        donor.restart()
        assert donor.data_plane_pid != unlocked
        assert processes.control_request(donor.control_socket, "status")["locked"] is True


@pytest.mark.parametrize("bind", ["127.0.0.2", "0.0.0.0"])
def test_a_donor_with_another_address_goes_on_with_its_leases_at_both(tmp_path: Path, bind: str) -> None:
    with running_donor(tmp_path) as donor:
        before = _lease(donor)
        content = _fill(donor, "one", tmp_path)
        old, old_address, data_plane = donor.uri("one"), donor.address, donor.data_plane_pid
        with held_connection(old):
            donor.kill_control_plane()
            donor.argv += [] if bind.startswith("127") else ["--insecure"]
            donor.restart(bind=bind)
            with DonorClient(old_address) as client:
                after = client.lease("one")
            assert (after.incarnation, after.connections) == (before.incarnation, 1)
        assert (donor.ready["adopted"], donor.data_plane_pid) == (True, data_plane)
        assert donor.nbd_address == f"{bind}:{before.nbd_port}"
        assert f"the leases can still be reached on 127.0.0.1 port {before.nbd_port}, besides {bind}" in donor.stderr()
        assert read_export(old, tmp_path / "out") == content
        assert read_export(donor.uri("one").replace("0.0.0.0", "127.0.0.9"), tmp_path / "out") == content
        donor.kill_control_plane()
        donor.restart()  # and once more, with the options that are in force now
        with DonorClient(old_address) as client:
            client.release_lease("one")


def test_a_donor_with_another_port_goes_on_with_its_leases_at_both(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        _lease(donor)
        content = _fill(donor, "one", tmp_path)
        old = donor.uri("one")
        donor.kill_control_plane()
        port = free_port()
        donor.restart(port=str(port))
        assert donor.nbd_port == port
        assert read_export(old, tmp_path / "out") == content
        assert read_export(donor.uri("one"), tmp_path / "out") == content


def test_a_donor_with_leases_on_a_network_is_not_closed_to_it_behind_their_holders_back(tmp_path: Path) -> None:
    with running_donor(tmp_path, bind="0.0.0.0", insecure="") as donor:
        _lease(donor)
        donor.kill_control_plane()
        donor.argv.remove("--insecure")
        with pytest.raises(RuntimeError) as caught:
            donor.restart(bind="127.0.0.1")
        said = " ".join(str(caught.value).split())
        assert (
            f"it listens on 0.0.0.0 port {donor.nbd_port}, where hosts reach their leases; that is not allowed without"
            in said
        )
        assert "to keep it: --bind 0.0.0.0 --insecure; or get its memory back first: ghostbox memserver drain" in said
        donor.argv.append("--insecure")
        donor.restart()
        assert donor.ready["leases"] == 1


def test_an_idle_data_plane_with_other_options_is_replaced(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        first = donor.data_plane_pid
        donor.kill_control_plane()
        donor.restart(size="32M")
        assert (donor.ready["adopted"], donor.ready["size_bytes"]) == (False, 32 * MIB)
        assert not processes.pid_alive(first)


def test_the_kernel_is_told_to_take_the_data_plane_first(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        score = int(Path(f"/proc/{donor.data_plane_pid}/oom_score_adj").read_text())
        own = int(Path(f"/proc/{donor.process.pid}/oom_score_adj").read_text())
    assert score == OOM_SCORE_ADJ
    assert own == int(Path("/proc/self/oom_score_adj").read_text()) < score
