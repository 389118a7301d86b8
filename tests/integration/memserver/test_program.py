# SPDX-License-Identifier: MIT
"""The program checks its arguments, writes its log, and obeys signals; each error has its text and exit code."""

from __future__ import annotations

import signal
import socket
from pathlib import Path

import pytest

from ghostbox.system import processes
from helpers.memserver import Server, run_server, running_server
from helpers.nbd_raw import connect


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--size is needed: how much memory to lend"),
        (["--size", "lots"], "--size: 'lots' is not a size, such as 4096, 512M or 16G"),
        (["--size", "-1"], "--size: '-1' is not a size, such as 4096, 512M or 16G"),
        (["--size", "1KB"], "--size: '1KB' is not a size, such as 4096, 512M or 16G"),
        (["--size", "9999999999T"], "--size: '9999999999T' is too large"),
        (["--size", "0"], "--size: must be more than 0"),
        (["--size"], "--size needs a value"),
        (["--sizes", "1G"], "unknown option '--sizes'"),
        (["-x"], "unknown option '-x'"),
        (["--size", "1G", "extra"], "'extra' is not an option"),
        (["--size", "1G", "--export", "a"], "--export: 'a' is not NAME=SIZE"),
        (["--size", "1G", "--export", "=1G"], "--export: '=1G' is not NAME=SIZE"),
        (["--size", "1G", "--export", "a=big"], "--export: 'big' is not a size, such as 4096, 512M or 16G"),
        (["--size", "1G", "--export", "x" * 256 + "=1M"], "--export: a name has at most 255 bytes"),
        (["--size", "1G", "--port", "65536"], "--port: '65536' is not a whole number from 0 to 65535"),
        (["--size", "1G", "--port", "http"], "--port: 'http' is not a whole number from 0 to 65535"),
        (["--size", "1G", "--threads", "0"], "--threads: '0' is not a whole number from 1 to 64"),
        (["--size", "1G", "--poll-us", "-5"], "--poll-us: '-5' is not a whole number from 0 to 100000"),
        (["--size", "1G", "--keep-awake", "always"], "--keep-awake: 'always' is not auto or never"),
        (["--size", "1G", "--gather", "1"], "--gather: '1' is not auto, always or never"),
        (["--size", "1G", "--max-connections", "0"], "--max-connections: '0' is not a whole number from 1 to 65536"),
        (["--size", "1G", "--max-handshakes", "0"], "--max-handshakes: '0' is not a whole number from 1 to 65536"),
        (
            ["--size", "1G", "--max-handshakes-per-address", "-"],
            "--max-handshakes-per-address: '-' is not a whole number from 1 to 65536",
        ),
        (["--size", "1G", "--handshake-timeout", "x"], "--handshake-timeout: 'x' is not a whole number from 1 to 3600"),
        (["--size", "1G", "--tls", "no"], "--tls: 'no' is not auto or require"),
        (["--size", "1G", "--donor-id", "a b"], "--donor-id: 'a b' is not 1 to 64 letters, digits or '-'"),
        (["--size", "1G", "--machine", "a,b"], "--machine: 'a,b' is not 1 to 64 letters, digits or '-'"),
        (["--size", "1G", "--log-level", "loud"], "--log-level: 'loud' is not error, warning, info or debug"),
    ],
)
def test_wrong_argv_is_usage_status_2_with_its_message(argv: list[str], message: str) -> None:
    done = run_server(*argv)
    assert done.returncode == 2
    assert done.stderr == f"ghostbox-memserver: {message} (see --help)\n"
    assert done.stdout == ""


def test_help_names_every_option() -> None:
    done = run_server("--help")
    assert done.returncode == 0
    options = (
        "size export bind port control threads keep-awake poll-us gather max-connections handshake-timeout"
        " max-handshakes max-handshakes-per-address lock-memory tls tls-psk donor-id machine log-file log-level version"
    )
    assert all(f"--{option}" in done.stdout for option in options.split())


def test_version() -> None:
    done = run_server("--version")
    assert (done.returncode, done.stdout.split()[0]) == (0, "ghostbox-memserver")


