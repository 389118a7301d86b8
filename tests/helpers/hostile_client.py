# SPDX-License-Identifier: MIT
"""Run processes that break the shim's protocol on purpose, to test what the pager must withstand.

    python hostile_client.py SOCKET FIRST_SEED N

Each seed is a process of its own that sends random messages of qemu/proto/proto.h, half of them well-formed, with
random descriptors, and ends. The program prints a line for each kind of answer with its number.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import random
import select
import signal
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable

MAGIC, VERSION = 0x47424F58, 2
HELLO, WELCOME, REJECT, REGION, REGION_OK, ZAP, ZAP_DONE = range(1, 8)
DISCARD_BEGIN, DISCARD_READY, DISCARD_END, PIN, UNPIN, BYE = 8, 9, 10, 11, 13, 15
DISCARD_DONE = 16
PAGE = 4096
REGION_PAGES = 64
UFFDIO_API, UFFDIO_REGISTER, USERFAULTFD_IOC_NEW = 0xC018AA3F, 0xC020AA00, 0xAA00
ANSWER_S = 0.03
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)
LIBC.memset.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
EDGES = (
    0,
    1,
    PAGE - 1,
    PAGE,
    2 * PAGE,
    REGION_PAGES * PAGE,
    1 << 31,
    1 << 32,
    1 << 63,
    (1 << 64) - PAGE,
    (1 << 64) - 1,
)


class Client:
    """Is one hostile process."""

    def __init__(self, path: str, seed: int, *, pages: int = REGION_PAGES) -> None:
        self.rng = random.Random(seed)
        self.path = path
        self.bytes = pages * PAGE
        self.seen: Counter[str] = Counter()
        self.sock = self.connect()
        self.memfd = os.memfd_create("memory-backend-memfd")
        os.ftruncate(self.memfd, self.bytes)
        self.memory = mmap.mmap(self.memfd, self.bytes, flags=mmap.MAP_SHARED)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.uffd = -1

    def connect(self) -> socket.socket:
        """Connect anew."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(5)
        sock.connect(self.path)
        return sock

    def number(self) -> int:
        """Return a number that a program may have got wrong."""
        if self.rng.random() < 0.6:
            return self.rng.choice(EDGES)
        return self.rng.randrange(REGION_PAGES + 2) * PAGE if self.rng.random() < 0.8 else self.rng.getrandbits(64)

    def send(self, kind: int, body: bytes, fds: list[int] | None = None) -> None:
        """Send a message whose header may be wrong."""
        length = 16 + len(body)
        header = [MAGIC, VERSION, kind, self.rng.randrange(4), length]
        if self.rng.random() < 0.05:
            header[self.rng.randrange(5)] = self.rng.randrange(1 << 16)
        with contextlib.suppress(OSError):
            socket.send_fds(self.sock, [struct.pack("=IHHII", *header) + body], fds or [])

    def receive(self, first_s: float = 0.0) -> None:
        """Take the messages that have come; a WELCOME makes a userfaultfd."""
        wait_s = first_s or (ANSWER_S if self.rng.random() < 0.5 else 0)
        while select.select([self.sock], [], [], wait_s)[0]:
            wait_s = 0
            try:
                data, fds, _, _ = socket.recv_fds(self.sock, 8192, 4)
            except OSError:
                data, fds = b"", []
            if len(data) < 16:
                self.sock.close()
                self.sock = self.connect()
                return
            kind = struct.unpack_from("=IHHII", data)[2]
            self.seen[{WELCOME: "welcome", REJECT: "reject", REGION_OK: "region"}.get(kind, "other")] += 1
            if kind == WELCOME and fds and self.uffd < 0:
                self.make_uffd(fds[0], data[16:])

    def make_uffd(self, device: int, welcome: bytes) -> None:
        """Register the memory like the shim."""
        features, modes = struct.unpack("=QQ", welcome)
        self.uffd = fcntl.ioctl(device, USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)
        fcntl.ioctl(self.uffd, UFFDIO_API, bytearray(struct.pack("=QQQ", 0xAA, features, 0)))
        request = struct.pack("=QQQQ", self.base, self.bytes, modes, 0)
        fcntl.ioctl(self.uffd, UFFDIO_REGISTER, bytearray(request))

    def descriptor(self) -> int:
        """Return a descriptor of any kind, mostly of a wrong kind."""
        made: list[Callable[[], int]] = [
            lambda: self.memfd,
            lambda: self.uffd if self.uffd >= 0 else self.memfd,
            lambda: os.open("/proc/self/pagemap", os.O_RDONLY),
            lambda: os.open("/dev/null", os.O_RDWR),
            lambda: os.open("/dev/zero", os.O_RDWR),
            lambda: os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC),
            lambda: os.open("/", os.O_RDONLY),
            lambda: os.pipe()[0],
            lambda: os.pipe()[1],
            lambda: os.eventfd(0),
            lambda: os.eventfd(1),
            socket.socketpair()[0].detach,
            lambda: os.dup(self.sock.fileno()),
            lambda: os.memfd_create("other"),
        ]
        return self.rng.choice(made)()

    def hello(self) -> None:
        """Send a HELLO with any contents."""
        name = self.rng.choice([b"qemu", b"", b"\xff\xfe\x80", b"a\nerror: forged", b"x" * 16, b'"}\x00\x01'])
        flags = self.rng.choice([0, 0, 0, 1, 0xFFFFFFFF])
        self.send(HELLO, struct.pack("=II16s", flags, os.getpid(), name))

    def region(self) -> None:
        """Hand the memory over, correctly or not."""
        shape = [self.base, self.bytes, 0, PAGE, 0]
        fds = [self.uffd, self.memfd, os.open("/proc/self/pagemap", os.O_RDONLY)]
        if self.uffd < 0:
            fds[0] = self.descriptor()
        if self.rng.random() < 0.4:
            shape[self.rng.randrange(5)] = self.number()
        if self.rng.random() < 0.5:
            fds[self.rng.randrange(3)] = self.descriptor()
        if self.rng.random() < 0.2:
            fds = [self.descriptor() for _ in range(self.rng.randrange(8))]
        self.send(REGION, struct.pack("=QQQQQ", *shape), fds)

    def greet(self, name: bytes) -> None:
        """Send a correct HELLO and take the answer."""
        hello = struct.pack("=IHHIIII16s", MAGIC, VERSION, HELLO, 1, 40, 0, os.getpid(), name)
        self.sock.send(hello)
        data, fds, _, _ = socket.recv_fds(self.sock, 8192, 4)
        self.make_uffd(fds[0], data[16:])

    def hand_over(self, fds: list[int]) -> None:
        """Send a correct REGION with these descriptors."""
        body = struct.pack("=QQQQQ", self.base, self.bytes, 0, PAGE, 0)
        socket.send_fds(self.sock, [struct.pack("=IHHII", MAGIC, VERSION, REGION, 2, 56) + body], fds)

    def join(self) -> None:
        """Hand the memory over like a shim."""
        self.greet(b"qemu")
        self.hand_over([self.uffd, self.memfd, os.open("/proc/self/pagemap", os.O_RDONLY)])
        assert self.answer()[0] == REGION_OK

    def answer(self) -> tuple[int, str]:
        """Wait for a message; return its type and, of a REJECT, its text."""
        data = self.sock.recv(8192)
        kind = struct.unpack_from("=IHHII", data)[2]
        return kind, data[24:].split(b"\0")[0].decode() if kind == REJECT else ""

    def discard(self, kind: int, first: int, n_pages: int) -> None:
        """Send a correct DISCARD_BEGIN or DISCARD_END."""
        body = struct.pack("=QQiI", first * PAGE, n_pages * PAGE, 0, 0)
        self.sock.send(struct.pack("=IHHII", MAGIC, VERSION, kind, 3, 16 + len(body)) + body)

    def fill(self) -> threading.Thread:
        """Write to all of the memory, as far as the pager lets it: in a thread, without the interpreter's lock."""
        thread = threading.Thread(target=LIBC.memset, args=(self.base, 1, self.bytes), daemon=True)
        thread.start()
        return thread

    def zapped(self) -> None:
        """Wait for a ZAP and report that it is done, which is false."""
        seq = struct.unpack_from("=IHHII", self.sock.recv(8192))[3]
        self.sock.send(struct.pack("=IHHIIiI", MAGIC, VERSION, ZAP_DONE, seq, 24, 0, 0))

    def leave(self) -> None:
        """Send a correct BYE."""
        self.sock.send(struct.pack("=IHHII", MAGIC, VERSION, BYE, 4, 16))
        self.sock.close()

    def range_message(self) -> None:
        """Send a discard, or the end of a discard that may not exist."""
        kind = self.rng.choice([DISCARD_BEGIN, DISCARD_BEGIN, DISCARD_END, DISCARD_END, PIN, UNPIN])
        self.send(kind, struct.pack("=QQiI", self.number(), self.number(), self.rng.choice([0, 0, 22, -1]), 0))

    def zap_done(self) -> None:
        """Answer a request that may not have been made."""
        self.send(ZAP_DONE, struct.pack("=iI", self.rng.choice([0, 0, 5, -5, 1 << 30]), 0))

    def touch(self) -> None:
        """Access the memory in a thread, since the access may wait forever."""
        address = self.base + self.rng.randrange(REGION_PAGES) * PAGE
        if self.uffd >= 0:  # C waits without the interpreter's lock
            threading.Thread(target=LIBC.memset, args=(address, 1, 8), daemon=True).start()

    def other(self) -> None:
        """Send any other message."""
        kind = self.rng.random()
        if kind < 0.3:
            with contextlib.suppress(OSError):
                self.sock.send(self.rng.randbytes(self.rng.choice([0, 1, 15, 16, 40, 512, 8000])))
        elif kind < 0.5:
            self.send(self.rng.randrange(20), self.rng.randbytes(self.rng.randrange(64)), [self.descriptor()])
        elif kind < 0.6:
            self.send(BYE, b"")
        elif kind < 0.8:
            os.ftruncate(self.memfd, self.rng.randrange(REGION_PAGES + 1) * PAGE)
        else:
            self.sock.close()
            self.sock = self.connect()

    def run(self) -> dict[str, int]:
        """Send some twenty messages."""
        steps = [self.range_message, self.zap_done, self.touch, self.other, self.hello, self.region]
        for _ in range(self.rng.randrange(1, 4)):
            self.hello()
            self.receive(10 * ANSWER_S)
            self.region()
            for _ in range(self.rng.randrange(8)):
                self.rng.choices(steps, [4, 2, 3, 2, 1, 1])[0]()
                self.receive()
        return dict(self.seen)


def main(path: str, first_seed: int, n: int) -> None:
    """Run a process for each seed, one after the other."""
    seen: Counter[str] = Counter()
    for seed in range(first_seed, first_seed + n):
        result, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            LIBC.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))  # a process that hangs is ended
            client = Client(path, seed)  # the client is kept: its memory is accessed until the end
            os.write(told, json.dumps(client.run()).encode())
            os._exit(0)
        os.close(told)
        with os.fdopen(result) as pipe:
            text = pipe.read()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status not in (0, -signal.SIGBUS):  # this client has truncated its memory
            sys.exit(f"seed {seed}: status {status}")
        seen.update(json.loads(text or '{"bus": 1}'))
    print(json.dumps(dict(seen)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
