# SPDX-License-Identifier: MIT
"""Relay TCP in this process, keep all bytes that pass, and strip STARTTLS on request, as an attacker would."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from helpers import nbd_raw as nbd

_OPTION = struct.Struct(">QII")


@dataclass
class Relay:
    """Is a relay on a port of its own of loopback.

    ``seen`` is all that passed, ``sent`` what the client of each connection has sent, in the connections' order.
    """

    target: tuple[str, int]
    strips_starttls: bool = False
    stripped: int = 0
    seen: bytearray = field(default_factory=bytearray)
    sent: list[bytearray] = field(default_factory=list)
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    _open: list[socket.socket] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Return the port to which clients connect."""
        return int(self.listener.getsockname()[1])

    def accept(self) -> None:
        """Serve connections until the listener is closed."""
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.target)
                self._open += [near, far]
                self.sent.append(bytearray())
                threading.Thread(target=self._pass, args=(far, near, bytearray()), daemon=True).start()
                threading.Thread(target=self._from_client, args=(near, far, self.sent[-1]), daemon=True).start()

    def hang_up(self) -> None:
        """End all connections; later connections are served."""
        for sock in self._open:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End all connections and refuse later ones."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.hang_up()
        for sock in (self.listener, *self._open):
            sock.close()

    def _from_client(self, near: socket.socket, far: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError, EOFError):
            if self.strips_starttls:
                self._strip(near, far, kept)
        self._pass(near, far, kept)

    def _strip(self, near: socket.socket, far: socket.socket, kept: bytearray) -> None:
        """Pass options on, but answer STARTTLS like a server without TLS."""
        self._send(far, exactly(near, 4), kept)
        while True:
            head = exactly(near, _OPTION.size)
            _, option, length = _OPTION.unpack(head)
            data = exactly(near, length)
            if option != nbd.STARTTLS:
                self._send(far, head + data, kept)
                continue
            self.stripped += 1
            near.sendall(struct.pack(">QIII", nbd.OPTION_REPLY_MAGIC, option, nbd.ERR_UNSUP, 0))

    def _pass(self, from_: socket.socket, to: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := from_.recv(1 << 16):
                self._send(to, data, kept)
        for sock in (from_, to):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _send(self, to: socket.socket, data: bytes, kept: bytearray) -> None:
        self.seen += data
        kept += data
        to.sendall(data)


def exactly(sock: socket.socket, length: int) -> bytes:
    """Return so many bytes. Raises ``EOFError`` if the peer closes first."""
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


@contextlib.contextmanager
def recording_relay(port: int, *, strips_starttls: bool = False) -> Iterator[Relay]:
    """Run a relay to a port of 127.0.0.1 until the end of the block."""
    relay = Relay(("127.0.0.1", port), strips_starttls)
    thread = threading.Thread(target=relay.accept, daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        relay.close()
        thread.join(20)
