# SPDX-License-Identifier: MIT
"""Run uvicorn inside this program's event loop, with this program's signal handlers and log.

Connections are bounded: their number is limited, and a connection without a request in time is closed. With TLS, the
connections that still shake hands count as well, and have a time limit of their own; uvicorn would know of neither, so
this module accepts them itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import resource
import socket
import ssl
import time
from asyncio.trsock import TransportSocket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

_log = logging.getLogger(__name__)

_GRACE_S = 3
_SAY_INTERVAL_S = 1.0
# Without a free descriptor, asyncio tries `backlog` times to accept, and reports each failure: keep that small.
_BACKLOG = 32
# These are for the event loop, the data plane's log and pidfd, and a control socket for each request at work.
_DESCRIPTORS_RESERVED = 64
_ACCEPT_AGAIN_S = 1.0  # as asyncio does, after a failure to accept


# TransportSocket of asyncio, which has getsockopt(), is what a transport shows of its socket.
ChooseApp = Callable[[TransportSocket], ASGIApp]
"""Returns the application that serves a connection."""


@dataclass(frozen=True)
class HttpLimits:
    """Holds the limits of clients: the number of connections, and the time for a connection's first request."""

    max_connections: int
    request_timeout_s: float = 10.0


def limits() -> HttpLimits:
    """Return the limits for this process; raise its limit of open files as far as allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    room = 256 if hard == resource.RLIM_INFINITY else hard - _DESCRIPTORS_RESERVED
    return HttpLimits(max_connections=max(4, min(256, room)))


def peer_text(host: str, port: int) -> str:
    """Return an address in its usual form, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def refused_text(limits: HttpLimits) -> str:
    """Return the sentence for a connection that is refused because there are too many."""
    return f"control API: refused a connection, {limits.max_connections} are open"


def _send_at_once(listener: socket.socket) -> None:
    """Have what is written to accepted connections sent at once (TCP_NODELAY, which they inherit).

    uvicorn writes an answer's head and body one by one, so that the body would wait for the client's delayed
    acknowledgement: 40 ms. asyncio sets the option only on sockets that were made with the number of TCP.
    """
    if listener.family in (socket.AF_INET, socket.AF_INET6):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class _Protocol(H11Protocol):
    """Is a connection that is refused over the limit, and closed if no request comes."""

    def __init__(
        self,
        *args: Any,
        limits: HttpLimits,
        report: Callable[[str, str], None],
        choose: ChooseApp | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._limits = limits
        self._choose = choose
        self._report = report

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._choose is not None:
            self.app = self._choose(transport.get_extra_info("socket"))
        if len(self.connections) > self._limits.max_connections:
            self._report(self._peer(), refused_text(self._limits))
            transport.abort()
            return
        self.loop.call_later(self._limits.request_timeout_s, self._close_if_silent)

    def _close_if_silent(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            silent_s = self._limits.request_timeout_s
            self._report(self._peer(), f"control API: closed a connection without a request for {silent_s:g} s")
            self.transport.abort()

    def _peer(self) -> str:
        host, port, *_ = self.transport.get_extra_info("peername") or ("unknown", 0)
        return peer_text(host, port)


class HttpServer(uvicorn.Server):
    """Serves ``app`` on sockets that are given to ``serve``; ``on_ready`` is called once it accepts.

    ``on_limit`` is called with the client's address and a sentence for each connection that a limit ends. With ``tls``
    it speaks nothing but TLS, and ``on_no_tls`` is called in the same way for each connection that comes to no TLS.
    ``choose``, if it is given, returns the application for a connection, in place of ``app``.
    """

    def __init__(
        self,
        app: ASGIApp,
        on_ready: Callable[[], None],
        limits: HttpLimits,
        on_limit: Callable[[str, str], None] = lambda address, reason: None,
        *,
        tls: ssl.SSLContext | None = None,
        on_no_tls: Callable[[str, str], None] = lambda address, reason: None,
        choose: ChooseApp | None = None,
    ) -> None:
        self._said_at = -_SAY_INTERVAL_S
        self._on_limit = on_limit
        self._limits = limits
        self._tls = tls
        self._on_no_tls = on_no_tls
        self._accepting: list[asyncio.Task[None]] = []
        self._handshakes: set[asyncio.Task[None]] = set()
        protocol = functools.partial(_Protocol, limits=limits, report=self._report_limit, choose=choose)
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
        """Listen, and call ``on_ready``."""
        asyncio.get_running_loop().set_exception_handler(self._say_exception)
        for listener in sockets or []:
            _send_at_once(listener)
        if self._tls is None:
            await super().startup(sockets)
        else:
            self.servers = []
            for listener in sockets or []:
                listener.setblocking(False)
                listener.listen(_BACKLOG)
                self._accepting.append(asyncio.create_task(self._accept(listener, self._tls)))
            self.started = True
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, and let those that are at work finish."""
        ours = [*self._accepting, *self._handshakes]
        for task in ours:
            task.cancel()
        await asyncio.gather(*ours, return_exceptions=True)
        await super().shutdown(sockets)

    async def _accept(self, listener: socket.socket, tls: ssl.SSLContext) -> None:
        """Accept connections, and let each shake hands."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, peer = await loop.sock_accept(listener)
            except OSError as err:
                self._warn(f"control API: cannot accept a connection: {err.strerror}")
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            address = peer_text(*peer[:2])
            if len(self._handshakes) + len(self.server_state.connections) >= self._limits.max_connections:
                connection.close()
                self._report_limit(address, refused_text(self._limits))
                continue
            task = asyncio.create_task(self._shake_hands(connection, address, tls))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, connection: socket.socket, address: str, tls: ssl.SSLContext) -> None:
        """Begin TLS on a connection, which then is uvicorn's."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, connection, ssl=tls, ssl_handshake_timeout=self._limits.request_timeout_s
            )
        except OSError as err:
            connection.close()
            reason = err.reason if isinstance(err, ssl.SSLError) else None
            self._on_no_tls(address, f"no TLS 1.3: {reason or err.strerror or type(err).__name__}")

    def _protocol(self) -> asyncio.Protocol:
        """Make the protocol of a connection, as uvicorn does."""
        make = cast(Callable[..., asyncio.Protocol], self.config.http_protocol_class)
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signal handlers alone."""
        yield

    def _report_limit(self, address: str, text: str) -> None:
        self._on_limit(address, text)
        self._warn(text)

    def _warn(self, text: str) -> None:
        """Log a warning, at most one a second: one client may cause many."""
        now = time.monotonic()
        if now - self._said_at >= _SAY_INTERVAL_S:
            self._said_at = now
            _log.warning("%s", text)

    def _say_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Log in one line that no connection can be accepted (asyncio tries again); other errors as asyncio does."""
        err = context.get("exception")
        if isinstance(err, OSError) and "accept" in context.get("message", ""):
            self._warn(f"control API: cannot accept a connection: {err.strerror}")
        else:
            loop.default_exception_handler(context)
