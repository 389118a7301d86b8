# SPDX-License-Identifier: MIT
"""Be an NBD server that lies on purpose: it tests what the pager must withstand, never what a donor does.

    with hostile_donor(16 << 20, identity="liar 1") as donor:
        donor.choose = lambda request: overlapping if request.command == READ else None

Its memory is correct; a lie is a function that writes something else than the honest answer to the connection.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from helpers.nbd_raw import (
    ACK,
    CHUNK_DATA,
    CHUNK_ERROR,
    CHUNK_HOLE,
    CHUNK_NONE,
    ERR_UNSUP,
    GO,
    OPTION_MAGIC,
    OPTION_REPLY_MAGIC,
    READ,
    REP_INFO,
    REQUEST_MAGIC,
    SIMPLE_MAGIC,
    STRUCTURED_MAGIC,
    STRUCTURED_REPLY,
    TRIM,
    WRITE,
)

HAS_FLAGS_TRIM_MULTI = 1 | 1 << 5 | 1 << 8
INFO_EXPORT, INFO_DESCRIPTION = 0, 2
EIO = 5


@dataclass(frozen=True)
class Request:
    """Is a request of the pager. ``payload`` belongs to a write."""

    command: int
    cookie: int
    offset: int
    length: int
    payload: bytes = b""


@dataclass
class Connection:
    """Is one connection of the pager."""

    sock: socket.socket
    memory: bytearray
    structured: bool = False

    def receive(self, length: int) -> bytes:
        """Return exactly this many bytes; raise ``EOFError`` if there are no more."""
        data = bytearray()
        while len(data) < length:
            more = self.sock.recv(length - len(data))
            if not more:
                raise EOFError
            data += more
        return bytes(data)

    def send(self, data: bytes) -> None:
        """Send all of the data."""
        self.sock.sendall(data)

    def simple(self, cookie: int, error: int = 0, data: bytes = b"") -> None:
        """Send a simple reply."""
        self.send(struct.pack(">IIQ", SIMPLE_MAGIC, error, cookie) + data)

    def chunk(self, cookie: int, kind: int, payload: bytes = b"", *, last: bool = False) -> None:
        """Send a chunk."""
        self.send(struct.pack(">IHHQI", STRUCTURED_MAGIC, last, kind, cookie, len(payload)) + payload)

    def data(self, request: Request, at: int, length: int, *, last: bool = False) -> None:
        """Send a part of the wanted data, at ``at`` from its start."""
        start = request.offset + at
        content = bytes(self.memory[start : start + length]).ljust(length, b"?")
        self.chunk(request.cookie, CHUNK_DATA, struct.pack(">Q", start) + content, last=last)

    def hole(self, request: Request, at: int, length: int, *, last: bool = False) -> None:
        """Report that a part is zeroes."""
        self.chunk(request.cookie, CHUNK_HOLE, struct.pack(">QI", request.offset + at, length), last=last)

    def error(self, request: Request, error: int, text: bytes = b"", *, last: bool = False) -> None:
        """Send an error chunk."""
        self.chunk(request.cookie, CHUNK_ERROR, struct.pack(">IH", error, len(text)) + text, last=last)

    def close(self) -> None:
        """Break the connection."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def honest(self, request: Request) -> None:
        """Do the request, and answer it correctly."""
        end = request.offset + request.length
        if request.command == WRITE:
            self.memory[request.offset : end] = request.payload
        elif request.command == TRIM:
            self.memory[request.offset : end] = bytes(request.length)
        if request.command == READ and self.structured:
            self.data(request, 0, request.length, last=True)
        elif request.command == READ:
            self.simple(request.cookie, 0, bytes(self.memory[request.offset : end]))
        else:
            self.simple(request.cookie)


Lie = Callable[[Connection, Request], None]


# --- lies about reads ---


def overlapping(conn: Connection, request: Request) -> None:
    """Send as many bytes as asked for, but the second half twice and the first half never."""
    half = request.length // 2
    conn.data(request, half, half)
    conn.data(request, half, half, last=True)


