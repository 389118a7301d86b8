# SPDX-License-Identifier: MIT
"""Clients have limits of memory, connections and bandwidth over all their exports, and no other client feels them."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox.system import processes
from ghostbox.system.processes import ControlError
from helpers import gnutls
from helpers import nbd_raw as nbd
from helpers.memserver import Server, running_server
from helpers.nbd_raw import RawClient, connect

MIB = 1 << 20
PAGE = 4096
KEY = "a1" * 32
TOO_MANY = b"this client has as many connections open as it may have (max_connections)"


@pytest.fixture
def shared() -> Iterator[Server]:
    """Yield a server with two exports of the client ``ann`` and one of ``bob``."""
    with running_server() as server:
        for name, owner in (("a", "ann"), ("a2", "ann"), ("b", "bob")):
            server.command("export-add", name=name, size_bytes=64 * MIB, client=owner)
        yield server


def client_of(server: Server, name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in server.status()["clients"] if each["client"] == name)
    return found


def write_error(client: RawClient, offset: int, length: int) -> int:
    """Write and return the error."""
    return client.command(nbd.WRITE, offset, length, payload=b"x" * length).error


# --- what is known of clients ---


def test_status_shows_clients_with_their_limits_and_counters(shared: Server) -> None:
    with connect(shared.port, "a") as one, connect(shared.port, "a2") as two:
        one.write(0, b"x" * PAGE)
        two.write(0, b"x" * 2 * PAGE)
        one.read(0, 512)
        ann = client_of(shared, "ann")
    assert ann == {
        "client": "ann",
        "exports": 2,
        "connections": 2,
        "resident_bytes": 3 * PAGE,
        "max_bytes_per_s": None,
        "max_connections": None,
        "max_resident_bytes": None,
        "counters": {
            "requests": 3,
            "read_bytes": 512,
            "written_bytes": 3 * PAGE,
            "writes_refused": 0,
            "connections_refused": 0,
            "delays": 0,
        },
    }
    assert (shared.export("a")["client"], shared.export("b")["client"]) == ("ann", "bob")


def test_an_export_without_a_client_has_none(shared: Server) -> None:
    assert shared.command("export-add", name="free", size_bytes=PAGE)["client"] is None
    assert [each["client"] for each in shared.status()["clients"]] == ["bob", "ann"]


def test_a_client_without_exports_and_limits_is_forgotten(shared: Server) -> None:
    shared.command("client-set", client="bob", max_connections=3)
    shared.command("export-remove", name="b")
    assert client_of(shared, "bob")["exports"] == 0
    assert shared.command("client-set", client="bob", max_connections=None) is None
    shared.command("export-remove", name="a")
    shared.command("export-remove", name="a2", force=True)
    assert shared.status()["clients"] == []


def test_limits_are_set_one_by_one_and_taken_away(shared: Server) -> None:
    shared.command("client-set", client="ann", max_bytes_per_s=10 * MIB, max_resident_bytes=MIB)
    shared.command("client-set", client="ann", max_connections=2)
    set_now = shared.command("client-set", client="ann", max_resident_bytes=None)
    assert (set_now["max_bytes_per_s"], set_now["max_connections"], set_now["max_resident_bytes"]) == (
        10 * MIB,
        2,
        None,
    )


@pytest.mark.parametrize(
    ("command", "arguments", "code", "message"),
    [
        ("client-set", {}, "invalid", '"client" must be a text of 1 to 64 bytes without control characters'),
        ("client-set", {"client": "x" * 65}, "invalid", '"client" must be a text of 1 to 64 bytes'),
        ("export-add", {"name": "n", "size_bytes": 1, "client": "a\tb"}, "invalid", '"client" must be a text'),
        ("export-add", {"name": "n", "size_bytes": 1, "client": 7}, "invalid", '"client" must be a text'),
        (
            "client-set",
            {"client": "ann", "max_bytes_per_s": 4095},
            "invalid",
            '"max_bytes_per_s" must be a whole number of at least 4096, or null for no limit',
        ),
        (
            "client-set",
            {"client": "ann", "max_connections": -1},
            "invalid",
            '"max_connections" must be a whole number of at least 0, or null for no limit',
        ),
        (
            "client-set",
            {"client": "ann", "max_resident_bytes": "1G"},
            "invalid",
            '"max_resident_bytes" must be a whole number of at least 0, or null for no limit',
        ),
        ("client-close", {"client": "eve"}, "not-found", "no client 'eve' is known"),
    ],
)
def test_wrong_arguments_are_refused(
    shared: Server, command: str, arguments: dict[str, Any], code: str, message: str
) -> None:
    with pytest.raises(ControlError) as caught:
        shared.command(command, **arguments)
    assert caught.value.code == code
    assert message in str(caught.value)
    assert client_of(shared, "ann")["max_connections"] is None


# --- memory ---


def test_writes_over_the_limit_of_memory_have_no_space_for_that_client_alone(shared: Server) -> None:
    shared.command("client-set", client="ann", max_resident_bytes=4 * PAGE)
    with connect(shared.port, "a") as one, connect(shared.port, "a2") as two, connect(shared.port, "b") as bob:
        one.write(0, b"x" * 2 * PAGE)
        two.write(0, b"x" * PAGE)
        assert write_error(one, 8 * PAGE, 2 * PAGE) == nbd.ENOSPC
        assert one.command(nbd.ZEROES, 8 * PAGE, 2 * PAGE, flags=nbd.NO_HOLE).error == nbd.ENOSPC
        assert write_error(two, 8 * PAGE, PAGE) == 0
        assert write_error(one, 8 * PAGE, 1) == nbd.ENOSPC
        one.write(0, b"y" * 2 * PAGE)  # what is there may be written again
        assert one.read(8 * PAGE, 2 * PAGE) == bytes(2 * PAGE)
        bob.write(0, b"z" * MIB)
        assert client_of(shared, "ann")["resident_bytes"] == 4 * PAGE
        assert client_of(shared, "ann")["counters"]["writes_refused"] == 3
        assert client_of(shared, "bob")["counters"]["writes_refused"] == 0


def test_room_is_made_by_trim_by_a_higher_limit_and_by_the_end_of_an_export(shared: Server) -> None:
    shared.command("client-set", client="ann", max_resident_bytes=2 * PAGE)
    with connect(shared.port, "a") as one:
        one.write(0, b"x" * 2 * PAGE)
        assert write_error(one, 4 * PAGE, PAGE) == nbd.ENOSPC
        assert one.command(nbd.TRIM, 0, PAGE).error == 0
        one.write(4 * PAGE, b"x" * PAGE)
        assert write_error(one, 0, PAGE) == nbd.ENOSPC
        shared.command("client-set", client="ann", max_resident_bytes=3 * PAGE)
        one.write(0, b"x" * PAGE)
    shared.command("export-remove", name="a", force=True)
    assert client_of(shared, "ann")["resident_bytes"] == 0
    with connect(shared.port, "a2") as two:
        two.write(0, b"x" * 3 * PAGE)


def test_a_limit_below_what_is_there_takes_nothing_away(shared: Server) -> None:
    with connect(shared.port, "a") as one:
        one.write(0, b"x" * 8 * PAGE)
        shared.command("client-set", client="ann", max_resident_bytes=PAGE)
        assert write_error(one, 8 * PAGE, PAGE) == nbd.ENOSPC
        assert one.read(0, 8 * PAGE) == b"x" * 8 * PAGE
        one.write(0, b"y" * 8 * PAGE)


def test_writes_of_many_connections_at_once_exceed_no_limit(shared: Server) -> None:
    """Half of the space that eight connections ask for at the same time is there; the whole of it is given out."""
    shared.command("client-set", client="ann", max_resident_bytes=512 * PAGE)
    errors: list[int] = []

    def fill(number: int) -> None:
        with connect(shared.port, ("a", "a2")[number % 2]) as client:
            for index in range(128):
                client.send(nbd.WRITE, (number * 128 + index) * PAGE, PAGE, payload=b"x" * PAGE)
            errors.extend(client.reply().error for _ in range(128))

    threads = [threading.Thread(target=fill, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(errors) == [0] * 512 + [nbd.ENOSPC] * 512
    assert client_of(shared, "ann")["resident_bytes"] == 512 * PAGE


def test_a_write_that_never_came_to_its_end_gives_its_room_back(shared: Server) -> None:
    shared.command("client-set", client="ann", max_resident_bytes=256 * PAGE)
    with connect(shared.port, "a") as stuck:
        stuck.socket.sendall(RawClient.pack(nbd.WRITE, 0, MIB) + b"y" * PAGE)
        processes.wait_until(
            lambda: client_of(shared, "ann")["resident_bytes"] == MIB, timeout_s=20, what="the room to be reserved"
        )
        with connect(shared.port, "a2") as other:
            assert write_error(other, 0, 1) == nbd.ENOSPC
    processes.wait_until(lambda: client_of(shared, "ann")["connections"] == 0, timeout_s=20, what="its end")
    assert client_of(shared, "ann")["resident_bytes"] <= PAGE


# --- connections ---


def test_connections_over_the_limit_are_refused_in_the_handshake(shared: Server) -> None:
    shared.command("client-set", client="ann", max_connections=1)
    with connect(shared.port, "a") as one, RawClient(shared.port) as two, RawClient(shared.port) as old:
        assert two.option(nbd.GO, nbd.info_data("a2")) == [(nbd.ERR_POLICY, TOO_MANY)]
        assert two.option(nbd.INFO, nbd.info_data("a2"))[-1] == (nbd.ACK, b"")
        old.send_option(nbd.EXPORT_NAME, b"a2")
        assert old.is_closed()
        shared.wait_for_log("asked for an export that has as many connections as its client may have (max_connections)")
        assert client_of(shared, "ann")["counters"]["connections_refused"] == 2
        with connect(shared.port, "b") as bob:
            assert bob.read(0, 16) == bytes(16)
        shared.command("client-set", client="ann", max_connections=2)
        assert two.go("a2")
        assert one.read(0, 16) == two.read(0, 16) == bytes(16)


def test_a_writer_that_connects_again_takes_its_own_place(shared: Server) -> None:
    shared.command("client-set", client="ann", max_connections=1)
    with connect(shared.port, "a?writer") as first, connect(shared.port, "a?writer") as second:
        assert first.is_closed()
        second.write(0, b"x")


def test_all_connections_of_a_client_are_closed_at_once(shared: Server) -> None:
    with (
        connect(shared.port, "a") as one,
        connect(shared.port, "a2") as two,
        connect(shared.port, "b") as bob,
    ):
        assert shared.command("client-close", client="ann") == {"closed": 2}
        assert (client_of(shared, "ann")["connections"], client_of(shared, "bob")["connections"]) == (0, 1)
        assert one.is_closed()
        assert two.is_closed()
        assert bob.read(0, 16) == bytes(16)
    with connect(shared.port, "a") as again:
        assert again.read(0, 16) == bytes(16)


def test_a_suspended_client_gets_in_no_more_until_it_is_let(shared: Server) -> None:
    with connect(shared.port, "a") as one:
        one.write(0, b"kept")
        shared.command("client-set", client="ann", max_connections=0)
        shared.command("client-close", client="ann")
    with RawClient(shared.port) as again:
        assert again.option(nbd.GO, nbd.info_data("a")) == [(nbd.ERR_POLICY, TOO_MANY)]
        assert client_of(shared, "ann")["counters"]["connections_refused"] == 0, "that is no limit which it reached"
        shared.command("client-set", client="ann", max_connections=None)
        again.go("a")
        assert again.read(0, 4) == b"kept"


def test_a_key_that_was_shown_before_the_close_has_to_be_shown_again(tmp_path: Path) -> None:
    keys = gnutls.key_file(tmp_path / "keys.psk", a=KEY)
    with running_server("--tls", "require", "--tls-psk", str(keys)) as server, contextlib.ExitStack() as stack:
        server.command("export-add", name="a", size_bytes=MIB, client="ann")

        def shown() -> RawClient:
            client = stack.enter_context(RawClient(server.port))
            assert client.option(nbd.STARTTLS) == [(nbd.ACK, b"")]
            client.socket = gnutls.Session.client(client.socket, "a", KEY)  # type: ignore[assignment]
            return client

        before = shown()
        assert server.command("client-close", client="ann") == {"closed": 0}
        assert before.option(nbd.GO, nbd.info_data("a"))[-1] == (nbd.ERR_UNKNOWN, b"no export of this name")
        assert shown().go("a")


# --- bandwidth ---


def seconds_to_read(client: RawClient, total: int, *, depth: int = 4) -> float:
    """Return how long it takes to read so many bytes, 64 KiB at a time, ``depth`` requests in flight."""
    began, length = time.monotonic(), 64 << 10
    n = total // length
    for index in range(n):
        client.send(nbd.READ, 0, length)
        if index >= depth:
            client.reply(length)
    for _ in range(min(depth, n)):
        client.reply(length)
    return time.monotonic() - began


def test_a_client_gets_no_more_than_its_bandwidth_over_all_its_connections(shared: Server) -> None:
    shared.command("client-set", client="ann", max_bytes_per_s=8 * MIB)
    with connect(shared.port, "a", structured=False) as one, connect(shared.port, "a2", structured=False) as two:
        took: list[float] = []
        threads = [
            threading.Thread(target=lambda each=each: took.append(seconds_to_read(each, 4 * MIB)))
            for each in (one, two)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert max(took) >= (8 * MIB - 8 * MIB * 0.05 - 8 * (64 << 10)) / (8 * MIB)  # less the burst, and what is in flight
    counters = client_of(shared, "ann")["counters"]
    assert counters["read_bytes"] == 8 * MIB
    assert counters["delays"] > 0


def test_a_delayed_client_holds_up_no_other_of_the_same_worker() -> None:
    with running_server("--threads", "1") as server:
        for name in ("ann", "bob"):
            server.command("export-add", name=name, size_bytes=64 * MIB, client=name)
        server.command("client-set", client="ann", max_bytes_per_s=PAGE)
        with connect(server.port, "ann", structured=False) as slow, connect(server.port, "bob") as quick:
            slow.read(0, MIB)
            slow.send(nbd.READ, 0, PAGE)  # its turn comes in four minutes
            for index in range(200):
                quick.write(index * PAGE, b"x" * PAGE)
            assert client_of(server, "ann")["counters"]["delays"] > 0
            used = server.cpu_s()
            time.sleep(1.0)  # this is the time in which the wait may use no processor time, not a wait for an event
            assert server.cpu_s() - used <= 0.1
            # A new rate counts for what is waiting.
            server.command("client-set", client="ann", max_bytes_per_s=None)
            assert slow.reply(PAGE).error == 0


def test_a_delayed_connection_ends_when_it_is_closed(shared: Server) -> None:
    shared.command("client-set", client="ann", max_bytes_per_s=PAGE)
    with connect(shared.port, "a", structured=False) as slow, connect(shared.port, "a2", structured=False) as other:
        slow.read(0, MIB)
        for client in (slow, other):
            client.send(nbd.READ, 0, PAGE)
        processes.wait_until(
            lambda: client_of(shared, "ann")["counters"]["delays"] >= 2, timeout_s=20, what="both to wait"
        )
        assert shared.command("client-close", client="ann") == {"closed": 2}
        assert slow.is_closed()
        assert other.is_closed()
