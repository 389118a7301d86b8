# SPDX-License-Identifier: MIT
"""Fixtures of these tests: a memory server with one export of 64 MiB, and its clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from helpers.memserver import Server, running_server
from helpers.nbd_raw import RawClient, connect

EXPORT_BYTES = 64 << 20


@pytest.fixture
def server() -> Iterator[Server]:
    """Yield a server with the export ``a`` of 64 MiB."""
    with running_server("--export", "a=64M") as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[RawClient]:
    """Yield a client with structured replies and base:allocation."""
    with connect(server.port, "a") as connected:
        yield connected


@pytest.fixture
def simple(server: Server) -> Iterator[RawClient]:
    """Yield a client without structured replies."""
    with connect(server.port, "a", structured=False) as connected:
        yield connected
