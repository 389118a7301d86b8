# SPDX-License-Identifier: MIT
"""A donor whose runtime directory is removed, or is another one after a new login, serves on and is found."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ghostbox.donor_client import DonorClient, Holder
from ghostbox.process_table import start_ticks
from ghostbox.units import MIB
from helpers.donor import RunningDonor, running_donor
from helpers.nbd import read_export, write_export

ANA = Holder("tower", "ana")


def lend(donor: RunningDonor, tmp_path: Path) -> bytes:
    with DonorClient(donor.address) as client:
        client.create_lease("one", 4 * MIB, ANA)
    content = os.urandom(4 * MIB)
    (tmp_path / "in").write_bytes(content)
    write_export(donor.uri("one"), tmp_path / "in")
    return content


def empty(donor: RunningDonor) -> None:
    """Remove the runtime directory, as a cleaner or the end of a login does."""
    shutil.rmtree(donor.env["GHOSTBOX_RUNTIME_DIR"])


def command(donor: RunningDonor, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "ghostbox", "memserver", *words]
    return subprocess.run(argv, env=donor.env, capture_output=True, text=True, check=False, timeout=60)


def test_control_plane_goes_on_answering_and_lending(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        content = lend(donor, tmp_path)
        empty(donor)
        with DonorClient(donor.address) as client:
            assert [lease.name for lease in client.leases()] == ["one"]
            client.create_lease("two", 4 * MIB, ANA)
        assert read_export(donor.uri("one"), tmp_path / "out") == content
        assert "control.sock was gone: the data plane (pid " in donor.stderr()
        drained = command(donor, "drain", "--name", "donor", "--no-wait")
        assert drained.returncode == 0, drained.stderr
        second = command(
            donor, "--name", "donor", "--size", "1M", "--reserve", "0", "--port", "0", "--control-port", "0"
        )
        assert second.returncode == 5
        assert f"memserver 'donor' is already running (pid {donor.process.pid})" in " ".join(second.stderr.split())


@pytest.mark.parametrize("other_login", [False, True])
def test_control_plane_that_follows_adopts_the_data_plane_with_its_leases(tmp_path: Path, other_login: bool) -> None:
    with running_donor(tmp_path) as donor:
        content = lend(donor, tmp_path)
        data_plane = donor.data_plane_pid
        donor.kill_control_plane()
        if other_login:
            donor.env["GHOSTBOX_RUNTIME_DIR"] += "/another"
        else:
            empty(donor)
        donor.restart()
        assert (donor.ready["adopted"], donor.ready["leases"]) == (True, 1)
        assert donor.ready["data_plane_pid"] == data_plane
        assert read_export(donor.uri("one"), tmp_path / "out") == content
        with DonorClient(donor.address) as client:
            client.release_lease("one")


def test_data_plane_that_dies_without_a_directory_is_started_again(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        data_plane = donor.data_plane_pid
        empty(donor)
        os.kill(data_plane, signal.SIGKILL)
        donor.wait_for_log("was restarted with empty memory")
        with DonorClient(donor.address) as client:
            client.create_lease("one", 4 * MIB, ANA)


def test_data_plane_that_does_not_know_the_signal_is_never_sent_it(tmp_path: Path) -> None:
    """Versions before 2026-11-29 would end, and what they lent with them. Here another process is in its place."""
    with running_donor(tmp_path) as donor:
        lend(donor, tmp_path)
        donor.kill_control_plane()
        data_plane = donor.data_plane_pid
        with subprocess.Popen(["sleep", "600"]) as old:
            records = donor.state_dir / "leases.json"
            known = f'"pid": {data_plane},'
            ticks = start_ticks(data_plane)
            text = records.read_text()
            assert known in text and str(ticks) in text
            records.write_text(text.replace(known, f'"pid": {old.pid},').replace(str(ticks), str(start_ticks(old.pid))))
            donor.control_socket.rename(donor.control_socket.with_suffix(".aside"))
            with pytest.raises(RuntimeError, match=rf"data plane \(pid {old.pid}\) does not make it anew"):
                donor.restart()
            assert old.poll() is None
            records.write_text(text)
            donor.control_socket.with_suffix(".aside").rename(donor.control_socket)
            old.kill()
        donor.restart()
        assert donor.ready["leases"] == 1
