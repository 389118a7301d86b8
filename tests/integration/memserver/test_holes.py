# SPDX-License-Identifier: MIT
"""The server takes memory page by page and gives it back; holes are holes in its replies."""

from __future__ import annotations

import os
import random

from helpers import nbd_raw as nbd
from helpers.memserver import Server, running_server
from helpers.nbd_raw import RawClient, connect

PAGE = 4096
END = 64 << 20


def kinds(reply: nbd.Reply) -> list[int]:
    assert reply.chunks is not None
    return [kind for kind, _ in reply.chunks]


def test_unwritten_range_is_one_hole_and_no_zeroes(client: RawClient) -> None:
    reply = client.command(nbd.READ, 0, 1 << 20)
    assert kinds(reply) == [nbd.CHUNK_HOLE]
    assert reply.data == bytes(1 << 20)


def test_read_of_a_mix_is_answered_run_by_run(client: RawClient) -> None:
    client.write(PAGE, b"a" * PAGE)
    client.write(3 * PAGE, b"b" * PAGE)
    reply = client.command(nbd.READ, 0, 5 * PAGE)
    hole, data = nbd.CHUNK_HOLE, nbd.CHUNK_DATA
    assert kinds(reply) == [hole, data, hole, data, hole]
    assert reply.data == bytes(PAGE) + b"a" * PAGE + bytes(PAGE) + b"b" * PAGE + bytes(PAGE)


def test_df_gets_one_chunk_over_data_and_holes(client: RawClient) -> None:
    client.write(PAGE, b"a" * PAGE)
    reply = client.command(nbd.READ, 100, 3 * PAGE, flags=nbd.DF)
    assert kinds(reply) == [nbd.CHUNK_DATA]
    assert reply.data == bytes(PAGE - 100) + b"a" * PAGE + bytes(PAGE + 100)
    assert kinds(client.command(nbd.READ, 8 * PAGE, PAGE, flags=nbd.DF)) == [nbd.CHUNK_HOLE]


def test_client_without_structured_replies_reads_holes_as_zeroes(simple: RawClient) -> None:
    simple.write(PAGE, b"a" * PAGE)
    assert simple.read(0, 1 << 20) == bytes(PAGE) + b"a" * PAGE + bytes((1 << 20) - 2 * PAGE)


def test_thousands_of_runs_in_one_read(client: RawClient, simple: RawClient) -> None:
    """The reply has more chunks than the reply queue holds at a time."""
    for page in range(0, 4096, 2):
        client.send(nbd.WRITE, page * PAGE, 16, payload=b"0123456789abcdef")
    assert all(client.reply().error == 0 for _ in range(2048))
    expected = (b"0123456789abcdef" + bytes(2 * PAGE - 16)) * 2048
    assert client.read(0, 4096 * PAGE) == expected
    assert simple.read(0, 4096 * PAGE) == expected
    assert client.read(0, 4096 * PAGE, flags=nbd.DF) == expected


def test_a_write_takes_only_the_pages_it_touches(server: Server, client: RawClient) -> None:
    before = server.memory_bytes()
    for index in range(64):
        client.write(index << 20, b"x")
    assert server.export("a")["resident_bytes"] == 64 * PAGE
    assert server.memory_bytes() - before < 2 << 20


def test_trim_gives_memory_back_to_the_operating_system(server: Server, client: RawClient) -> None:
    client.write(0, os.urandom(32 << 20))
    full = server.memory_bytes()
    assert client.command(nbd.TRIM, 0, 32 << 20).error == 0
    assert full - server.memory_bytes() > 31 << 20
    assert server.export("a")["resident_bytes"] == 0
    assert client.read(0, 32 << 20) == bytes(32 << 20)


def test_trim_of_part_of_a_page_keeps_the_rest(server: Server, client: RawClient) -> None:
    client.write(0, b"x" * 4 * PAGE)
    assert client.command(nbd.TRIM, 100, 2 * PAGE).error == 0
    assert client.read(0, 4 * PAGE) == b"x" * 100 + bytes(2 * PAGE) + b"x" * (2 * PAGE - 100)
    assert server.export("a")["resident_bytes"] == 3 * PAGE


