# SPDX-License-Identifier: MIT
"""uvicorn inside our own event loop: signals stay ours, log records go where all others go.

What connections may cost is bounded: there are so many at most, and one that brings no request in time is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import resource
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

_log = logging.getLogger(__name__)

_GRACE_S = 3
_SAY_INTERVAL_S = 1.0
# asyncio tries `backlog` times to accept when it has no descriptor left, and tells of each: keep that small.
_BACKLOG = 32
# Besides connections: the event loop, the data plane's log and pidfd, a control socket for each request at work.
_DESCRIPTORS_RESERVED = 64


@dataclass(frozen=True)
class HttpLimits:
    """What clients may take: connections in all, and the time for one's first request."""

    max_connections: int
    request_timeout_s: float = 10.0


def limits() -> HttpLimits:
    """Return the limits for this process, whose own limit of open files is raised as far as it may be."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = 256 if hard == resource.RLIM_INFINITY else hard - _DESCRIPTORS_RESERVED
    return HttpLimits(max_connections=max(4, min(256, room)))


class _Protocol(H11Protocol):
    """A connection that may be refused, or closed for want of a request."""

    def __init__(self, *args: Any, limits: HttpLimits, say: Callable[[str], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._say = say

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._say(f"control API: refused a connection, {self._limits.max_connections} are open")
            transport.abort()
            return
        self.loop.call_later(self._limits.request_timeout_s, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self._say(f"control API: closed a connection without a request for {self._limits.request_timeout_s:g} s")
            self.transport.abort()


class HttpServer(uvicorn.Server):
    """Serves ``app`` on sockets that are given to ``serve``; ``on_ready`` is called once it accepts."""

    def __init__(self, app: FastAPI, on_ready: Callable[[], None], limits: HttpLimits) -> None:
        self._said_at = -_SAY_INTERVAL_S
        protocol = functools.partial(_Protocol, limits=limits, say=self._say)
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(Any, protocol),
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        asyncio.get_running_loop().set_exception_handler(self._say_exception)
        await super().startup(sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signal handlers alone."""
        yield

    def _say(self, text: str) -> None:
        """Log a warning, at most one a second: who causes them may cause many."""
        now = time.monotonic()
        if now - self._said_at >= _SAY_INTERVAL_S:
            self._said_at = now
            _log.warning("%s", text)

    def _say_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Say in one line that no connection can be accepted (asyncio tries again); the rest as asyncio does."""
        err = context.get("exception")
        if isinstance(err, OSError) and "accept" in context.get("message", ""):
            self._say(f"control API: cannot accept a connection: {err.strerror}")
        else:
            loop.default_exception_handler(context)
