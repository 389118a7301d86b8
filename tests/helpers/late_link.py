# SPDX-License-Identifier: MIT
"""Relay TCP, keep back what one side has sent, and deliver it late, as a network may."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class _Relayed:
    """Is one connection: the client's data may be kept back, also after the client has gone."""

    client: socket.socket
    server: socket.socket
    kept: bytearray = field(default_factory=bytearray)
    keep: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def pump_to_server(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.client.recv(1 << 16):
                with self.lock:
                    if self.keep:
                        self.kept += data
                    else:
                        self.server.sendall(data)
        with self.lock:
            if not self.keep:
                self._close(self.server)

    def pump_to_client(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.server.recv(1 << 16):
                self.client.sendall(data)
        self._close(self.client)

    @staticmethod
    def _close(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


class LateLink:
    """Relays to ``address`` (``HOST:PORT``)."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._relayed: list[_Relayed] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        """Return where the relay listens."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                relayed = _Relayed(client, socket.create_connection(self._target))
                self._relayed.append(relayed)
                threading.Thread(target=relayed.pump_to_server, daemon=True).start()
                threading.Thread(target=relayed.pump_to_client, daemon=True).start()

    def keep_back(self, nth: int) -> None:
        """From now on, keep back what arrives on the ``nth`` connection (from 0)."""
        with self._relayed[nth].lock:
            self._relayed[nth].keep = True

    def kept_bytes(self) -> int:
        """Return how many bytes are kept back."""
        return sum(len(relayed.kept) for relayed in self._relayed)

    def break_clients(self) -> None:
        """Break, towards the clients, the connections whose data is kept back."""
        for relayed in self._relayed:
            if relayed.keep:
                relayed._close(relayed.client)

    def deliver(self) -> None:
        """Send now what was kept back; a server that has closed by now gets nothing."""
        for relayed in self._relayed:
            if not relayed.keep:
                continue
            with relayed.lock, contextlib.suppress(OSError):
                relayed.server.sendall(relayed.kept)
                relayed.kept.clear()
                relayed.server.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Break all present connections; new ones are relayed."""
        for relayed in self._relayed:
            relayed._close(relayed.client)
            relayed._close(relayed.server)

    def close(self) -> None:
        """Close everything."""
        self._listener.close()
        for relayed in self._relayed:
            relayed.client.close()
            relayed.server.close()


@contextlib.contextmanager
def late_link(address: str) -> Iterator[LateLink]:
    """Run a relay until the end of the block."""
    link = LateLink(address)
    try:
        yield link
    finally:
        link.close()
