# SPDX-License-Identifier: MIT
"""The handshake: each option of a client gets its answer or its refusal."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from ghostbox.system import processes
from helpers import nbd_raw as nbd
from helpers.memserver import Server, running_server
from helpers.nbd_raw import RawClient, context_data, info_data

SIZE = 64 << 20
FLAGS_SIMPLE = 1 | 4 | 8 | 32 | 64 | 256 | 1024 | 2048
FLAG_DF = 128


@pytest.fixture
def fresh(server: Server) -> Iterator[RawClient]:
    with RawClient(server.port) as client:
        yield client


def test_greeting_is_fixed_newstyle_without_zeroes(fresh: RawClient) -> None:
    assert fresh.greeting == b"NBDMAGICIHAVEOPT\0\3"


@pytest.mark.parametrize(("client_flags", "zeroes"), [(3, 0), (1, 124), (0, 124)])
def test_export_name_enters_transmission(server: Server, client_flags: int, zeroes: int) -> None:
    with RawClient(server.port, client_flags=client_flags) as client:
        client.send_option(nbd.EXPORT_NAME, b"a")
        size, flags = struct.unpack(">QH", client.receive(10))
        assert (size, flags) == (SIZE, FLAGS_SIMPLE)
        assert client.receive(zeroes) == bytes(zeroes)
        assert client.read(0, 512) == bytes(512)


def test_export_name_that_is_not_there_can_only_be_closed(server: Server, fresh: RawClient) -> None:
    fresh.send_option(nbd.EXPORT_NAME, b"nothing")
    assert fresh.is_closed()
    server.wait_for_log("the client asked for an export that does not exist: connection closed")


def test_the_empty_name_is_no_export(fresh: RawClient) -> None:
    assert fresh.option(nbd.GO, info_data(""))[0][0] == nbd.ERR_UNKNOWN


@pytest.mark.parametrize("option", [nbd.INFO, nbd.GO])
def test_info_and_go_refuse_an_unknown_name(fresh: RawClient, option: int) -> None:
    assert fresh.option(option, info_data("b")) == [(nbd.ERR_UNKNOWN, b"no export of this name")]


def test_info_gives_all_that_is_asked_for_and_stays_in_negotiation(fresh: RawClient, server: Server) -> None:
    description = f"GhostBox memory {server.export('a')['incarnation']}".encode()
    replies = fresh.option(nbd.INFO, info_data("a", 1, 2, 3, 999))
    assert replies == [
        (nbd.REP_INFO, struct.pack(">HQH", 0, SIZE, FLAGS_SIMPLE)),
        (nbd.REP_INFO, b"\0\1a"),
        (nbd.REP_INFO, b"\0\2" + description),
        (nbd.REP_INFO, struct.pack(">HIII", 3, 1, 4096, 32 << 20)),
        (nbd.ACK, b""),
    ]
    assert fresh.go("a") == FLAGS_SIMPLE


def test_df_is_offered_with_structured_replies_only(fresh: RawClient) -> None:
    fresh.negotiate_structured()
    assert fresh.go("a") == FLAGS_SIMPLE | FLAG_DF


@pytest.mark.parametrize("option", [nbd.INFO, nbd.GO])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        b"\0\0\0\1",
        b"\0\0\0\1a",
        b"\0\0\0\1a\0",
        b"\0\0\0\1a\0\1",
        b"\0\0\0\1a\0\0x",
        b"\xff\xff\xff\xffa\0\0",
        b"\0\0\0\2a\0\0",
    ],
)
def test_malformed_info_is_invalid_and_not_fatal(fresh: RawClient, option: int, data: bytes) -> None:
    assert fresh.option(option, data) == [(nbd.ERR_INVALID, b"malformed option data")]
    fresh.go("a")


def test_name_beyond_4096_bytes_is_too_big(fresh: RawClient) -> None:
    message = b"an export name has at most 4096 bytes"
    assert fresh.option(nbd.INFO, info_data("x" * 4097)) == [(nbd.ERR_TOO_BIG, message)]
    assert fresh.option(nbd.INFO, info_data("x" * 4096))[0][0] == nbd.ERR_UNKNOWN


@pytest.mark.parametrize("length", [16385, 1 << 20])
def test_long_option_is_skipped_and_too_big(fresh: RawClient, length: int) -> None:
    assert fresh.option(nbd.INFO, bytes(length)) == [(nbd.ERR_TOO_BIG, b"option data too long")]
    fresh.go("a")


def test_long_export_name_is_closed(fresh: RawClient) -> None:
    fresh.send_option(nbd.EXPORT_NAME, b"", length=1 << 31)
    assert fresh.is_closed()


def test_starttls_is_unsupported(fresh: RawClient) -> None:
    assert fresh.option(nbd.STARTTLS) == [(nbd.ERR_UNSUP, b"this server does not speak TLS: no export has a key")]
    fresh.go("a")


@pytest.mark.parametrize("option", [0, 4, 11, 1000, 0xFFFFFFFF])
def test_unknown_option_is_unsupported(fresh: RawClient, option: int) -> None:
    assert fresh.option(option, b"whatever") == [(nbd.ERR_UNSUP, b"unknown option")]
    fresh.go("a")


def test_abort_is_acknowledged_and_closed(fresh: RawClient) -> None:
    assert fresh.option(nbd.ABORT) == [(nbd.ACK, b"")]
    assert fresh.is_closed()


def test_list_names_every_export() -> None:
    names = sorted(f"export-{n:03}-" + "x" * 200 for n in range(200))
    options = [word for name in names for word in ("--export", f"{name}=4K")]
    with running_server(*options) as server, RawClient(server.port) as client:
        replies = client.option(nbd.LIST)
    assert replies.pop() == (nbd.ACK, b"")
    assert sorted(data[4:].decode() for _, data in replies) == names
    assert all(kind == nbd.REP_SERVER and struct.unpack(">I", data[:4])[0] == len(data) - 4 for kind, data in replies)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (nbd.LIST, b"NBD_OPT_LIST takes no data"),
        (nbd.STRUCTURED_REPLY, b"NBD_OPT_STRUCTURED_REPLY takes no data"),
    ],
)
def test_option_without_data_refuses_data(fresh: RawClient, option: int, message: bytes) -> None:
    assert fresh.option(option, b"x") == [(nbd.ERR_INVALID, message)]


CONTEXT = b"base:allocation"
DEMAND = b"x-ghostbox:demand"


def test_contexts_are_listed(fresh: RawClient) -> None:
    fresh.negotiate_structured()
    listed = [(nbd.REP_META, b"\0\0\0\0" + CONTEXT), (nbd.ACK, b"")]
    demand = (nbd.REP_META, b"\0\0\0\0" + DEMAND)
    assert fresh.option(nbd.LIST_META, context_data("a")) == [listed[0], demand, listed[1]]
    assert fresh.option(nbd.LIST_META, context_data("a", "x-ghostbox:")) == [demand, listed[1]]
    assert fresh.option(nbd.LIST_META, context_data("a", "base:")) == listed
    assert fresh.option(nbd.LIST_META, context_data("a", "base:allocation", "base:allocation")) == listed
    assert fresh.option(nbd.LIST_META, context_data("a", "qemu:dirty-bitmap")) == [(nbd.ACK, b"")]


def test_context_is_set_with_an_id(fresh: RawClient) -> None:
    fresh.negotiate_structured()
    assert fresh.set_context("a", "other:thing", "base:allocation") == [
        (nbd.REP_META, b"\0\0\0\1" + CONTEXT),
        (nbd.ACK, b""),
    ]
    assert fresh.set_context("a", "base:") == [(nbd.ACK, b"")]


def test_client_with_a_waiting_fault_is_known_as_long_as_it_is_connected() -> None:
    def n_demand() -> int:
        return int(server.status()["waiting"]["demand_connections"])

    with running_server("--export", "a=1M") as server, RawClient(server.port) as other:
        other.negotiate_structured()
        other.set_context("a", "x-ghostbox:demand")
        other.set_context("a")
        other.go("a")
        with RawClient(server.port) as client:
            client.negotiate_structured()
            assert client.set_context("a", "x-ghostbox:demand") == [
                (nbd.REP_META, b"\0\0\0\2" + DEMAND),
                (nbd.ACK, b""),
            ]
            assert n_demand() == 0
            client.go("a")
            assert client.command(nbd.STATUS, 0, 4096).error == nbd.EINVAL
            assert n_demand() == 1
        processes.wait_until(lambda: n_demand() == 0, timeout_s=10, what="the connection's end")


def test_the_last_set_counts(fresh: RawClient) -> None:
    fresh.negotiate_structured()
    fresh.set_context("a", "base:allocation")
    fresh.set_context("a")
    fresh.go("a")
    assert fresh.command(nbd.STATUS, 0, 4096).error == nbd.EINVAL


def test_context_of_another_export_does_not_count() -> None:
    with running_server("--export", "a=1M", "--export", "b=1M") as server, RawClient(server.port) as client:
        client.negotiate_structured()
        client.set_context("b", "base:allocation")
        client.go("a")
        assert client.command(nbd.STATUS, 0, 4096).error == nbd.EINVAL


@pytest.mark.parametrize("option", [nbd.LIST_META, nbd.SET_META])
def test_contexts_need_structured_replies(fresh: RawClient, option: int) -> None:
    message = b"structured replies must be negotiated first"
    assert fresh.option(option, context_data("a", "base:allocation")) == [(nbd.ERR_INVALID, message)]


@pytest.mark.parametrize("option", [nbd.LIST_META, nbd.SET_META])
def test_contexts_of_an_unknown_export(fresh: RawClient, option: int) -> None:
    fresh.negotiate_structured()
    assert fresh.option(option, context_data("b")) == [(nbd.ERR_UNKNOWN, b"no export of this name")]


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0\1a", b"\0\0\0\1a\0\0\0\1", b"\0\0\0\1a\0\0\0\1\0\0\0\5base", b"\0\0\0\1a\0\0\0\0x"]
)
@pytest.mark.parametrize("option", [nbd.LIST_META, nbd.SET_META])
def test_malformed_contexts(fresh: RawClient, option: int, data: bytes) -> None:
    fresh.negotiate_structured()
    assert fresh.option(option, data) == [(nbd.ERR_INVALID, b"malformed option data")]


def test_long_context_query_is_too_big(fresh: RawClient) -> None:
    fresh.negotiate_structured()
    replies = fresh.option(nbd.SET_META, context_data("a", "x" * 4097))
    assert replies == [(nbd.ERR_TOO_BIG, b"a string has at most 4096 bytes")]


def test_unknown_client_flags_are_closed(server: Server) -> None:
    with RawClient(server.port, client_flags=8) as client:
        assert client.is_closed()
    server.wait_for_log("unknown client flags 0x8: connection closed")


def test_plain_newstyle_knows_export_name_only(server: Server) -> None:
    with RawClient(server.port, client_flags=0) as client:
        client.send_option(nbd.LIST)
        assert client.is_closed()


def test_option_without_magic_is_closed(server: Server, fresh: RawClient) -> None:
    fresh.socket.sendall(b"GET / HTTP/1.1\r\n")
    assert fresh.is_closed()
    server.wait_for_log("an option without the magic number: connection closed")


def test_endless_options_are_closed(server: Server, fresh: RawClient) -> None:
    for _ in range(257):
        fresh.option(nbd.STRUCTURED_REPLY)
    fresh.send_option(nbd.STRUCTURED_REPLY)
    assert fresh.is_closed()
    server.wait_for_log("more than 256 options: connection closed")


def test_options_cut_at_every_byte(fresh: RawClient) -> None:
    data = info_data("a")
    for byte in struct.pack(">QII", nbd.OPTION_MAGIC, nbd.GO, len(data)) + data:
        fresh.socket.sendall(bytes([byte]))
    assert fresh.option_reply()[1] == nbd.REP_INFO
    assert fresh.option_reply()[1] == nbd.ACK
    assert fresh.read(0, 16) == bytes(16)
