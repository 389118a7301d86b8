# SPDX-License-Identifier: MIT
"""Relay TCP to an NBD server, and do harm on request. This is a program, so that it can run in a namespace.

    python chaos_relay.py LISTEN_HOST:PORT TARGET_HOST:PORT

It reads one command a line on stdin and writes one JSON answer a line on stdout: ``flip N`` (one bit in each of the
next N replies with data), ``garble N`` (the head of the next N replies), ``delay MS`` (each way, until it is set to 0),
``break`` (every connection, in the middle of its data), ``counts``. It ends with its stdin.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import sys
import threading
import time

OPTION_REPLY_MAGIC = 0x3E889045565A9
STRUCTURED_MAGIC, SIMPLE_MAGIC = 0x668E33EF, 0x67446698
GO, ACK, CHUNK_DATA = 7, 1, 1
GREETING_BYTES, OPTION_REPLY_BYTES, SIMPLE_BYTES, STRUCTURED_BYTES, OFFSET_BYTES = 18, 20, 16, 20, 8


class Harm:
    """Counts the harm to do to the replies, and the harm that was done."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.left = {"flip": 0, "garble": 0}
        self.done = {"flip": 0, "garble": 0, "replies": 0}
        self.delay_s = 0.0
        self.random = random.Random(1)

    def take(self, kind: str) -> bool:
        """Tell whether to harm this reply."""
        if not self.left[kind]:
            return False
        with self.lock:
            if not self.left[kind]:
                return False
            self.left[kind] -= 1
            self.done[kind] += 1
            return True

    def reply(self, reply: bytearray) -> None:
        """Do to one whole reply what is due."""
        self.done["replies"] += 1
        magic, _, kind = struct.unpack_from(">IHH", reply)
        carries = len(reply) - STRUCTURED_BYTES - OFFSET_BYTES
        if magic == STRUCTURED_MAGIC and kind == CHUNK_DATA and carries > 0 and self.take("flip"):
            at = STRUCTURED_BYTES + OFFSET_BYTES + self.random.randrange(carries)
            reply[at] ^= 1 << self.random.randrange(8)
        if self.take("garble"):
            reply[0] ^= 1 << self.random.randrange(8)


class Replies:
    """Splits the server's bytes into replies. ``take`` returns the bytes of all complete ones."""

    def __init__(self, harm: Harm) -> None:
        self.harm = harm
        self.buffer = bytearray()
        self.greeted = self.transmission = False

    def take(self, data: bytes) -> bytearray:
        self.buffer += data
        whole = bytearray()
        while length := self._length():
            reply = self.buffer[:length]
            del self.buffer[:length]
            self._note(reply)
            whole += reply
        return whole

    def _length(self) -> int:
        """Return the length of the first reply, or 0 if it is not complete."""
        need = self._need()
        return need if 0 < need <= len(self.buffer) else 0

    def _need(self) -> int:
        have = len(self.buffer)
        if not self.greeted:
            return GREETING_BYTES
        if not self.transmission:
            if have < OPTION_REPLY_BYTES:
                return 0
            return OPTION_REPLY_BYTES + int(struct.unpack_from(">I", self.buffer, 16)[0])
        if have < SIMPLE_BYTES:
            return 0
        if struct.unpack_from(">I", self.buffer)[0] == SIMPLE_MAGIC:
            return SIMPLE_BYTES
        if have < STRUCTURED_BYTES:
            return 0
        return STRUCTURED_BYTES + int(struct.unpack_from(">I", self.buffer, 16)[0])

    def _note(self, reply: bytearray) -> None:
        if self.transmission:
            self.harm.reply(reply)
        elif self.greeted:
            _, option, kind = struct.unpack_from(">QII", reply)
            self.transmission = (option, kind) == (GO, ACK)
        self.greeted = True


class Relay:
    """Accepts, connects and copies, each connection with two threads."""

    def __init__(self, listen: str, target: str) -> None:
        self.harm = Harm()
        self.open: set[socket.socket] = set()
        self._target = _address(target)
        self._listener = socket.create_server(_address(listen))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._target, timeout=5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.open.add(sock)
        threading.Thread(target=self._pump, args=(client, server, None), daemon=True).start()
        self._pump(server, client, Replies(self.harm))

    def _pump(self, source: socket.socket, sink: socket.socket, replies: Replies | None) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                if self.harm.delay_s:
                    time.sleep(self.harm.delay_s)
                sink.sendall(replies.take(data) if replies else data)
        self._close(source)
        self._close(sink)

    def _close(self, sock: socket.socket) -> None:
        self.open.discard(sock)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    def command(self, words: list[str]) -> dict[str, int]:
        """Do the command in a line."""
        if words[0] in self.harm.left:
            self.harm.left[words[0]] = int(words[1])
        elif words[0] == "delay":
            self.harm.delay_s = int(words[1]) / 1000
        elif words[0] == "break":
            for sock in list(self.open):
                self._close(sock)
        return self.harm.done


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


def main() -> None:
    """Run until stdin ends."""
    relay = Relay(sys.argv[1], sys.argv[2])
    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(relay.command(line.split())), flush=True)


if __name__ == "__main__":
    main()
