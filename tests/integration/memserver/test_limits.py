# SPDX-License-Identifier: MIT
"""The server bounds what one client, or many, can take from the others."""

from __future__ import annotations

import os
import resource
import select
import socket
import time

import pytest

from ghostbox.system import processes
from helpers import nbd_raw as nbd
from helpers.memserver import Server, running_server
from helpers.nbd_raw import RawClient, connect


def test_connections_over_the_limit_are_refused_and_room_is_made_again() -> None:
    with running_server("--export", "a=1M", "--max-connections", "2") as server:
        first, second = connect(server.port, "a"), connect(server.port, "a")
        refused = socket.create_connection((server.host, server.port), timeout=20)
        assert refused.recv(1) == b""
        server.wait_for_log("refused: 2 connections are open (--max-connections)")
        first.socket.close()
        processes.wait_until(lambda: server.status()["connections"] == 1, timeout_s=20, what="one to be gone")
        with connect(server.port, "a") as third:
            assert third.read(0, 16) == bytes(16)
        second.socket.close()
        refused.close()


def test_client_that_chooses_no_export_is_closed_in_time() -> None:
    with running_server("--export", "a=1M", "--handshake-timeout", "1") as server:
        silent = [socket.create_connection((server.host, server.port), timeout=20) for _ in range(3)]
        dripping = RawClient(server.port)
        dripping.socket.sendall(b"IHAVE")
        with connect(server.port, "a") as chosen:
            assert dripping.is_closed()
            assert all(sock.recv(18) and sock.recv(1) == b"" for sock in silent)
            server.wait_for_log("no export chosen after 1000 ms: connection closed")
            assert chosen.read(0, 16) == bytes(16)
        for sock in (*silent, dripping.socket):
            sock.close()


def test_client_that_does_not_read_costs_bounded_memory_and_holds_up_nobody() -> None:
    """The server has one worker: the slow client and the quick one share a thread."""
    with (
        running_server("--export", "a=64M", "--threads", "1") as server,
        connect(server.port, "a") as slow,
        connect(server.port, "a") as quick,
    ):
        for index in range(16):
            quick.write(index << 20, os.urandom(1 << 20))
        before = server.memory_bytes()
        n_asked = _ask_without_reading(slow)
        assert n_asked > 100
        for index in range(50):
            assert len(quick.read(index * 4096, 4096)) == 4096
        assert server.memory_bytes() - before < 1 << 20
        # The client gets its whole replies once it reads.
        for _ in range(n_asked):
            assert slow.reply(1 << 20).error == 0


def _ask_without_reading(client: RawClient) -> int:
    """Ask for a MiB again and again until the server accepts no request for a while; return the number of requests."""
    requests = RawClient.pack(nbd.READ, 0, 1 << 20) * 4000
    client.socket.setblocking(False)
    sent, taken_at = 0, time.monotonic()
    while sent < len(requests) and time.monotonic() - taken_at < 0.5:
        try:
            sent += client.socket.send(requests[sent : sent + 8192])
            taken_at = time.monotonic()
        except BlockingIOError:
            time.sleep(0.01)
    client.socket.settimeout(20)
    return sent // 28


def test_half_a_write_keeps_nothing_from_the_others(server: Server) -> None:
    with connect(server.port, "a") as stuck, connect(server.port, "a") as other:
        stuck.socket.sendall(RawClient.pack(nbd.WRITE, 0, 1 << 20) + b"y" * 300_000)
        other.write(4 << 20, b"x" * 4096)
        assert other.read(4 << 20, 4096) == b"x" * 4096


