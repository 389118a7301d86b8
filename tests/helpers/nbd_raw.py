# SPDX-License-Identifier: MIT
"""Speak NBD byte by byte, also what no correct client would send. Numbers are the specification's."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_MAGIC = 0x67446698
STRUCTURED_MAGIC = 0x668E33EF

EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY, LIST_META, SET_META = 1, 2, 3, 5, 6, 7, 8, 9, 10
ACK, REP_SERVER, REP_INFO, REP_META = 1, 2, 3, 4
ERR_UNSUP, ERR_POLICY, ERR_INVALID, ERR_TLS_REQD, ERR_UNKNOWN, ERR_TOO_BIG = (
    0x80000000 + n for n in (1, 2, 3, 5, 6, 9)
)
READ, WRITE, DISC, FLUSH, TRIM, CACHE, ZEROES, STATUS = range(8)
FUA, NO_HOLE, DF, REQ_ONE, FAST_ZERO = 1, 2, 4, 8, 16
EINVAL, ENOSPC, ENOTSUP = 22, 28, 95
CHUNK_NONE, CHUNK_DATA, CHUNK_HOLE, CHUNK_STATUS, CHUNK_ERROR = 0, 1, 2, 5, 0x8001
TIMEOUT_S = 20.0


@dataclass
class Reply:
    """Is the answer to one request. ``chunks`` are (type, payload) of a structured reply, None for a simple reply."""

    cookie: int
    error: int = 0
    data: bytes = b""
    chunks: list[tuple[int, bytes]] | None = None
    extents: list[tuple[int, int]] = field(default_factory=list)


class RawClient:
    """Is one connection. The greeting is read and ``client_flags`` are sent at once (None: not sent).

    ``source`` is the address from which it connects.
    """

    def __init__(self, port: int, *, client_flags: int | None = 3, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S, source_address=(source, 0))
        self.greeting = self.receive(18)
        self.no_zeroes = client_flags is not None and bool(client_flags & 2)
        self._cookie = 0
        if client_flags is not None:
            self.socket.sendall(struct.pack(">I", client_flags))

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def receive(self, length: int) -> bytes:
        """Return exactly ``length`` bytes; raise ``EOFError`` if the server closes the connection before."""
        data = bytearray()
        while len(data) < length:
            more = self.socket.recv(min(length - len(data), 1 << 20))
            if not more:
                raise EOFError(f"closed after {len(data)} of {length} bytes")
            data += more
        return bytes(data)

    def is_closed(self) -> bool:
        """Wait until the server closes the connection; return False if it sends something instead."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    # --- options ---

    def send_option(self, option: int, data: bytes = b"", *, length: int | None = None) -> None:
        """Send an option; ``length`` may give a wrong length of the data."""
        length = len(data) if length is None else length
        self.socket.sendall(struct.pack(">QII", OPTION_MAGIC, option, length) + data)

    def option_reply(self) -> tuple[int, int, bytes]:
        """Return option, type and data of one reply."""
        magic, option, kind, length = struct.unpack(">QIII", self.receive(20))
        assert magic == OPTION_REPLY_MAGIC
        return option, kind, self.receive(length)

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option and return its replies (type, data); the last reply is ACK or an error."""
        self.send_option(option, data)
        replies: list[tuple[int, bytes]] = []
        while not replies or (replies[-1][0] != ACK and replies[-1][0] < 0x80000000):
            answered, kind, payload = self.option_reply()
            assert answered == option
            replies.append((kind, payload))
        return replies

    def negotiate_structured(self) -> None:
        """Ask for structured replies."""
        assert self.option(STRUCTURED_REPLY) == [(ACK, b"")]

    def set_context(self, export: str, *queries: str) -> list[tuple[int, bytes]]:
        """Set metadata contexts."""
        return self.option(SET_META, context_data(export, *queries))

    def go(self, export: str) -> int:
        """Enter transmission and return the export's flags."""
        replies = self.option(GO, info_data(export))
        assert replies[-1][0] == ACK, replies
        return int(struct.unpack(">HQH", replies[0][1])[2])

    # --- requests ---

    def send(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b"") -> int:
        """Send a request and return its cookie."""
        self._cookie += 1
        self.socket.sendall(self.pack(command, offset, length, flags=flags, cookie=self._cookie) + payload)
        return self._cookie

    @staticmethod
    def pack(command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 0) -> bytes:
        """Return the bytes of a request."""
        return struct.pack(">IHHQQI", REQUEST_MAGIC, flags, command, cookie, offset, length)

    def reply(self, read_bytes: int = 0) -> Reply:
        """Return the next reply; a simple one carries ``read_bytes`` of data if it is not an error."""
        magic = struct.unpack(">I", self.receive(4))[0]
        if magic == SIMPLE_MAGIC:
            error, cookie = struct.unpack(">IQ", self.receive(12))
            return Reply(cookie, error, b"" if error else self.receive(read_bytes))
        assert magic == STRUCTURED_MAGIC, hex(magic)
        return self._structured_reply()

    def _structured_reply(self) -> Reply:
        flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
        reply, data = Reply(cookie, chunks=[]), bytearray()
        while True:
            data += self._take_chunk(reply, kind, self.receive(length))
            if flags & 1:
                reply.data = bytes(data)
                return reply
            magic, flags, kind, same, length = struct.unpack(">IHHQI", self.receive(20))
            assert (magic, same) == (STRUCTURED_MAGIC, cookie)

    @staticmethod
    def _take_chunk(reply: Reply, kind: int, payload: bytes) -> bytes:
        """Note a chunk and return the data that it stands for."""
        assert reply.chunks is not None
        reply.chunks.append((kind, payload))
        if kind == CHUNK_ERROR:
            reply.error = struct.unpack(">IH", payload[:6])[0]
        if kind == CHUNK_DATA:
            return payload[8:]
        if kind == CHUNK_HOLE:
            return bytes(struct.unpack(">QI", payload)[1])
        if kind == CHUNK_STATUS:
            reply.extents = list(struct.iter_unpack(">II", payload[4:]))
        return b""

    def command(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b"") -> Reply:
        """Send a request and return its reply."""
        cookie = self.send(command, offset, length, flags=flags, payload=payload)
        reply = self.reply(length if command == READ else 0)
        assert reply.cookie == cookie
        return reply

    def read(self, offset: int, length: int, *, flags: int = 0) -> bytes:
        """Read; the read must succeed."""
        reply = self.command(READ, offset, length, flags=flags)
        assert reply.error == 0
        return reply.data

    def write(self, offset: int, data: bytes) -> None:
        """Write; the write must succeed."""
        assert self.command(WRITE, offset, len(data), payload=data).error == 0


def info_data(export: str, *infos: int) -> bytes:
    """Return the data of the options INFO and GO."""
    name = export.encode()
    return struct.pack(f">I{len(name)}sH{len(infos)}H", len(name), name, len(infos), *infos)


def context_data(export: str, *queries: str) -> bytes:
    """Return the data of the options LIST_META_CONTEXT and SET_META_CONTEXT."""
    strings = [export.encode(), *(query.encode() for query in queries)]
    packed = [struct.pack(">I", len(text)) + text for text in strings]
    return packed[0] + struct.pack(">I", len(queries)) + b"".join(packed[1:])


def connect(port: int, export: str, *, structured: bool = True, source: str = "127.0.0.1") -> RawClient:
    """Return a client in transmission, with both structured replies and base:allocation, or neither."""
    client = RawClient(port, source=source)
    if structured:
        client.negotiate_structured()
        client.set_context(export, "base:allocation")
    client.go(export)
    return client
