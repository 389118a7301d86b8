# SPDX-License-Identifier: MIT
"""How the control API's server treats its connections."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from fastapi import FastAPI

from ghostbox.memserver.http_server import HttpLimits, HttpServer


def test_what_is_written_to_a_connection_is_sent_at_once() -> None:
    """Else the body of an answer waits 40 ms for the client's acknowledgement of its head."""

    async def run(listener: socket.socket) -> list[int]:
        accepting = asyncio.Event()
        server = HttpServer(FastAPI(), accepting.set, HttpLimits(max_connections=4))
        serving = asyncio.create_task(server.serve([listener]))
        await accepting.wait()
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readline()
        connections: list[Any] = list(server.server_state.connections)
        accepted = [each.transport.get_extra_info("socket") for each in connections]
        found = [each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for each in accepted]
        writer.close()
        server.should_exit = True
        await serving
        return found

    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert asyncio.run(run(listener)) == [1]