def test_trim_within_one_page(client: RawClient) -> None:
    client.write(0, b"x" * PAGE)
    assert client.command(nbd.TRIM, 10, 20).error == 0
    assert client.read(0, PAGE) == b"x" * 10 + bytes(20) + b"x" * (PAGE - 30)


def test_write_zeroes_punches_a_hole(server: Server, client: RawClient) -> None:
    client.write(0, b"x" * 4 * PAGE)
    assert client.command(nbd.ZEROES, 0, 4 * PAGE).error == 0
    assert server.export("a")["resident_bytes"] == 0
    assert client.read(0, 4 * PAGE) == bytes(4 * PAGE)


def test_write_zeroes_with_no_hole_takes_memory(server: Server, client: RawClient) -> None:
    assert client.command(nbd.ZEROES, 0, 9 << 20, flags=nbd.NO_HOLE).error == 0
    assert server.export("a")["resident_bytes"] == 9 << 20
    assert client.command(nbd.STATUS, 0, 16 << 20).extents == [(9 << 20, 0), (7 << 20, 3)]


def test_fast_zero_is_fast_or_refused(client: RawClient) -> None:
    assert client.command(nbd.ZEROES, 0, 32 << 20, flags=nbd.FAST_ZERO).error == 0
    assert client.command(nbd.ZEROES, 0, PAGE, flags=nbd.FAST_ZERO | nbd.NO_HOLE).error == nbd.ENOTSUP


def test_block_status_with_req_one_gives_one_extent(client: RawClient) -> None:
    client.write(PAGE, b"x")
    assert client.command(nbd.STATUS, 0, END).extents == [(PAGE, 3), (PAGE, 0), (END - 2 * PAGE, 3)]
    assert client.command(nbd.STATUS, 0, END, flags=nbd.REQ_ONE).extents == [(PAGE, 3)]


def test_block_status_of_many_runs_is_cut_but_never_empty(client: RawClient) -> None:
    for page in range(0, 1024, 2):
        client.send(nbd.WRITE, page * PAGE, 1, payload=b"x")
    assert all(client.reply().error == 0 for _ in range(512))
    offset, runs = 0, 0
    while offset < 1024 * PAGE:
        extents = client.command(nbd.STATUS, offset, 1024 * PAGE - offset).extents
        assert extents
        assert all(length == PAGE for length, _ in extents)
        assert [flags for _, flags in extents] == [3 * (n % 2) for n in range(runs, runs + len(extents))]
        offset += PAGE * len(extents)
        runs += len(extents)


def test_export_whose_size_is_no_multiple_of_anything() -> None:
    with running_server("--export", "odd=10001") as server, connect(server.port, "odd") as client:
        client.write(8000, b"x" * 2001)
        assert client.read(0, 10001) == bytes(8000) + b"x" * 2001
        assert server.status()["exported_bytes"] == 3 * PAGE
        assert client.command(nbd.READ, 10000, 2).error == nbd.EINVAL
        assert client.command(nbd.TRIM, 8192, 10001 - 8192).error == 0
        assert server.export("odd")["resident_bytes"] == PAGE
        assert client.read(0, 10001) == bytes(8000) + b"x" * 192 + bytes(1809)


def test_random_requests_agree_with_a_model(client: RawClient, simple: RawClient) -> None:
    rng = random.Random(7)
    size = 1 << 20
    model = bytearray(size)
    for _ in range(600):
        offset = rng.randrange(size)
        length = min(rng.choice([1, 511, PAGE, 3 * PAGE, 200_000]), size - offset)
        offset -= rng.choice([0, offset % PAGE])
        who = rng.choice([client, simple])
        kind = rng.choice([nbd.READ, nbd.READ, nbd.WRITE, nbd.TRIM, nbd.ZEROES])
        if kind == nbd.READ:
            assert who.read(offset, length) == model[offset : offset + length]
        elif kind == nbd.WRITE:
            data = rng.randbytes(length)
            who.write(offset, data)
            model[offset : offset + length] = data
        else:
            flags = rng.choice([0, nbd.NO_HOLE]) if kind == nbd.ZEROES else 0
            assert who.command(kind, offset, length, flags=flags).error == 0
            model[offset : offset + length] = bytes(length)
    assert client.read(0, size) == model
