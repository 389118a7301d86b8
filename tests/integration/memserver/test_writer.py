# SPDX-License-Identifier: MIT
"""EXPORT?writer: an export has one writer at a time, and no write of an earlier writer lands after a later one's."""

from __future__ import annotations

import pytest

from helpers import nbd_raw as nbd
from helpers.memserver import Server, running_server
from helpers.nbd_raw import RawClient, connect

BLOCK = 1 << 20


def ended(client: RawClient) -> bool:
    """Tell whether the server has ended this connection."""
    try:
        while client.receive(1):
            pass
    except (EOFError, ConnectionResetError):
        return True
    return False


def test_a_new_writer_ends_the_one_before_and_nobody_else(server: Server) -> None:
    with connect(server.port, "a") as reader, connect(server.port, "a?writer") as first:
        first.write(0, b"1" * 4096)
        with connect(server.port, "a?writer") as second:
            assert ended(first)
            second.write(4096, b"2" * 4096)
            assert reader.read(0, 8192) == b"1" * 4096 + b"2" * 4096
            assert server.export("a")["connections"] == 2


def test_writes_that_the_one_before_had_sent_never_land_later(server: Server) -> None:
    n_blocks = 24
    for _ in range(5):
        with connect(server.port, "a?writer") as first:
            for n in range(n_blocks):
                first.send(nbd.WRITE, n * BLOCK, BLOCK, payload=b"1" * BLOCK)
            with connect(server.port, "a?writer") as second:
                for n in reversed(range(n_blocks)):
                    second.write(n * BLOCK, b"2" * 4096)
                assert ended(first)
                for n in range(n_blocks):
                    assert second.read(n * BLOCK, 4096) == b"2" * 4096, n


def test_a_writer_of_another_export_is_left_alone() -> None:
    with (
        running_server("--export", "a=1M", "--export", "b=1M") as server,
        connect(server.port, "a?writer") as one,
        connect(server.port, "b?writer") as other,
    ):
        one.write(0, b"1" * 4096)
        other.write(0, b"2" * 4096)
        assert one.read(0, 4096) == b"1" * 4096


def test_the_name_of_an_export_goes_before_the_suffix() -> None:
    with (
        running_server("--export", "a=1M", "--export", "a?writer=2M") as server,
        connect(server.port, "a?writer") as one,
        connect(server.port, "a?writer") as two,
    ):
        one.write(0, b"1" * 4096)
        assert two.read(0, 4096) == b"1" * 4096
        assert server.export("a?writer")["connections"] == 2


@pytest.mark.parametrize("name", ["nothing?writer", "?writer"])
def test_no_export_no_writer(server: Server, name: str) -> None:
    with RawClient(server.port) as client:
        assert client.option(nbd.GO, nbd.info_data(name)) == [(nbd.ERR_UNKNOWN, b"no export of this name")]
