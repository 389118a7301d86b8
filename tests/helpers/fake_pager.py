# SPDX-License-Identifier: MIT
"""Be a pager that misbehaves on purpose: it tests what the shim must withstand, never what the pager does.

It speaks qemu/proto/proto.h over a SEQPACKET socket and can answer faults through the userfaultfd that it received.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAGIC = 0x47424F58
VERSION = 2
(
    HELLO,
    WELCOME,
    REJECT,
    REGION,
    REGION_OK,
    ZAP,
    ZAP_DONE,
    DISCARD_BEGIN,
    DISCARD_READY,
    DISCARD_END,
    PIN,
    PIN_DONE,
    UNPIN,
    UNPIN_DONE,
    BYE,
    DISCARD_DONE,
    BYE_DONE,
) = range(1, 18)
HELLO_RESUME = 1

PAGE = 4096
UFFD_FEATURES = (1 << 5) | (1 << 10) | 1 | (1 << 12)  # missing and minor on shmem, write-protect flag, wp on shmem
REGISTER_MODES = 7  # missing, wp, minor
PAGEFAULT_WP, PAGEFAULT_MINOR = 2, 4
UFFDIO_COPY, UFFDIO_ZEROPAGE, UFFDIO_WAKE = 0xC028AA03, 0xC020AA04, 0x8010AA02
UFFDIO_WRITEPROTECT, UFFDIO_CONTINUE = 0xC018AA06, 0xC020AA07


@dataclass(frozen=True)
class Message:
    """Is one packet: ``body`` is what follows the header."""

    type: int
    seq: int
    body: bytes
    fds: list[int]


@dataclass
class Peer:
    """Is one connection of a shim."""

    sock: socket.socket
    uffd: int = -1
    memfd: int = -1
    pagemap: int = -1
    base: int = 0
    length: int = 0
    hello_flags: int = 0
    pid: int = 0
    seq: int = 100
    later: list[Message] = field(default_factory=list)

    def send(self, type: int, body: bytes = b"", *, seq: int = 0, fds: tuple[int, ...] = ()) -> None:
        """Send one well-formed message."""
        packet = struct.pack("=IHHII", MAGIC, VERSION, type, seq, 16 + len(body)) + body
        socket.send_fds(self.sock, [packet], list(fds))

    def receive(self, timeout_s: float = 10.0) -> Message | None:
        """Return the next message, or None when the shim has closed the connection."""
        self.sock.settimeout(timeout_s)
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, 8192, 8)
        except ConnectionResetError:
            return None
        if not data:
            return None
        magic, version, type, seq, length = struct.unpack_from("=IHHII", data)
        assert (magic, version, length) == (MAGIC, VERSION, len(data))
        return Message(type, seq, data[16:], fds)

    def welcome(self, features: int = UFFD_FEATURES, modes: int = REGISTER_MODES) -> None:
        """Answer HELLO with the device."""
        device = os.open("/dev/userfaultfd", os.O_RDWR | os.O_CLOEXEC)
        try:
            self.send(WELCOME, struct.pack("=QQ", features, modes), fds=(device,))
        finally:
            os.close(device)

    def take_hello(self) -> None:
        """Wait for HELLO."""
        hello = self.receive()
        assert hello is not None and hello.type == HELLO
        self.hello_flags, self.pid = struct.unpack_from("=II", hello.body)

    def take_region(self) -> None:
        """Wait for REGION and keep its descriptors."""
        region = self.receive()
        assert region is not None and region.type == REGION and len(region.fds) == 3
        self.base, self.length, _, page_bytes, _ = struct.unpack("=QQQQQ", region.body)
        assert page_bytes == PAGE
        self.uffd, self.memfd, self.pagemap = region.fds

    def take_memory(self) -> None:
        """Do the whole handshake except the answer to REGION."""
        self.take_hello()
        self.welcome()
        self.take_region()

    def reject(self, error: int, text: bytes) -> None:
        """Refuse the shim and close the connection."""
        self.send(REJECT, struct.pack("=iI", error, 0) + text.ljust(240, b"\0"))
        self.sock.close()

    def handshake(self) -> Peer:
        """Do the whole handshake correctly."""
        self.take_memory()
        self.send(REGION_OK, struct.pack("=II", 1, 0))
        return self

    def zap(self, *ranges: tuple[int, int], n_ranges: int | None = None) -> int:
        """Order a zap of (offset, length) pairs and return the shim's error."""
        self.seq += 1
        body = struct.pack("=II", len(ranges) if n_ranges is None else n_ranges, 0)
        body += b"".join(struct.pack("=QQ", *pair) for pair in ranges)
        self.send(ZAP, body, seq=self.seq)
        answer = self.receive()
        if answer is None:
            raise ConnectionError("the shim closed")
        assert (answer.type, answer.seq) == (ZAP_DONE, self.seq)
        return int(struct.unpack_from("=i", answer.body)[0])

    def take_range(self, type: int, timeout_s: float = 10.0) -> tuple[int, int, int, int]:
        """Wait for DISCARD_BEGIN or DISCARD_END and return (seq, offset, length, error)."""
        message = self.receive(timeout_s)
        assert message is not None and message.type == type, message
        offset, length, error, _ = struct.unpack("=QQiI", message.body)
        return message.seq, offset, length, error

    def ready(self, seq: int, error: int = 0) -> None:
        """Answer DISCARD_BEGIN."""
        self.send(DISCARD_READY, struct.pack("=iI", error, 0), seq=seq)

    def done(self, seq: int) -> None:
        """Answer DISCARD_END."""
        self.send(DISCARD_DONE, struct.pack("=iI", 0, 0), seq=seq)

    def agree(self, seq: int) -> None:
        """Do all that follows a DISCARD_BEGIN."""
        self.ready(seq)
        assert self.take_range(DISCARD_END)[0] == seq
        self.done(seq)

    def take_bye(self) -> int:
        """Wait for BYE and return its seq."""
        message = self.receive()
        assert message is not None and message.type == BYE, message
        return message.seq

    def part(self) -> None:
        """Wait for BYE and answer like a pager."""
        self.send(BYE_DONE, seq=self.take_bye())
        assert self.hung_up()
        self.close()

    def serve_fault(self, content: bytes | None = None, timeout_s: float = 10.0) -> tuple[int, int]:
        """Answer one fault: copy ``content`` (or zeroes) or continue; return (page number, flags)."""
        if not select.select([self.uffd], [], [], timeout_s)[0]:
            raise TimeoutError("no fault")
        event = os.read(self.uffd, 32)
        flags, address = struct.unpack_from("=QQ", event, 8)
        address &= ~(PAGE - 1)
        if flags & PAGEFAULT_MINOR:
            fcntl.ioctl(self.uffd, UFFDIO_CONTINUE, bytearray(struct.pack("=QQQq", address, PAGE, 0, 0)))
        elif flags & PAGEFAULT_WP:
            fcntl.ioctl(self.uffd, UFFDIO_WRITEPROTECT, bytearray(struct.pack("=QQQ", address, PAGE, 0)))
        else:
            self.copy((address - self.base) // PAGE, content or bytes(PAGE))
        return (address - self.base) // PAGE, flags

    def copy(self, page: int, content: bytes) -> None:
        """Copy one page in with UFFDIO_COPY."""
        import ctypes

        buffer = ctypes.create_string_buffer(content, PAGE)
        request = struct.pack("=QQQQq", self.base + page * PAGE, ctypes.addressof(buffer), PAGE, 0, 0)
        fcntl.ioctl(self.uffd, UFFDIO_COPY, bytearray(request))

    def has_fault(self, timeout_s: float) -> bool:
        """Tell whether a fault waits."""
        return bool(select.select([self.uffd], [], [], timeout_s)[0])

    def hung_up(self, timeout_s: float = 10.0) -> bool:
        """Tell whether the shim closes the connection within the time."""
        return self.receive(timeout_s) is None

    def close(self) -> None:
        """Close the connection and the received descriptors."""
        self.sock.close()
        for fd in (self.uffd, self.memfd, self.pagemap):
            if fd >= 0:
                os.close(fd)
        self.uffd = self.memfd = self.pagemap = -1


class FakePager:
    """Listens where the shim looks for the pager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.peers: list[Peer] = []
        self.listener: socket.socket | None = None
        self.listen()

    def listen(self) -> None:
        """Begin to listen, also again after ``stop``."""
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(str(self.path))
        self.listener.listen(8)

    def accept(self, timeout_s: float = 10.0) -> Peer:
        """Wait for a shim's connection."""
        assert self.listener is not None
        self.listener.settimeout(timeout_s)
        peer = Peer(self.listener.accept()[0])
        self.peers.append(peer)
        return peer

    def no_shim_connects(self, timeout_s: float = 0.5) -> bool:
        """Tell whether no shim connects within the time."""
        assert self.listener is not None
        return not select.select([self.listener], [], [], timeout_s)[0]

    def stop(self) -> None:
        """Close everything, like a pager that dies."""
        if self.listener is not None:
            self.listener.close()
            self.path.unlink()
        self.listener = None
        for peer in self.peers:
            peer.close()
        self.peers.clear()


@contextlib.contextmanager
def fake_pager(path: Path) -> Iterator[FakePager]:
    """Run a fake pager that listens at ``path`` until the end of the block."""
    pager = FakePager(path)
    try:
        yield pager
    finally:
        pager.stop()
