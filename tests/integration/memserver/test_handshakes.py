# SPDX-License-Identifier: MIT
"""Clients that stop half-way in the handshake keep no other client out."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

from ghostbox.system import processes
from helpers import nbd_raw as nbd
from helpers.memserver import Server, running_server
from helpers.nbd_raw import RawClient, connect

ATTACKER, HONEST = "127.0.0.2", "127.0.0.3"


@contextlib.contextmanager
def stopped_clients(server: Server, count: int, *, source: str = ATTACKER) -> Iterator[list[RawClient]]:
    """Yield clients that have received the greeting and go no further."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RawClient(server.port, source=source)) for _ in range(count)]


def n_open(server: Server) -> int:
    return int(server.status()["handshakes"]["open"])


def test_clients_that_stop_half_way_fill_the_server_for_nobody() -> None:
    """They have all the connections that there may be; clients of other addresses and of theirs are served."""
    with (
        running_server("--export", "a=1M", "--max-connections", "48") as server,
        connect(server.port, "a", source=HONEST) as opened,
        stopped_clients(server, 47) as stopped,
    ):
        assert (server.status()["connections"], n_open(server)) == (48, 47)
        with connect(server.port, "a", source=HONEST) as other, connect(server.port, "a", source=ATTACKER) as same:
            assert [each.read(0, 16) for each in (opened, other, same)] == [bytes(16)] * 3
        assert stopped[0].is_closed()
        assert stopped[1].is_closed()
        assert stopped[2].option(nbd.ABORT) == [(nbd.ACK, b"")]  # no more were closed than had to be


def test_a_connection_whose_client_was_told_that_its_export_is_open_never_makes_room() -> None:
    with running_server("--export", "a=1M", "--max-connections", "1") as server:
        for _ in range(100):
            with connect(server.port, "a") as opened:
                with socket.create_connection((server.host, server.port), timeout=20) as newcomer:
                    assert newcomer.recv(1) == b"", "it is refused"
                assert opened.read(0, 16) == bytes(16)
            processes.wait_until(lambda: server.status()["connections"] == 0, timeout_s=20, what="room")


def test_an_address_has_so_many_handshakes_and_its_oldest_makes_room() -> None:
    with (
        running_server("--export", "a=1M", "--max-handshakes-per-address", "3") as server,
        stopped_clients(server, 2, source=HONEST) as others,
        stopped_clients(server, 5) as stopped,
    ):
        assert stopped[0].is_closed()
        assert stopped[1].is_closed()
        server.wait_for_log(
            "its address has over 3 connections that have opened no export: the oldest are closed"
            " (--max-handshakes-per-address)"
        )
        processes.wait_until(lambda: n_open(server) == 5, timeout_s=20, what="the others to be left")
        assert server.status()["handshakes"]["closed_for_room"] == 2
        assert [each.go("a") != 0 for each in (*others, *stopped[2:])] == [True] * 5
        processes.wait_until(lambda: n_open(server) == 0, timeout_s=20, what="all to have opened their export")


def test_over_the_limit_in_all_the_address_with_most_makes_room() -> None:
    with (
        running_server("--export", "a=1M", "--max-handshakes", "4") as server,
        stopped_clients(server, 1, source=HONEST) as first,
        stopped_clients(server, 3) as stopped,
        stopped_clients(server, 2, source="127.0.0.4") as later,
    ):
        assert stopped[0].is_closed()
        assert stopped[1].is_closed()
        server.wait_for_log(
            "over 4 connections have opened no export: the oldest are closed, of the address with most"
            " (--max-handshakes)"
        )
        assert [each.go("a") != 0 for each in (*first, stopped[2], *later)] == [True] * 4


def test_a_list_of_one_export_costs_little_memory() -> None:
    """The buffer of a list is zeroed when it is freed, so that its whole length counts."""
    with running_server("--export", "a=1M") as server, RawClient(server.port) as client:
        assert len(client.option(nbd.LIST)) == 2
        Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # the peak counts from here on (proc(5))
        before = memory_peak_bytes(server)
        assert len(client.option(nbd.LIST)) == 2
        assert memory_peak_bytes(server) - before < 256 << 10


def memory_peak_bytes(server: Server) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_a_long_list_is_whole(server: Server) -> None:
    names = ["a", *(f"{number:03}{'x' * 252}" for number in range(200))]
    for name in names[1:]:
        server.command("export-add", name=name, size_bytes=4096)
    with RawClient(server.port) as client:
        replies = client.option(nbd.LIST)
    assert [data[4:].decode() for _, data in replies[:-1]] == names
