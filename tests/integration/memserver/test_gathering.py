# SPDX-License-Identifier: MIT
"""A client sends each of many requests by itself: the server wakes up for several at a time, and delays none for long.

The server finds out by trying whether gathering pays, so a load goes on until gathering is on. No time is asserted: the
server itself counts as late each request that waited in vain for others.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from ghostbox.system import processes
from helpers import nbd_raw as nbd
from helpers.memserver import Server, running_server
from helpers.nbd_raw import RawClient, connect

EXPORT_BYTES = 1 << 20
READ_BYTES = 512
WRITE_BYTES = 4096
DEPTH = 16
ATTEMPTS = 100
PATTERN = b"".join(struct.pack(">Q", index) for index in range(EXPORT_BYTES // 8))
Load = Callable[[RawClient, int, int], None]
# A trial and its verdict cost so many waits: three in a row that time out end the trial, and one more is a probe.
LATE_MAX = 4


def _reply(cookie: int, data: bytes = b"") -> bytes:
    return struct.pack(">IIQ", nbd.SIMPLE_MAGIC, 0, cookie) + data


def _pieces(size: int) -> Iterator[tuple[int, bytes]]:
    return ((at, PATTERN[at * size : (at + 1) * size]) for at in range(EXPORT_BYTES // size))


READS = [
    (RawClient.pack(nbd.READ, at * READ_BYTES, READ_BYTES, cookie=at), _reply(at, data))
    for at, data in _pieces(READ_BYTES)
]
"""Each request and its reply."""
WRITES = [
    RawClient.pack(nbd.WRITE, at * WRITE_BYTES, WRITE_BYTES, cookie=at) + data for at, data in _pieces(WRITE_BYTES)
]


@pytest.fixture
def server() -> Iterator[Server]:
    """Yield a server that gathers when it may, with one worker and an export that holds `PATTERN`."""
    with _serving("always") as running:
        yield running


@contextlib.contextmanager
def _serving(gather: str) -> Iterator[Server]:
    argv = ("--export", "a=1M", "--threads", "1", "--keep-awake", "never", "--poll-us", "0", "--gather", gather)
    with running_server(*argv) as running:
        with connect(running.port, "a") as filling:
            filling.write(0, PATTERN)
        yield running


def _gathering(server: Server) -> dict[str, int]:
    found: dict[str, int] = server.status()["gathering"]
    return found


def _exchange(client: RawClient, depth: int, requests: list[bytes], replies: list[bytes]) -> None:
    """Send each request by itself, with `depth` in flight, and check every byte of the replies."""
    unsent = iter(requests)
    for request in itertools.islice(unsent, depth):
        client.socket.sendall(request)
    received = bytearray()
    for expected in replies:
        while len(received) < len(expected):
            more = client.socket.recv(1 << 16)
            assert more
            received += more
        assert received.startswith(expected)
        del received[: len(expected)]
        for request in itertools.islice(unsent, 1):
            client.socket.sendall(request)


def _read(client: RawClient, depth: int, n: int) -> None:
    offsets = [random.randrange(len(READS)) for _ in range(n)]
    _exchange(client, depth, [READS[at][0] for at in offsets], [READS[at][1] for at in offsets])


def _write(client: RawClient, depth: int, n: int) -> None:
    """Write the bytes that the export holds already."""
    offsets = [random.randrange(len(WRITES)) for _ in range(n)]
    _exchange(client, depth, [WRITES[at] for at in offsets], [_reply(at) for at in offsets])


def _gathered_client(server: Server, load: Load = _read) -> RawClient:
    """Return a client whose requests are gathered, after some attempts on a busy machine."""
    for _ in range(ATTEMPTS):
        client = connect(server.port, "a", structured=False)
        # NBD clients set it, too: else the kernel holds a request back until the server has read the earlier one.
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(2):
            before = _gathering(server)["in_time"]
            load(client, DEPTH, 3000)
            if _gathering(server)["in_time"] - before > 50:
                return client
        client.socket.close()
    pytest.fail("nothing is ever gathered")


def test_gathering_is_found_out_by_trying() -> None:
    """Each attempt has a new client: after a verdict against gathering the next trial comes later each time."""
    with _serving("auto") as server, _gathered_client(server):
        pass


@pytest.mark.parametrize("load", [_read, _write])
def test_requests_that_come_one_by_one_are_gathered_and_every_byte_is_right(server: Server, load: Load) -> None:
    with _gathered_client(server, load), connect(server.port, "a") as other:
        assert other.read(0, EXPORT_BYTES) == PATTERN


@pytest.mark.parametrize("rounds", [1, 5])
def test_one_request_alone_after_many_is_not_kept_waiting(server: Server, rounds: int) -> None:
    """The last requests of a burst may wait in vain.

    Of single requests after the burst, only the first ones may wait: they show the server that the burst has ended.
    """
    with _gathered_client(server) as client:
        for _ in range(rounds):
            _read(client, DEPTH, 500)
            before = _gathering(server)["late"]
            _read(client, 1, 500)
            assert _gathering(server)["late"] - before <= LATE_MAX


def test_bursts_of_changing_length_are_answered_and_few_end_in_waiting() -> None:
    with _serving("auto") as server, _gathered_client(server) as client:
        before = _gathering(server)["late"]
        for n in range(1, 100):
            _read(client, DEPTH, n)
            _read(client, 3, n)
        assert _gathering(server)["late"] - before < 99


def test_more_connections_than_a_worker_gathers_are_all_answered(server: Server) -> None:
    clients = [_gathered_client(server) for _ in range(20)]
    for _ in range(20):
        for client in clients:
            for request, _ in READS[:8]:
                client.socket.sendall(request)
        for client in clients:
            expected = b"".join(reply for _, reply in READS[:8])
            assert client.receive(len(expected)) == expected
    for client in clients:
        client.socket.close()


def test_half_a_request_is_answered_when_the_rest_comes(server: Server) -> None:
    request, expected = READS[7]
    for cut in (1, 27):
        with _gathered_client(server) as client:
            _send_in_parts(client, request[:cut], request[cut:])
            assert client.receive(len(expected)) == expected


def test_half_a_payload_is_answered_when_the_rest_comes(server: Server) -> None:
    for cut in (29, 4000):
        with _gathered_client(server, _write) as client:
            _send_in_parts(client, WRITES[7][:cut], WRITES[7][cut:])
            assert client.receive(16) == _reply(7)


def _send_in_parts(client: RawClient, first: bytes, rest: bytes) -> None:
    client.socket.sendall(first)
    client.socket.settimeout(0.05)
    with pytest.raises(TimeoutError):
        client.socket.recv(1)
    client.socket.settimeout(nbd.TIMEOUT_S)
    client.socket.sendall(rest)


def test_client_whose_kernel_holds_back_its_requests_is_kept_waiting_a_few_times_only() -> None:
    """Without TCP_NODELAY the kernel sends a request only after the server has read the earlier one.

    Waiting for several requests is then in vain.
    """
    n_requests = 20_000
    with _serving("auto") as server, connect(server.port, "a", structured=False) as client:
        _read(client, DEPTH, n_requests)
        # On an idle machine three waits in each of four trials are in vain. Under load a trial may seem to pay for a
        # while: the next trial then comes as early as the first. Without verdicts each request would wait.
        assert _gathering(server)["late"] <= n_requests // 50


def test_client_with_one_request_in_flight_is_left_alone(server: Server) -> None:
    with connect(server.port, "a", structured=False) as client:
        _read(client, 1, 20_000)
        assert _gathering(server) == {"connections": 0, "in_time": 0, "late": 0}


@pytest.mark.parametrize("linger", [False, True], ids=["closed", "reset"])
def test_client_that_leaves_while_it_is_gathered_is_gone(server: Server, *, linger: bool) -> None:
    with _gathered_client(server) as client:
        client.socket.sendall(READS[0][0])
        if linger:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    processes.wait_until(lambda: server.status()["connections"] == 0, timeout_s=20, what="the client to be gone")


def test_export_that_is_taken_from_a_gathered_client_is_gone(server: Server) -> None:
    with _gathered_client(server) as client:
        server.command("export-remove", name="a", force=True)
        assert client.is_closed()


def test_idle_connection_that_was_gathered_uses_no_cpu(server: Server) -> None:
    with _gathered_client(server):
        processes.wait_until(lambda: _gathering(server)["connections"] == 0, timeout_s=20, what="the wait's end")
        used = server.cpu_s()
        time.sleep(2.0)  # this is the time in which no processor time may be used, not a wait for an event
        assert server.cpu_s() - used <= 0.02


def test_server_that_must_not_gather_does_not() -> None:
    with _serving("never") as server:
        with connect(server.port, "a", structured=False) as client:
            _read(client, DEPTH, 20_000)
        assert _gathering(server) == {"connections": 0, "in_time": 0, "late": 0}
