# SPDX-License-Identifier: MIT
"""The control socket answers each command, and each error with its text."""

from __future__ import annotations

import json
import signal
import socket
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.system import processes
from ghostbox.system.processes import ControlError
from helpers import nbd_raw as nbd
from helpers.memserver import Server, running_server
from helpers.nbd_raw import RawClient, connect

GIB = 1 << 30


def refusal(server: Server, cmd: str, **args: object) -> tuple[str, str]:
    with pytest.raises(ControlError) as caught:
        server.command(cmd, **args)
    return caught.value.code, str(caught.value)


def test_status_of_a_server_at_work(server: Server) -> None:
    with connect(server.port, "a") as client:
        client.write(0, b"x" * 5000)
        client.read(0, 4096)
        client.command(nbd.TRIM, 4096, 4096)
        client.command(nbd.ZEROES, 8192, 4096)
        client.command(nbd.FLUSH)
        client.command(nbd.STATUS, 0, 4096)
        status = server.status()
    assert status["version"]
    assert status["pid"] == server.process.pid
    assert (status["host"], status["port"]) == (server.host, server.port)
    assert (status["size_bytes"], status["exported_bytes"], status["resident_bytes"]) == (GIB, 64 << 20, 4096)
    assert status["connections"] == 1
    assert status["uptime_s"] >= 0
    assert status["counters"] == {
        "reads": 1,
        "writes": 1,
        "trims": 1,
        "zeroes": 1,
        "flushes": 1,
        "block_status": 1,
        "read_bytes": 4096,
        "written_bytes": 5000,
        "errors": 0,
    }
    export = status["exports"][0]
    uuid.UUID(export.pop("incarnation"))
    assert 0 <= export.pop("idle_s") < 60
    assert export == {
        "name": "a",
        "size_bytes": 64 << 20,
        "resident_bytes": 4096,
        "connections": 1,
        "tls": False,
        "client": None,
    }


def test_export_is_added_used_and_removed(server: Server) -> None:
    added = server.command("export-add", name="b", size_bytes=1 << 20)
    assert (added["name"], added["size_bytes"], added["resident_bytes"], added["connections"]) == ("b", 1 << 20, 0, 0)
    with connect(server.port, "b") as client:
        client.write(0, b"x")
    processes.wait_until(lambda: server.export("b")["connections"] == 0, timeout_s=20, what="the client to be gone")
    assert server.command("export-remove", name="b") is None
    assert [export["name"] for export in server.status()["exports"]] == ["a"]
    assert server.status()["exported_bytes"] == 64 << 20


def test_export_made_again_is_empty_and_has_another_incarnation(server: Server) -> None:
    first = server.command("export-add", name="b", size_bytes=4096)
    with connect(server.port, "b") as client:
        client.write(0, b"secret")
    server.command("export-remove", name="b", force=True)
    second = server.command("export-add", name="b", size_bytes=4096)
    assert second["incarnation"] != first["incarnation"]
    with connect(server.port, "b") as client:
        assert client.read(0, 4096) == bytes(4096)


def test_adding_a_name_twice(server: Server) -> None:
    assert refusal(server, "export-add", name="a", size_bytes=4096) == (
        "exists",
        "there is an export named 'a' already",
    )


def test_adding_more_than_is_free(server: Server) -> None:
    assert refusal(server, "export-add", name="b", size_bytes=GIB) == (
        "too-small",
        "export 'b': 1 GiB asked, 960 MiB of 1 GiB are free",
    )
    server.command("export-add", name="b", size_bytes=960 << 20)
    code, message = refusal(server, "export-add", name="c", size_bytes=1)
    assert (code, message) == ("too-small", "export 'c': 1 B asked, 0 B of 1 GiB are free")


@pytest.mark.parametrize("name", ["", "x" * 256, "new\nline", "bell\7"])
def test_adding_a_name_that_cannot_be(server: Server, name: str) -> None:
    message = "an export's name has 1 to 255 bytes and no control characters"
    assert refusal(server, "export-add", name=name, size_bytes=4096) == ("invalid", message)


@pytest.mark.parametrize("size_bytes", [0, -1, "1M", 1.5, None])
def test_adding_a_size_that_cannot_be(server: Server, size_bytes: object) -> None:
    message = '"size_bytes" must be a whole number above 0'
    assert refusal(server, "export-add", name="b", size_bytes=size_bytes) == ("invalid", message)


def test_adding_a_size_beyond_all_memory(server: Server) -> None:
    code, message = refusal(server, "export-add", name="b", size_bytes=(1 << 62))
    assert code == "too-small"
    assert "4194304 TiB asked, 960 MiB of 1 GiB are free" in message


