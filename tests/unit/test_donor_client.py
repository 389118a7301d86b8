# SPDX-License-Identifier: MIT
"""The donor client reports a server that is no donor (tests/integration/donor has real donors)."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ghostbox import donors
from ghostbox.donors.client import Address, DonorClient, NoAnswer, parse_address
from ghostbox.donors.trust import Channel, Means
from ghostbox.errors import DonorError, UsageError
from ghostbox.system import processes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tower", Address("tower", 10810)),
        ("tower.local:7000", Address("tower.local", 7000)),
        ("192.168.7.2", Address("192.168.7.2", 10810)),
        ("[fd00::7]", Address("fd00::7", 10810)),
        ("[fe80::1%eth0]:65535", Address("fe80::1%eth0", 65535)),
    ],
)
def test_addresses_are_read(text: str, expected: Address) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "a b", "tower:", "tower:0", "tower:65536", "http://tower", "tower:x", "[tower]"])
def test_what_is_no_address_says_how_to_write_one(text: str) -> None:
    with pytest.raises(UsageError, match="is not the address of a donor") as caught:
        parse_address(text)
    assert caught.value.hint == "write HOST, HOST:PORT or [IPV6]:PORT"


def test_an_ipv6_address_without_brackets_is_shown_with_them() -> None:
    with pytest.raises(UsageError) as caught:
        parse_address("fd00::7")
    assert caught.value.hint == "write an IPv6 address in brackets: [fd00::7]"


def test_an_address_is_written_back_with_brackets() -> None:
    assert str(parse_address("[fd00::7]")) == "[fd00::7]:10810"


def _unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def _listener(serve: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a TCP server that calls ``serve`` with every connection; yield its address."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = server.accept()
                with contextlib.suppress(OSError):
                    serve(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)


def _answering(body: bytes) -> Callable[[socket.socket], None]:
    """Return a function that answers each request with ``body``."""

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(body) + body)
        connection.close()

    return answer


def test_a_closed_port_is_said_to_be_closed() -> None:
    address = f"127.0.0.1:{_unused_port()}"
    with DonorClient(address) as client, pytest.raises(NoAnswer) as caught:
        client.status()
    assert caught.value.message == f"cannot reach donor {address}"
    assert caught.value.why == "connection refused: nothing listens on that port"
    assert caught.value.hint is not None
    assert "ghostbox memserver" in caught.value.hint
    assert caught.value.__cause__ is not None


def test_a_name_that_does_not_resolve_is_said_so() -> None:
    channel = Channel(Means.INSECURE)
    with DonorClient("no-such-donor.invalid", channel=channel) as client, pytest.raises(NoAnswer) as caught:
        client.status()
    assert caught.value.message == "cannot reach donor no-such-donor.invalid:10810"
    assert caught.value.why is not None
    assert caught.value.why.startswith("the name cannot be resolved: ")


def test_a_server_that_says_nothing_is_a_timeout() -> None:
    kept: list[socket.socket] = []
    with _listener(kept.append) as address:
        with DonorClient(address, timeout_s=0.2) as client, pytest.raises(NoAnswer) as caught:
            client.status()
        assert caught.value.message == f"donor {address} took the connection and did not answer in time"
    for connection in kept:
        connection.close()


def test_an_nbd_server_is_recognised_and_the_control_port_named(tmp_path: Path) -> None:
    pid_file, port = tmp_path / "pid", _unused_port()
    nbdkit = subprocess.Popen(["nbdkit", "-f", "-P", str(pid_file), "-i", "127.0.0.1", "-p", str(port), "memory", "1M"])
    try:
        processes.wait_until(pid_file.exists, timeout_s=10, what="nbdkit")
        with DonorClient(f"127.0.0.1:{port}") as client, pytest.raises(NoAnswer) as caught:
            client.status()
    finally:
        nbdkit.terminate()
        nbdkit.wait(10)
    assert caught.value.message == f"127.0.0.1:{port} is an NBD server, not a donor's control API"
    assert caught.value.hint == "give the control port, usually 10810: 127.0.0.1:10810"


def test_a_server_that_does_not_speak_http_is_no_donor() -> None:
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2p1\r\n")
        connection.close()

    with _listener(greet) as address:
        with DonorClient(address) as client, pytest.raises(NoAnswer) as caught:
            client.status()
        assert caught.value.message == f"something answers at {address}, but it is not a GhostBox donor"
        assert caught.value.why == "it does not speak HTTP"


def test_what_a_donor_calls_itself_is_no_command_to_the_terminal() -> None:
    status = {"name": "\x1b[2Jt\u00f6wer\n", "version": "1", "incarnation": "i", "nbd_port": 1, "size_bytes": 1}
    status |= {"exported_bytes": 0, "free_bytes": 1, "resident_bytes": 0, "leases": 0, "draining": False}
    with _listener(_answering(json.dumps(status).encode())) as address, DonorClient(address) as client:
        assert client.status().name == "?[2Jt\u00f6wer?"


def test_another_web_server_is_no_donor() -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        with DonorClient(f"127.0.0.1:{server.server_port}") as client, pytest.raises(NoAnswer) as caught:
            client.status()
    finally:
        server.shutdown()
        server.server_close()
    assert caught.value.why is not None
    assert caught.value.why.startswith("an HTTP server (BaseHTTP/")
    assert caught.value.why.endswith("that answers 501")


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"name": "x"}', b"null"])
def test_json_of_another_kind_is_no_donor(body: bytes) -> None:
    with _listener(_answering(body)) as address, DonorClient(address) as client, pytest.raises(NoAnswer) as caught:
        client.status()
    assert caught.value.why is not None
    assert caught.value.why.startswith("it does not speak the donors' API")


def test_query_reports_all_donors_that_failed() -> None:
    addresses = [f"127.0.0.1:{_unused_port()}" for _ in range(2)]
    with pytest.raises(DonorError) as caught:
        donors.query(addresses)
    assert caught.value.message == "2 donors failed"
    assert caught.value.why is not None
    for address in addresses:
        assert f"cannot reach donor {address}: connection refused" in caught.value.why
