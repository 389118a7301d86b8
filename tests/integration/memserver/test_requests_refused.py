# SPDX-License-Identifier: MIT
"""Each wrong request gets the specification's error, and the connection lives on."""

from __future__ import annotations

import struct

import pytest

from helpers import nbd_raw as nbd
from helpers.memserver import Server
from helpers.nbd_raw import RawClient, connect

END = 64 << 20
MAX_PAYLOAD = 32 << 20


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (nbd.READ, nbd.EINVAL),
        (nbd.WRITE, nbd.ENOSPC),
        (nbd.TRIM, nbd.EINVAL),
        (nbd.CACHE, nbd.EINVAL),
        (nbd.ZEROES, nbd.ENOSPC),
        (nbd.STATUS, nbd.EINVAL),
    ],
)
@pytest.mark.parametrize("offset", [END - 4095, END, END + 4096, (1 << 64) - 4096, (1 << 63)])
def test_range_outside_the_export(client: RawClient, command: int, error: int, offset: int) -> None:
    payload = b"x" * 4096 if command == nbd.WRITE else b""
    assert client.command(command, offset, 4096, payload=payload).error == error
    assert client.read(END - 4096, 4096) == bytes(4096)


def test_the_last_byte_is_inside(client: RawClient) -> None:
    client.write(END - 1, b"z")
    assert client.read(END - 1, 1) == b"z"


@pytest.mark.parametrize("command", [8, 9, 255, 65535])
def test_unknown_command(client: RawClient, command: int) -> None:
    assert client.command(command, 0, 0).error == nbd.EINVAL


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (nbd.READ, nbd.NO_HOLE),
        (nbd.READ, nbd.REQ_ONE),
        (nbd.READ, 1 << 5),
        (nbd.WRITE, nbd.DF),
        (nbd.WRITE, 1 << 15),
        (nbd.TRIM, nbd.NO_HOLE),
        (nbd.FLUSH, nbd.FAST_ZERO),
        (nbd.CACHE, nbd.DF),
        (nbd.ZEROES, nbd.REQ_ONE),
        (nbd.STATUS, nbd.FAST_ZERO),
    ],
)
def test_flag_that_the_command_does_not_know(client: RawClient, command: int, flags: int) -> None:
    length = 0 if command == nbd.FLUSH else 512
    payload = b"x" * 512 if command == nbd.WRITE else b""
    assert client.command(command, 0, length, flags=flags, payload=payload).error == nbd.EINVAL
    assert client.read(0, 512) == bytes(512)


@pytest.mark.parametrize("command", [nbd.READ, nbd.WRITE, nbd.FLUSH, nbd.TRIM, nbd.CACHE, nbd.ZEROES, nbd.STATUS])
def test_fua_is_valid_for_every_command(client: RawClient, command: int) -> None:
    length = 0 if command == nbd.FLUSH else 512
    payload = b"x" * 512 if command == nbd.WRITE else b""
    assert client.command(command, 0, length, flags=nbd.FUA, payload=payload).error == 0


def test_df_without_structured_replies(simple: RawClient) -> None:
    assert simple.command(nbd.READ, 0, 512, flags=nbd.DF).error == nbd.EINVAL


def test_read_and_write_longer_than_advertised(client: RawClient) -> None:
    assert client.command(nbd.READ, 0, MAX_PAYLOAD + 1).error == nbd.EINVAL
    assert client.read(0, MAX_PAYLOAD) == bytes(MAX_PAYLOAD)
    too_long = bytes(MAX_PAYLOAD + 1)
    assert client.command(nbd.WRITE, 0, len(too_long), payload=too_long).error == nbd.EINVAL


def test_trim_and_zeroes_may_be_longer_than_a_payload(client: RawClient) -> None:
    client.write(END - 10, b"x" * 10)
    assert client.command(nbd.TRIM, 0, END).error == 0
    assert client.command(nbd.ZEROES, 0, END).error == 0
    assert client.read(END - 10, 10) == bytes(10)


def test_refused_write_takes_its_payload_with_it(client: RawClient) -> None:
    """The next request follows the payload, however large the payload and however its bytes are cut."""
    payload = b"\x25\x60\x95\x13" * (1 << 18)
    refused = client.send(nbd.WRITE, END, len(payload), payload=payload)
    good = client.send(nbd.READ, 0, 16)
    first, second = client.reply(), client.reply()
    assert (first.cookie, first.error) == (refused, nbd.ENOSPC)
    assert (second.cookie, second.error) == (good, 0)


def test_block_status_without_a_context(server: Server) -> None:
    with RawClient(server.port) as client:
        client.negotiate_structured()
        client.go("a")
        reply = client.command(nbd.STATUS, 0, 4096)
        assert reply.error == nbd.EINVAL
        assert reply.chunks is not None


def test_block_status_of_nothing(client: RawClient) -> None:
    assert client.command(nbd.STATUS, 0, 0).error == nbd.EINVAL


@pytest.mark.parametrize("command", [nbd.READ, nbd.WRITE, nbd.TRIM, nbd.CACHE, nbd.ZEROES])
def test_empty_range_is_no_error(client: RawClient, command: int) -> None:
    assert client.command(command, 4096, 0).error == 0
    assert client.command(command, END, 0).error == 0


def test_empty_read_without_structured_replies(simple: RawClient) -> None:
    assert simple.read(0, 0) == b""


def test_flush_takes_no_range(client: RawClient) -> None:
    assert client.command(nbd.FLUSH, 4096, 0).error == nbd.EINVAL
    assert client.command(nbd.FLUSH, 0, 1).error == nbd.EINVAL
    assert client.command(nbd.FLUSH).error == 0


def test_errors_of_reads_are_structured_once_that_is_negotiated(client: RawClient, simple: RawClient) -> None:
    assert client.command(nbd.READ, END, 1).chunks == [(nbd.CHUNK_ERROR, struct.pack(">IH", nbd.EINVAL, 0))]
    assert simple.command(nbd.READ, END, 1).chunks is None


def test_wrong_magic_ends_the_connection_and_no_other(server: Server, client: RawClient, simple: RawClient) -> None:
    client.socket.sendall(b"\0" * 28)
    assert client.is_closed()
    server.wait_for_log("a request without the magic number: connection closed")
    assert simple.read(0, 16) == bytes(16)


def test_disc_closes_after_what_was_asked_before(client: RawClient) -> None:
    cookies = [client.send(nbd.READ, 0, 4096) for _ in range(10)]
    client.send(nbd.DISC)
    assert [client.reply().cookie for _ in range(10)] == cookies
    assert client.is_closed()


def test_errors_are_counted(server: Server, client: RawClient) -> None:
    client.command(nbd.READ, END, 1)
    client.command(nbd.WRITE, END, 1, payload=b"x")
    client.command(99)
    assert server.status()["counters"]["errors"] == 3


def test_requests_cut_at_every_byte(server: Server) -> None:
    """The stream has no message boundaries: each byte may come alone."""
    with connect(server.port, "a") as client:
        stream = RawClient.pack(nbd.WRITE, 4090, 12, cookie=1) + b"hello world!" + RawClient.pack(nbd.READ, 4090, 12)
        for byte in stream:
            client.socket.sendall(bytes([byte]))
        assert client.reply().error == 0
        assert client.reply().data == b"hello world!"