@pytest.mark.parametrize("cmd", ["export-add", "export-remove"])
def test_name_must_be_a_string(server: Server, cmd: str) -> None:
    assert refusal(server, cmd, name=7) == ("invalid", '"name" must be a string')


def test_force_must_be_a_boolean(server: Server) -> None:
    assert refusal(server, "export-remove", name="a", force=1) == ("invalid", '"force" must be true or false')


def test_removing_what_is_not_there(server: Server) -> None:
    assert refusal(server, "export-remove", name="b") == ("not-found", "no export named 'b'")


def test_removing_an_export_in_use_needs_force(server: Server, client: RawClient) -> None:
    message = "export 'a' has connections open; \"force\" closes them"
    assert refusal(server, "export-remove", name="a") == ("busy", message)
    assert client.read(0, 16) == bytes(16)


def test_forced_removal_closes_the_connections_in_the_middle_of_their_work(server: Server) -> None:
    clients = [connect(server.port, "a") for _ in range(8)]
    for index, client in enumerate(clients):
        if index % 2:
            client.socket.sendall(RawClient.pack(nbd.WRITE, 0, 1 << 20) + b"y" * 100_000)
    server.command("export-remove", name="a", force=True)
    assert server.status()["exported_bytes"] == 0
    assert all(client.is_closed() for client in clients)
    with RawClient(server.port) as late:
        assert late.option(nbd.GO, nbd.info_data("a"))[0][0] == nbd.ERR_UNKNOWN


def test_unknown_command(server: Server) -> None:
    assert refusal(server, "explode") == ("unknown-command", "no command named 'explode'")


def test_shutdown_ends_the_process_with_status_0(server: Server) -> None:
    assert server.command("shutdown") is None
    assert server.process.wait(20) == 0
    assert not server.control.exists()


@pytest.fixture
def control(server: Server) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(20)
        sock.connect(str(server.control))
        yield sock


@pytest.mark.parametrize("line", [b"not json", b"[1]", b"7", b'{"cmd": "status"', b"\xff\xfe", b""])
def test_line_that_is_no_request(control: socket.socket, line: bytes) -> None:
    control.sendall(line + b"\n")
    answer = json.loads(control.makefile().readline())
    assert answer["error"] == {"code": "invalid", "message": "a request is one JSON object on one line"}


def test_request_without_command(control: socket.socket) -> None:
    control.sendall(b'{"id": 5, "command": "status"}\n')
    answer = json.loads(control.makefile().readline())
    assert answer["id"] == 5
    assert answer["error"] == {"code": "invalid", "message": 'the request has no "cmd" (a string)'}


def test_several_requests_in_one_packet_and_one_in_several(control: socket.socket) -> None:
    stream = control.makefile()
    control.sendall(b'{"id": 1, "cmd": "status"}\n{"id": 2, "cmd": "status"}\n{"id": 3, ')
    assert [json.loads(stream.readline())["id"] for _ in range(2)] == [1, 2]
    control.sendall(b'"cmd": "status"}\n')
    assert json.loads(stream.readline())["id"] == 3


def test_control_client_that_sends_an_endless_line_is_dropped(server: Server, control: socket.socket) -> None:
    try:
        for _ in range(64):
            control.sendall(b"x" * 65536)
        assert control.recv(1) == b""
    except (BrokenPipeError, ConnectionResetError):
        pass
    server.wait_for_log("control client sent a line over 1048576 bytes: dropped")


def test_control_clients_over_the_limit_are_refused(server: Server) -> None:
    sockets = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(33)]
    for sock in sockets:
        sock.settimeout(20)
        sock.connect(str(server.control))
    assert sockets[32].recv(1) == b""
    server.wait_for_log("control client refused: 32 are connected")
    sockets[0].sendall(b'{"cmd": "status"}\n')
    assert sockets[0].recv(1) == b"{"
    for sock in sockets:
        sock.close()


def test_control_socket_is_for_its_owner_alone(server: Server) -> None:
    assert stat.S_IMODE(server.control.stat().st_mode) == 0o600


def test_stale_control_socket_is_replaced(server: Server) -> None:
    stale = server.place / "stale"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(stale))
    with running_server("--control", str(stale)):
        assert processes.control_request(stale, "status")["exports"] == []


def test_message_that_is_cut_stays_valid_json(server: Server) -> None:
    code, message = refusal(server, "é" * 300)
    assert code == "unknown-command"
    assert message.startswith("no command named 'éé")


def test_worker_and_control_threads_leave_signals_to_main(server: Server) -> None:
    for task in Path(f"/proc/{server.process.pid}/task").iterdir():
        if int(task.name) != server.process.pid:
            blocked = int((task / "status").read_text().split("SigBlk:")[1].split()[0], 16)
            assert blocked & (1 << (signal.SIGTERM - 1))