def test_write_that_was_cut_off_is_accounted_for(server: Server) -> None:
    """The part that arrived may stay, but then it must be data, not memory behind a hole."""
    with connect(server.port, "a") as other:
        with connect(server.port, "a") as stuck:
            stuck.socket.sendall(RawClient.pack(nbd.WRITE, 0, 1 << 20) + b"y" * 300_000)
            stuck.socket.shutdown(socket.SHUT_WR)
            assert stuck.is_closed()
        extents = other.command(nbd.STATUS, 0, 1 << 20).extents
        data_bytes = extents[0][0]
        assert extents[0][1] == 0
        assert other.read(0, 300_000) == b"y" * 300_000
        assert other.read(data_bytes, 4096) == bytes(4096)
        assert server.export("a")["resident_bytes"] == data_bytes == -(-300_000 // 4096) * 4096


def test_large_zeroing_of_one_client_leaves_turns_to_others() -> None:
    """A long fill is done in steps: a read asked during it is answered before it.

    Whether the read comes during it is up to the scheduler, so there are several attempts.
    """
    with (
        running_server("--export", "a=256M", "--threads", "1") as server,
        connect(server.port, "a") as heavy,
        connect(server.port, "a") as light,
    ):
        assert any(_reads_during_fill(heavy, light) for _ in range(10))


def _reads_during_fill(heavy: RawClient, light: RawClient) -> bool:
    heavy.send(nbd.ZEROES, 0, 256 << 20, flags=nbd.NO_HOLE)
    light.read(0, 1)
    still_filling = not select.select([heavy.socket], [], [], 0)[0]
    assert heavy.reply().error == 0
    assert heavy.command(nbd.TRIM, 0, 256 << 20).error == 0
    return still_filling


@pytest.mark.parametrize("how", ["auto", "never"])
def test_idle_server_with_connections_open_uses_no_cpu(how: str) -> None:
    """Whatever the workers did during the traffic: after its end they sleep, and make no system call."""
    with (
        running_server("--export", "a=1M", "--keep-awake", how, "--poll-us", "100") as server,
        connect(server.port, "a") as client,
        connect(server.port, "a"),
    ):
        for _ in range(4000):
            client.read(0, 512)
        processes.wait_until(lambda: _n_eager(server) == 0, timeout_s=20, what="the workers to be at rest")
        used = server.cpu_s()
        time.sleep(2.0)  # this is the time in which no processor time may be used, not a wait for an event
        assert server.cpu_s() - used <= 0.02


@pytest.mark.parametrize("how", ["auto", "never"])
def test_traffic_makes_a_worker_try_both_ways_of_waiting(how: str) -> None:
    def tried_after_a_read() -> bool:
        client.read(0, 512)
        return bool(server.status()["waiting"]["eager_s"] > 0)

    with running_server("--export", "a=1M", "--keep-awake", how) as server, connect(server.port, "a") as client:
        processes.wait_until(tried_after_a_read, timeout_s=20, what="a trial", interval_s=0)


def test_server_that_may_wait_in_one_way_only_never_tries_the_other() -> None:
    with running_server("--export", "a=1M", "--keep-awake", "never", "--poll-us", "0") as server:
        with connect(server.port, "a") as client:
            for _ in range(4000):
                client.read(0, 512)
        assert server.status()["waiting"] == {"eager_workers": 0, "eager_s": 0.0, "demand_connections": 0}


def _n_eager(server: Server) -> int:
    return int(server.status()["waiting"]["eager_workers"])


def test_polling_serves_all_its_connections() -> None:
    with running_server("--export", "a=1M", "--keep-awake", "never", "--poll-us", "50", "--threads", "1") as server:
        clients = [connect(server.port, "a") for _ in range(20)]
        for round_number in range(50):
            for client in clients:
                client.send(nbd.WRITE, 0, 4096, payload=bytes([round_number]) * 4096)
            assert all(client.reply().error == 0 for client in clients)
        assert clients[3].read(0, 4096) == bytes([49]) * 4096
        for client in clients:
            client.socket.close()


def test_running_out_of_descriptors_is_said_and_survived() -> None:
    with running_server("--export", "a=1M") as server:
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (30, 30))
        sockets = [socket.create_connection((server.host, server.port), timeout=20) for _ in range(40)]
        server.wait_for_log("cannot accept a connection: Too many open files")
        for sock in sockets:
            sock.close()
        processes.wait_until(lambda: server.status()["connections"] == 0, timeout_s=20, what="all to be gone")
        with connect(server.port, "a") as client:
            assert client.read(0, 16) == bytes(16)


def test_memory_of_connections_is_small(server: Server) -> None:
    clients = [connect(server.port, "a") for _ in range(200)]
    try:
        assert all(client.read(0, 4096) == bytes(4096) for client in clients)
        assert server.memory_bytes() < 16 << 20
    finally:
        for client in clients:
            client.socket.close()
