# SPDX-License-Identifier: MIT
"""A memserver without leases ends at once; one with leases names their holders and waits.

A memserver asks for its memory back without ending, too: at its owner's command, or when its machine is short of
memory.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.errors import DeadlineExceeded, DonorError
from ghostbox.memserver.leases import DrainCause
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers import forked
from helpers.donor import RunningDonor, donor_environment, running_donor
from helpers.nbd import held_connection

WAITS = "leases are held, and no new ones are given: the memserver ends when the last lease is released"


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
            assert "one: 4 MiB, held by tower/ana, 1 connections, 0 B in use" in donor.stderr()
            assert WAITS in donor.stderr()
            what = (
                f"there, on tower: ghostbox donor drain {donor.address} --vm ana (or --to-host), or ghostbox down ana"
            )
            assert what in donor.stderr()
            with pytest.raises(DonorError, match="is being shut down and gives no new leases"):
                _lease(donor, "three")
            assert client.status().draining is True
            client.release_lease("two")
            assert donor.process.poll() is None
        processes.wait_until(lambda: client.lease("one").connections == 0, timeout_s=10, what="the connection's end")
        client.release_lease("one")
        assert donor.wait() == 0
        _assert_nothing_is_left(donor)


def test_a_second_signal_asks_and_another_one_ends_it_with_leases_held(tmp_path: Path) -> None:
    question = "ends 1 leases, their memory is lost: once more within 10 s"
    with running_donor(tmp_path) as donor:
        _lease(donor)
        donor.interrupt()
        donor.wait_for_log(WAITS)
        donor.interrupt(signal.SIGINT)
        donor.wait_for_log(question)
        with DonorClient(donor.address) as client:
            assert client.lease("one").size_bytes == 4 * MIB

        for _ in range(10):  # a signal within the first second confirms nothing
            donor.interrupt(signal.SIGINT)
            with suppress(DeadlineExceeded):
                donor.wait_for_log("ends now: 1 leases are given up", timeout_s=1.5)
                break
        assert donor.wait() == 130
        assert donor.stderr().count(question) == 1
        assert "memserver 'donor' ended with 1 leases held: their memory is lost" in donor.stderr()
        assert "another signal confirmed the question" in donor.stderr()
        _assert_nothing_is_left(donor)


def test_a_terminal_that_closes_ends_it_only_when_nothing_is_held(tmp_path: Path) -> None:
    with running_donor(tmp_path, remind_every="100ms") as donor, DonorClient(donor.address) as client:
        _lease(donor)
        donor.interrupt(signal.SIGHUP)
        donor.wait_for_log(WAITS)
        donor.interrupt(signal.SIGHUP)
        donor.wait_for_log(WAITS, times=3)  # the memserver logs a reminder, and asks no question
        assert "once more" not in donor.stderr()
        assert client.status().drain_causes == ("ending",)
        client.release_lease("one")
        assert donor.wait() == 0
        _assert_nothing_is_left(donor)


def test_a_memserver_that_was_started_by_nohup_goes_on_when_its_terminal_closes(tmp_path: Path) -> None:
    with running_donor(tmp_path, prefix=["nohup"]) as donor, DonorClient(donor.address) as client:
        donor.interrupt(signal.SIGHUP)
        donor.interrupt(signal.SIGHUP)
        assert client.status().draining is False
        donor.interrupt(signal.SIGTERM)
        assert donor.wait() == 0


def test_the_drain_timeout_ends_it_with_leases_held(tmp_path: Path) -> None:
    with running_donor(tmp_path, drain_timeout="300ms") as donor:
        _lease(donor)
        donor.interrupt()
        assert donor.wait() == 124
        assert "ended with 1 leases held: their memory is lost" in donor.stderr()
        assert "after 0.3 s at the latest (a second signal asks whether to end at once)" in donor.stderr()
        assert "they were not released within 0.3 s (--drain-timeout)" in donor.stderr()
        _assert_nothing_is_left(donor)
        donor.process.stdout.close() if donor.process.stdout else None
        donor.restart()
        with DonorClient(donor.address) as client:
            assert client.leases() == []


def test_a_data_plane_that_dies_while_draining_does_not_end_the_wait(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor, DonorClient(donor.address) as client:
        _lease(donor)
        donor.interrupt()
        donor.wait_for_log(WAITS)
        processes.terminate(donor.data_plane_pid)
        donor.wait_for_log("restarted with empty memory")
        client.release_lease("one")
        assert donor.wait() == 0


def _ghostbox(donor: RunningDonor, *words: str) -> subprocess.CompletedProcess[str]:
    return forked.run_with(donor.env, *words)


def _drain(donor: RunningDonor, *words: str) -> subprocess.CompletedProcess[str]:
    return _ghostbox(donor, "memserver", "drain", "--name", "donor", *words)


def test_drain_refuses_new_leases_until_undone_and_outlives_the_control_plane(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        _lease(donor)
        asked = _drain(donor, "--no-wait", "--output", "json")
        assert asked.returncode == 0, asked.stderr
        status = json.loads(asked.stdout)
        assert (status["draining"], status["drain_causes"], status["leases"]) == (True, ["asked"], 1)
        donor.wait_for_log("asked to drain: this donor gives no new leases, 1 are held")
        donor.kill_control_plane()
        donor.restart()
        assert "still draining, as asked earlier" in donor.stderr()
        with DonorClient(donor.address) as client:
            with pytest.raises(DonorError, match="this donor is being drained and gives no new leases"):
                _lease(donor, "two")
            assert client.lease("one").size_bytes == 4 * MIB  # existing leases are served as before
            assert "draining (asked)" in _ghostbox(donor, "donor", "info", donor.address).stdout
            undone = _drain(donor, "--undo")
            assert (undone.returncode, undone.stdout) == (0, "donor is up: 1 leases held, 0 B in use\n"), undone.stderr
            donor.wait_for_log("the drain was taken back: leases are given again")
            _lease(donor, "two")
            assert client.status().drain_causes == ()


def test_drain_waits_for_the_hosts_and_says_what_is_held_when_they_take_too_long(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor, DonorClient(donor.address) as client:
        _lease(donor)
        late = _drain(donor, "--timeout", "200ms")
        assert late.returncode == 124
        assert "error: 1 leases are still held after 0.2 s; the donor goes on draining" in late.stderr
        assert "why: one: 4 MiB, held by tower/ana" in late.stderr
        argv = [sys.executable, "-m", "ghostbox.cli.main", "memserver", "drain", "--name", "donor", "--wait"]
        waiting = subprocess.Popen(argv, env=donor.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        donor.wait_for_log("asked to drain", times=2)
        assert waiting.poll() is None
        client.release_lease("one")
        out, err = waiting.communicate(timeout=20)
        assert (waiting.returncode, out) == (0, "donor is draining (asked): 0 leases held, 0 B in use\n"), err
        assert donor.process.poll() is None  # the memserver runs on


def test_a_drain_ends_with_the_memory_it_was_asked_for(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        with DonorClient(donor.address) as client:
            client.drain()
        data_plane = donor.data_plane_pid
        donor.kill_control_plane()
        processes.terminate(data_plane)
        donor.restart(port="0")
        with DonorClient(donor.address) as client:
            assert client.status().draining is False


def test_drain_without_a_memserver_names_those_that_run(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        missing = _ghostbox(donor, "memserver", "drain", "--name", "nobody")
        misplaced = _ghostbox(donor, "memserver", "--size", "1G", "drain")
        donor.kill_control_plane()
        dead = _drain(donor)
    assert missing.returncode == 3
    assert "error: no memserver 'nobody' runs on this machine" in missing.stderr
    assert "fix: --name donor" in missing.stderr
    assert misplaced.returncode == 2
    assert "error: --size is an option of ghostbox memserver itself" in misplaced.stderr
    assert dead.returncode == 3
    assert "fix: start one: ghostbox memserver" in dead.stderr


def _say_pressure(path: Path, avg10: float, avg60: float) -> None:
    draft = path.with_suffix(".new")
    lines = [f"{kind} avg10={avg10:.2f} avg60={avg60:.2f} avg300=0.00 total=1\n" for kind in ("some", "full")]
    draft.write_text("".join(lines))
    draft.replace(path)


def test_memory_pressure_drains_and_its_end_takes_that_back(tmp_path: Path) -> None:
    pressure = tmp_path / "memory.pressure"
    _say_pressure(pressure, 19.9, 0)

    def causes() -> tuple[str, ...]:
        return client.status().drain_causes

    with (
        running_donor(tmp_path, drain_on_pressure="20%", pressure_file=str(pressure)) as donor,
        DonorClient(donor.address) as client,
    ):
        processes.wait_until(lambda: client.status().memory_pressure == 19.9, timeout_s=20, what="a look")
        assert causes() == ()
        _say_pressure(pressure, 20.5, 3)
        processes.wait_until(lambda: causes() == (DrainCause.PRESSURE,), timeout_s=20, what="the drain")
        donor.wait_for_log("waited for memory in 20.5 % of the last 10 s (limit 20.0 %): draining")
        with pytest.raises(DonorError, match="this donor is short of memory and gives no new leases"):
            _lease(donor)
        _drain(donor, "--undo")  # --undo ends a drain that the owner began; the pressure began this one
        assert causes() == ("pressure",)
        _say_pressure(pressure, 10.5, 3)  # the pressure is not yet below half of the limit
        processes.wait_until(lambda: client.status().memory_pressure == 10.5, timeout_s=20, what="a look")
        assert causes() == ("pressure",)
        _say_pressure(pressure, 4, 3)
        processes.wait_until(lambda: causes() == (), timeout_s=20, what="the drain's end")
        donor.wait_for_log("memory pressure is gone (4.0 % of the last 10 s)")
        _lease(donor)


def test_pressure_that_cannot_be_read_is_refused_at_the_start(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_text("")
    wanted = {
        str(empty): f"cannot read the memory pressure from {empty}: it has no line 'some avg10=",
        f"{empty}.none": f"cannot read the memory pressure from {empty}.none: No such file or directory",
    }
    words = ["memserver", "--name", "donor", "--drain-on-pressure", "20%", "--pressure-file"]
    env = donor_environment(tmp_path, tmp_path)
    for path, message in wanted.items():
        argv = [sys.executable, "-m", "ghostbox.cli.main", *words, path]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 5
        assert f"error: {message}" in done.stderr
        assert "fix: start the kernel with psi=1" in done.stderr
