# SPDX-License-Identifier: MIT
"""A memserver refuses to start in these cases, and says why."""

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

from ghostbox import config, donors
from ghostbox.donors import Assignment
from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.system.machine import machine_digest
from ghostbox.units import GIB, MIB
from helpers.donor import donor_environment, memserver_argv, running_donor
from helpers.netns import machines
from helpers.pager import running_pager


@pytest.fixture
def runtime() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="gb-"))
    yield directory
    shutil.rmtree(directory)


def _fails(
    tmp_path: Path, runtime: Path, options: dict[str, str], *, prefix: tuple[str, ...] = (), **env: str
) -> tuple[int, str]:
    """Run a memserver that does not start; return its exit code and stderr on one line."""
    base = {"name": "donor", "size": "32M", "reserve": "0", "port": "0", "control-port": "0"}
    argv = memserver_argv({**base, **options})
    argv.remove("--json")
    full_env = donor_environment(tmp_path, runtime, env)
    done = subprocess.run([*prefix, *argv], env=full_env, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == ""
    assert not list(runtime.rglob("control.sock"))  # no data plane is left behind
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


@pytest.mark.parametrize("bind", ["0.0.0.0", "::"])
def test_an_address_that_others_reach_is_secure(tmp_path: Path, bind: str) -> None:
    with running_donor(tmp_path, bind=bind) as donor:
        assert donor.ready["secure"]


def test_secure_and_insecure_contradict_each_other(tmp_path: Path, runtime: Path) -> None:
    code, text = _fails(tmp_path, runtime, {"secure": "", "insecure": ""})
    assert code == 2
    assert "error: --secure and --insecure contradict each other" in text


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


@pytest.mark.parametrize("option", ["port", "control-port"])
def test_ports_that_are_roots_are_said_to_be(tmp_path: Path, runtime: Path, option: str) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("cannot run here: it takes setpriv to do without the right to low ports")
    prefix = ("setpriv", "--bounding-set=-net_bind_service", "--inh-caps=-net_bind_service")
    code, text = _fails(tmp_path, runtime, {option: "809"}, prefix=prefix)
    assert code == 1
    assert "ermission denied" in text
    assert f"fix: ports below 1024 are root's: choose another --{option}, or run as root" in text


def test_memory_that_may_not_be_locked_is_refused_with_the_limit(tmp_path: Path, runtime: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("cannot run here: it takes setpriv to do without the right to lock memory")
    bounds = ("prlimit", "--memlock=65536:65536", "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock")
    code, text = _fails(tmp_path, runtime, {"lock-memory": ""}, prefix=bounds)
    assert code == 1
    assert "this process may lock 64 KiB (RLIMIT_MEMLOCK): raise that by ulimit -l unlimited" in text
    assert "fix: raise the limit as it says, or leave --lock-memory out; the log is " in text


def test_a_link_local_address_is_listened_on_and_reached_by_its_interface(tmp_path: Path) -> None:
    with machines(1) as (machine,):
        address = machine.link_local()
        bind = f"{address}%eth0"
        with running_donor(tmp_path, prefix=machine.prefix, bind=bind, insecure="") as donor:
            assert donor.address.startswith(f"[{bind}]:")
            reached = f"[{address}%{machine.cable}]:{donor.address.rpartition(':')[2]}"
            [lease] = donors.acquire([Assignment(reached, "one", MIB, Holder("tower", "ana"))])
            uri = donors.nbd_uri(reached, lease)
            assert uri == f"nbd://[{address}%25{machine.cable}]:{donor.nbd_port}/one"
            assert config.load({"pool.donors": [reached]}).pool.donors == (reached,)
            with running_pager([uri], cache="1M", extent="64K") as pager:
                assert pager.status()["donors"][0]["state"] == "up"


def test_an_interface_that_is_not_there_is_said_so(tmp_path: Path, runtime: Path) -> None:
    code, text = _fails(tmp_path, runtime, {"bind": "fe80::1%nosuch0", "insecure": ""})
    assert code == 1
    assert "error: cannot listen on fe80::1%nosuch0 port 0 (control API): no interface nosuch0 exists" in text


def test_a_machine_whose_name_is_no_text_has_a_name_all_the_same(tmp_path: Path) -> None:
    shown = "from ghostbox.donors import client; from ghostbox.memserver import opening;"
    shown += " print(ascii([client.host_name(), opening.default_name()]))"
    names = {
        b"\xff\xfe": ["\ufffd\ufffd", "donor"],
        b"": ["unnamed", "donor"],
        b"caf\xe9-1": ["caf\ufffd-1", "caf--1"],
    }
    for name, expected in names.items():
        code = f"import socket, os, sys; socket.sethostname({name!r});"
        code += f" os.execv(sys.executable, ['python', '-c', {shown!r}])"
        argv = ["unshare", "-u", sys.executable, "-c", code]
        env = donor_environment(tmp_path, tmp_path)
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
        if "unshare failed" in done.stderr:
            pytest.skip("cannot run here: a host name of one's own needs root")
        assert done.stdout.strip() == ascii(expected), done.stderr


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


def test_a_second_memserver_of_the_name_names_the_first(tmp_path: Path) -> None:
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
        assert process.wait(20) == 124  # no host released the lease within --drain-timeout
        process.stdout.close()