def overlapping_late(conn: Connection, request: Request) -> None:
    """Send the first quarter twice, and the last quarter never."""
    quarter = request.length // 4
    conn.data(request, 0, 2 * quarter)
    conn.data(request, quarter, 2 * quarter, last=True)


def overlapping_holes(conn: Connection, request: Request) -> None:
    """Do the same as `overlapping` with holes."""
    conn.hole(request, 0, request.length // 2)
    conn.hole(request, 0, request.length // 2, last=True)


def endless_holes(conn: Connection, request: Request) -> None:
    """Send holes without end."""
    for _ in range(100):
        conn.hole(request, 0, request.length)


def holes_of_nothing(conn: Connection, request: Request) -> None:
    """Send holes of no length."""
    for _ in range(100):
        conn.hole(request, 0, 0)


def endless_errors(conn: Connection, request: Request) -> None:
    """Send errors without end."""
    for _ in range(1000):
        conn.error(request, EIO, b"again")


def flood(conn: Connection, request: Request) -> None:
    """Do the same for as long as the pager reads."""
    while True:
        conn.error(request, EIO, bytes(4000))


def short(conn: Connection, request: Request) -> None:
    """End the reply before the data ends."""
    conn.data(request, 0, request.length - 512, last=True)


def nothing(conn: Connection, request: Request) -> None:
    """End the reply without data."""
    conn.chunk(request.cookie, CHUNK_NONE, last=True)


def too_much(conn: Connection, request: Request) -> None:
    """Send more data than was asked for."""
    conn.data(request, 0, request.length + 4096, last=True)


def beside(conn: Connection, request: Request) -> None:
    """Send the data of another place."""
    conn.data(request, request.length, request.length, last=True)


def before(conn: Connection, request: Request) -> None:
    """Send the data of the place before the wanted one."""
    conn.chunk(request.cookie, CHUNK_DATA, struct.pack(">Q", request.offset - 512) + bytes(request.length), last=True)


def huge(conn: Connection, request: Request) -> None:
    """Send a length of almost 4 GiB."""
    conn.send(struct.pack(">IHHQIQ", STRUCTURED_MAGIC, 1, CHUNK_DATA, request.cookie, 0xFFFFFFFF, request.offset))


def end_inside(conn: Connection, request: Request) -> None:
    """Break the connection inside the data."""
    half = bytes(request.length // 2)
    conn.send(
        struct.pack(">IHHQIQ", STRUCTURED_MAGIC, 1, CHUNK_DATA, request.cookie, request.length + 8, request.offset)
        + half
    )
    conn.close()


def without_chunks(conn: Connection, request: Request) -> None:
    """Send a simple reply where chunks were agreed on."""
    conn.simple(request.cookie, 0, bytes(request.length))


def half(conn: Connection, request: Request) -> None:
    """Send half of the data, and then nothing more."""
    length = request.length + 8
    conn.send(struct.pack(">IHHQIQ", STRUCTURED_MAGIC, 1, CHUNK_DATA, request.cookie, length, request.offset))
    conn.send(bytes(request.length // 2))


# --- lies about anything ---


def end(conn: Connection, request: Request) -> None:
    """Break the connection instead of answering."""
    del request
    conn.close()


def other_cookie(conn: Connection, request: Request) -> None:
    """Answer another request, of the past or the future."""
    conn.honest(Request(request.command, request.cookie ^ 1 << 40, request.offset, request.length, request.payload))


def garbage(conn: Connection, request: Request) -> None:
    """Send bytes without a meaning."""
    conn.send(struct.pack(">Q", request.cookie) * 64)


def twice(conn: Connection, request: Request) -> None:
    """Send the correct answer twice."""
    conn.honest(request)
    conn.honest(request)


def unknown_chunk(conn: Connection, request: Request) -> None:
    """Send a chunk of an unknown kind."""
    conn.chunk(request.cookie, 77, b"what", last=True)


def data_for_a_write(conn: Connection, request: Request) -> None:
    """Answer a write with data."""
    conn.data(request, 0, request.length, last=True)


READ_LIES: tuple[Lie, ...] = (
    overlapping,
    overlapping_late,
    overlapping_holes,
    endless_holes,
    holes_of_nothing,
    endless_errors,
    short,
    nothing,
    too_much,
    beside,
    before,
    huge,
    end_inside,
    without_chunks,
    end,
    other_cookie,
    garbage,
    twice,
    unknown_chunk,
)
# These lies never complete the answer, and none of their bytes is wrong.
ENDLESS_LIES: tuple[Lie, ...] = (endless_holes, holes_of_nothing, endless_errors)
WRITE_LIES: tuple[Lie, ...] = (end, other_cookie, garbage, twice, unknown_chunk, data_for_a_write)


def honestly(request: Request) -> Lie | None:
    """Choose no lie."""
    del request
    return None


@dataclass
class HostileDonor:
    """Listens on loopback. ``choose`` returns the lie for a request, or None; one call at a time.

    A read is answered after ``delay_s``; new connections are accepted but not served while ``talks`` is unset.
    """

    size_bytes: int
    identity: str
    choose: Callable[[Request], Lie | None] = honestly
    memory: bytearray = field(init=False)
    told: list[str] = field(default_factory=list)
    delay_s: float = 0.0
    talks: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.memory = bytearray(self.size_bytes)
        self.talks.set()
        self._lock = threading.Lock()
        self._socks: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def uri(self) -> str:
        """Return the NBD URI."""
        return f"nbd://127.0.0.1:{self._listener.getsockname()[1]}/a"

    def close(self) -> None:
        """End the server."""
        self._listener.close()
        self.talks.set()
        self.hang_up()

    def hang_up(self) -> None:
        """Break all connections."""
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._socks.append(sock)
                threading.Thread(target=self._serve, args=(Connection(sock, self.memory),), daemon=True).start()

    def _serve(self, conn: Connection) -> None:
        with contextlib.suppress(OSError, EOFError), conn.sock:
            self.talks.wait()
            if self._negotiate(conn):
                while True:
                    self._answer(conn, _take_request(conn))

    def _answer(self, conn: Connection, request: Request) -> None:
        if request.command == READ and self.delay_s:
            time.sleep(self.delay_s)
        with self._lock:
            lie = self.choose(request)
            if lie is not None:
                self.told.append(lie.__name__)
            (lie or Connection.honest)(conn, request)

    def _negotiate(self, conn: Connection) -> bool:
        conn.send(struct.pack(">QQH", 0x4E42444D41474943, OPTION_MAGIC, 3))
        conn.receive(4)
        while True:
            _, option, length = struct.unpack(">QII", conn.receive(16))
            conn.receive(length)
            if option == GO:
                facts = struct.pack(">HQH", INFO_EXPORT, self.size_bytes, HAS_FLAGS_TRIM_MULTI)
                _reply(conn, option, REP_INFO, facts)
                _reply(conn, option, REP_INFO, struct.pack(">H", INFO_DESCRIPTION) + self.identity.encode())
                _reply(conn, option, ACK)
                return True
            if option == STRUCTURED_REPLY:
                conn.structured = True
            _reply(conn, option, ACK if option == STRUCTURED_REPLY else ERR_UNSUP)


def _reply(conn: Connection, option: int, kind: int, data: bytes = b"") -> None:
    conn.send(struct.pack(">QIII", OPTION_REPLY_MAGIC, option, kind, len(data)) + data)


def _take_request(conn: Connection) -> Request:
    magic, _, command, cookie, offset, length = struct.unpack(">IHHQQI", conn.receive(28))
    assert magic == REQUEST_MAGIC
    if command not in (READ, WRITE, TRIM):
        raise EOFError  # NBD_CMD_DISC
    return Request(command, cookie, offset, length, conn.receive(length) if command == WRITE else b"")


@contextlib.contextmanager
def hostile_donor(size_bytes: int, *, identity: str = "liar 1") -> Iterator[HostileDonor]:
    """Run a hostile donor until the end of the block."""
    donor = HostileDonor(size_bytes, identity)
    try:
        yield donor
    finally:
        donor.close()
