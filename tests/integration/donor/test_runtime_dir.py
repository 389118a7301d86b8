# SPDX-License-Identifier: MIT
"""A donor whose runtime directory is removed, or replaced at a new login, serves on and is found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.system.process_table import start_ticks
from ghostbox.units import MIB
from helpers import forked
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
    """Remove the runtime directory's contents, as a cleaner or the end of a login does."""
    shutil.rmtree(donor.env["GHOSTBOX_RUNTIME_DIR"])


def command(donor: RunningDonor, *words: str) -> subprocess.CompletedProcess[str]:
    return forked.run_with(donor.env, "memserver", *words)


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


@pytest.mark.parametrize("other_login", [False, True])
def test_data_plane_is_found_in_the_process_table_when_the_records_are_damaged(
    tmp_path: Path, other_login: bool
) -> None:
    with running_donor(tmp_path) as donor:
        content = lend(donor, tmp_path)
        data_plane = donor.data_plane_pid
        donor.kill_control_plane()
        records = donor.state_dir / "leases.json"
        records.write_text("{")
        if other_login:
            donor.env["GHOSTBOX_RUNTIME_DIR"] += "/another"
        else:
            empty(donor)
        donor.restart()
        assert f"leaserecords{records}aredamaged" in donor.stderr().replace(" ", "")  # the log breaks long lines
        assert f"the data plane (pid {data_plane}) runs, and no record names it" in donor.stderr()
        assert (donor.ready["adopted"], donor.ready["leases"]) == (True, 1)
        assert donor.ready["data_plane_pid"] == data_plane
        assert read_export(donor.uri("one"), tmp_path / "out") == content


def test_donor_keeps_the_id_that_hosts_know_when_its_identity_is_damaged_too(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        lend(donor, tmp_path)
        with DonorClient(donor.address) as client:
            before = client.status()
        donor.kill_control_plane()
        for name in ("leases.json", "identity.json"):
            (donor.state_dir / name).write_text("{")
        donor.restart()
        with DonorClient(donor.address) as client:
            after = client.status()
        assert (after.id, after.leases) == (before.id, 1)


def test_memserver_of_another_name_or_id_is_not_taken_for_this_one(tmp_path: Path) -> None:
    with running_donor(tmp_path, name="one") as one, running_donor(tmp_path, name="two") as two:
        one.kill_control_plane()
        (one.state_dir / "leases.json").write_text("{")
        (one.state_dir / "identity.json").write_text((two.state_dir / "identity.json").read_text())
        one.env["GHOSTBOX_RUNTIME_DIR"] += "/another"
        one.restart(port="0")
        assert one.ready["adopted"] is False
        assert one.ready["data_plane_pid"] != two.data_plane_pid


def test_memserver_refuses_the_records_of_a_newer_version_and_leaves_them(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        lend(donor, tmp_path)
        data_plane = donor.data_plane_pid
        donor.kill_control_plane()
        records = donor.state_dir / "leases.json"
        document = json.loads(records.read_text())
        newer = json.dumps(document | {"version": 2})
        records.write_text(newer)
        with pytest.raises(RuntimeError) as caught:
            donor.restart()
        said = " ".join(str(caught.value).split())
        assert "was written by a newer version of GhostBox: its form is 2, this version knows 1" in said
        assert records.read_text() == newer
        document["plane"]["rack"] = document["leases"][0]["rack"] = 7
        records.write_text(json.dumps(document))
        donor.restart()
        assert (donor.ready["adopted"], donor.ready["data_plane_pid"]) == (True, data_plane)
        saved = json.loads(records.read_text())
        assert (saved["plane"]["rack"], saved["leases"][0]["rack"]) == (7, 7)


def test_data_plane_that_dies_without_a_directory_is_started_again(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        data_plane = donor.data_plane_pid
        empty(donor)
        os.kill(data_plane, signal.SIGKILL)
        donor.wait_for_log("was restarted with empty memory")
        with DonorClient(donor.address) as client:
            client.create_lease("one", 4 * MIB, ANA)


def test_data_plane_that_does_not_know_the_signal_is_never_sent_it(tmp_path: Path) -> None:
    """Versions before 2026-11-29 would end at the signal, with all memory that they lend.

    Another process is in the place of such a data plane.
    """
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
