# SPDX-License-Identifier: MIT
"""What a memserver refuses to start with, and what it says."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ghostbox.donor_client import DonorClient, Holder
from ghostbox.memserver.identity import machine_digest
from ghostbox.units import GIB, MIB
from helpers.donor import donor_environment, memserver_argv, running_donor


@pytest.fixture
def runtime() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="gb-"))
    yield directory
    shutil.rmtree(directory)


def _fails(tmp_path: Path, runtime: Path, options: dict[str, str], **env: str) -> tuple[int, str]:
    """Run a memserver that does not start; return its exit code and stderr on one line."""
    base = {"name": "donor", "size": "32M", "reserve": "0", "port": "0", "control-port": "0"}
    argv = memserver_argv({**base, **options})
    argv.remove("--json")
    full_env = donor_environment(tmp_path, runtime, env)
    done = subprocess.run(argv, env=full_env, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == ""
    assert not list(runtime.rglob("control.sock"))  # no data plane was left
    return done.returncode, " ".join(done.stderr.split())


def test_more_than_the_machine_has_is_refused_with_the_figures(tmp_path: Path, runtime: Path) -> None:
    code, text = _fails(tmp_path, runtime, {"size": "1000T", "reserve": "1M"})
    assert code == 5
    assert "error: cannot lend 1000 TiB: " in text
    assert "are available, 1 MiB of them are kept in reserve, which leaves" in text


def test_a_reserve_over_all_memory_is_refused(tmp_path: Path, runtime: Path) -> None:
    code, text = _fails(tmp_path, runtime, {"size": "auto", "reserve": "1000T"})
    assert code == 5
    assert "error: cannot lend memory: " in text
    assert "fix: end something that uses memory, or lower --reserve" in text


@pytest.mark.parametrize("bind", ["0.0.0.0", "192.0.2.1", "::"])
def test_an_address_that_others_reach_needs_insecure(tmp_path: Path, runtime: Path, bind: str) -> None:
    code, text = _fails(tmp_path, runtime, {"bind": bind})
    assert code == 5
    assert f"error: refusing to listen on {bind}: there is no encryption and no authentication yet" in text
    assert "why: anyone who reaches the ports can read and overwrite the memory that VMs keep here" in text
    assert "add --insecure" in text


def test_its_owner_can_tell_on_which_machine_it_runs(tmp_path: Path) -> None:
    with running_donor(tmp_path, machine=None) as donor:
        with DonorClient(donor.address) as client:
            assert client.status().machine == machine_digest()
        donor.kill_control_plane()
        donor.argv += ["--machine", "rack-1", "--remind-every", "1s"]
        donor.restart()
        with DonorClient(donor.address) as client:
            assert client.status().machine == machine_digest("rack-1")


def test_insecure_lets_it_listen_everywhere(tmp_path: Path) -> None:
    with running_donor(tmp_path, bind="0.0.0.0", insecure="") as donor:
        port = donor.address.rpartition(":")[2]
        with DonorClient(f"127.0.0.1:{port}") as client:
            assert client.status().name == "donor"
        assert "listening on 0.0.0.0 without encryption or authentication: anyone who reaches" in donor.stderr()


def test_an_interface_is_no_address(tmp_path: Path, runtime: Path) -> None:
    code, text = _fails(tmp_path, runtime, {"bind": "eth0"})
    assert code == 2
    assert "error: 'eth0' is not an IP address" in text


def test_an_address_of_another_machine_is_said_so(tmp_path: Path, runtime: Path) -> None:
    code, text = _fails(tmp_path, runtime, {"bind": "192.0.2.1", "insecure": ""})
    assert code == 1
    assert "error: cannot listen on 192.0.2.1 port 0 (control API): cannot assign requested address" in text


def test_a_name_that_is_a_path_is_refused(tmp_path: Path, runtime: Path) -> None:
    code, text = _fails(tmp_path, runtime, {"name": "../x"})
    assert code == 2
    assert "error: '../x' cannot be the name of a memserver" in text


def test_a_taken_control_port_is_said_so(tmp_path: Path, runtime: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        code, text = _fails(tmp_path, runtime, {"control-port": port})
    assert code == 1
    assert f"error: cannot listen on 127.0.0.1 port {port} (control API): address already in use" in text
    assert "fix: choose another --control-port (0 picks one) or --bind" in text


def test_a_taken_nbd_port_is_said_so(tmp_path: Path, runtime: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        code, text = _fails(tmp_path, runtime, {"port": port})
    assert code == 1
    assert f"error: ghostbox-memserver did not start on 127.0.0.1 port {port}: status 1" in text
    assert "in use" in text
    assert "fix: another --port" in text


def test_a_missing_program_is_said_so(tmp_path: Path, runtime: Path) -> None:
    code, text = _fails(tmp_path, runtime, {}, GHOSTBOX_NATIVE_DIR=str(tmp_path))
    assert code == 1
    assert f"error: cannot run {tmp_path}/ghostbox-memserver: No such file or directory" in text


def test_a_state_directory_that_cannot_be_made_is_said_so(tmp_path: Path, runtime: Path) -> None:
    (tmp_path / "file").write_text("")
    code, text = _fails(tmp_path, runtime, {}, GHOSTBOX_STATE_DIR=str(tmp_path / "file"))
    assert code == 1
    assert f"error: cannot use {tmp_path}/file/memservers/donor: Not a directory" in text


def test_a_socket_path_too_long_is_said_so(tmp_path: Path, runtime: Path) -> None:
    code, text = _fails(tmp_path, runtime, {}, GHOSTBOX_RUNTIME_DIR=str(runtime / ("x" * 100)))
    assert code == 5
    assert "error: the path of the control socket is longer than 107 bytes: " in text


def test_a_second_memserver_of_the_name_says_who_holds_it(tmp_path: Path) -> None:
    with running_donor(tmp_path) as donor:
        done = subprocess.run(donor.argv, env=donor.env, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 5
        error = json.loads(done.stderr)["error"]
        assert error["message"] == f"memserver 'donor' is already running (pid {donor.process.pid})"
        with DonorClient(donor.address) as client:
            assert client.status().size_bytes == 64 * MIB


def test_two_names_run_beside_each_other(tmp_path: Path) -> None:
    with running_donor(tmp_path, name="a") as one, running_donor(tmp_path, name="b") as two:
        assert one.address != two.address
        assert one.data_plane_pid != two.data_plane_pid


def test_auto_lends_what_is_available_less_the_reserve(tmp_path: Path) -> None:
    with running_donor(tmp_path, size="auto", reserve="1G") as donor:
        lent_bytes = donor.ready["size_bytes"]
    assert MIB < lent_bytes <= psutil.virtual_memory().total - GIB


def test_the_ready_line_is_for_people_too(tmp_path: Path, runtime: Path) -> None:
    words = ["memserver", "--name", "x", "--size", "32M", "--reserve", "0", "--bind", "127.0.0.1", "--port", "0"]
    words += ["--control-port", "0", "--drain-timeout", "200ms"]
    argv = [sys.executable, "-m", "ghostbox.cli.main", *words]
    process = subprocess.Popen(argv, env=donor_environment(tmp_path, runtime), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.match(r"x lends 32 MiB: control API http://(127\.0\.0\.1:\d+), NBD nbd://127\.0\.0\.1:\d+ ", line)
        assert found is not None, line
        with DonorClient(found[1]) as client:
            client.create_lease("kept", MIB, Holder("tower", "ana"))
    finally:
        process.terminate()
        assert process.wait(20) == 124  # the lease was not released within --drain-timeout
        process.stdout.close()