def test_port_in_use(server: Server) -> None:
    done = run_server("--size", "1M", "--port", str(server.port))
    assert done.returncode == 1
    assert f"error ghostbox-memserver: cannot listen on 127.0.0.1 port {server.port}: Address already" in done.stderr


def test_address_of_another_machine() -> None:
    done = run_server("--size", "1M", "--port", "0", "--bind", "192.0.2.1")
    assert done.returncode == 1
    assert "cannot listen on 192.0.2.1 port 0: Cannot assign requested address" in done.stderr


def test_address_that_is_none() -> None:
    done = run_server("--size", "1M", "--bind", "not an address")
    assert done.returncode == 1
    assert "cannot listen on not an address: " in done.stderr


def test_exports_larger_than_the_size() -> None:
    done = run_server("--size", "1M", "--port", "0", "--export", "a=768K", "--export", "b=512K")
    assert done.returncode == 1
    assert "export 'b': 512 KiB asked, but only 256 KiB of --size are left" in done.stderr


def test_export_given_twice() -> None:
    done = run_server("--size", "1M", "--port", "0", "--export", "a=4K", "--export", "a=4K")
    assert done.returncode == 1
    assert "export 'a' is given twice" in done.stderr


def test_export_that_no_address_space_holds() -> None:
    done = run_server("--size", "4000000T", "--port", "0", "--export", "a=4000000T")
    assert done.returncode == 1
    assert "export 'a': Cannot allocate memory" in done.stderr


def test_control_socket_of_a_live_server(server: Server) -> None:
    done = run_server("--size", "1M", "--port", "0", "--control", str(server.control))
    assert done.returncode == 1
    assert f"cannot make the control socket {server.control}: Address already in use" in done.stderr
    assert server.status()["pid"] == server.process.pid


def test_control_socket_over_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    done = run_server("--size", "1M", "--port", "0", "--control", str(path))
    assert done.returncode == 1
    assert f"cannot make the control socket {path}: File exists" in done.stderr
    assert path.read_text() == "precious"


def test_control_socket_in_no_directory(tmp_path: Path) -> None:
    path = tmp_path / "no" / "c"
    done = run_server("--size", "1M", "--port", "0", "--control", str(path))
    assert done.returncode == 1
    assert f"cannot make the control socket {path}: No such file or directory" in done.stderr


def test_control_socket_whose_path_is_too_long(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 108)
    done = run_server("--size", "1M", "--port", "0", "--control", str(path))
    assert done.returncode == 1
    assert "File name too long" in done.stderr


def test_log_file_that_cannot_be_opened(tmp_path: Path) -> None:
    done = run_server("--size", "1M", "--log-file", str(tmp_path / "no" / "log"))
    assert done.returncode == 1
    assert f"cannot open the log file {tmp_path}/no/log: No such file or directory" in done.stderr


def test_log_goes_to_the_file_at_the_level(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with running_server("--export", "a=1M", "--log-file", str(path), "--log-level", "debug") as server:
        connect(server.port, "a").socket.close()
        processes.wait_until(lambda: "closed" in path.read_text(), timeout_s=20, what="the connection to end")
        assert server.log() == ""
    lines = path.read_text().splitlines()
    assert any("Z info ghostbox-memserver: serving on 127.0.0.1 port" in line for line in lines)
    assert any("debug ghostbox-memserver: 127.0.0.1 port" in line and "export 'a'" in line for line in lines)


def test_errors_only_when_asked() -> None:
    with running_server("--log-level", "error") as server:
        assert server.log() == ""


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_with_status_0_and_no_socket_left(server: Server, sig: signal.Signals) -> None:
    with connect(server.port, "a") as client:
        server.process.send_signal(sig)
        assert server.process.wait(20) == 0
        assert client.is_closed()
    assert not server.control.exists()


def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("cannot run here: no IPv6 on loopback")
    with running_server("--bind", "::1", "--export", "a=1M") as server:
        assert server.host == "[::1]"
        assert server.status()["host"] == "::1"


def test_same_port_can_be_taken_again_at_once(server: Server) -> None:
    """A restart need not wait until the kernel has forgotten old connections."""
    with connect(server.port, "a") as client:
        server.process.terminate()
        server.process.wait(20)
        with running_server("--port", str(server.port)) as again:
            assert again.port == server.port
        client.socket.close()
