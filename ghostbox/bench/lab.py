# SPDX-License-Identifier: MIT
"""Starts and ends what is measured: servers, pagers, mounts, clients. All of it in one directory that goes in the end.

Every server runs under ``ghostbox-bench-client follow``: the kernel ends it when this process is gone, however it went.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ghostbox import donor_bench, pager, processes
from ghostbox.bench import wire
from ghostbox.bench.scale import Scale
from ghostbox.bench.wire import Wire
from ghostbox.donor_client import parse_address
from ghostbox.errors import DeadlineExceeded, ProgramError
from ghostbox.paths import Paths
from ghostbox.processes import ControlError
from ghostbox.units import MIB, PAGE_BYTES

_READY_TIMEOUT_S = 60.0
_CLIENT_TIMEOUT_S = 300.0
# 512 MiB over 10 Mbit/s.
_LEASE_FILL_TIMEOUT_S = 500.0
_EXTENT_BYTES = 16 * MIB  # what the pager's pool is made of (--extent)
_LOG_LINES = 5
EXPORT = "bench"

T = TypeVar("T")

PACKAGES = {
    "nbdkit": "nbdkit",
    "qemu-nbd": "qemu-utils",
    "nbdfuse": "libnbd-bin and fuse3",
    "nbdcopy": "libnbd-bin",
    "fio": "fio",
    "ip": "iproute2",
    "tc": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
}
"""Debian packages of the programs that give references."""


def missing_tool(*names: str) -> str | None:
    """Say which program is not installed and what to install; None if all are there."""
    for name in names:
        if processes.which(name) is None:
            return f"{name} is not installed: install {PACKAGES[name]}"
        if name == "nbdfuse" and not os.access("/dev/fuse", os.R_OK | os.W_OK):
            return "nbdfuse needs /dev/fuse, which cannot be opened"
    return None


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far, of ended threads, too (its CPU clock, clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def resident_bytes(pid: int) -> int:
    """Return a process's VmRSS (proc_pid_status(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProgramError(f"process {pid} has ended")


@dataclass(frozen=True)
class Server:
    """A running NBD server with one export; ``others`` hold the rest of the memory if it is on several."""

    name: str
    pid: int
    port: int
    control: Path | None = None
    host: str = "127.0.0.1"
    export: str = EXPORT
    size_bytes: int = 0
    others: tuple[Server, ...] = ()

    @property
    def uri(self) -> str:
        """Its export."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"nbd://{host}:{self.port}/{self.export}"

    @property
    def all(self) -> tuple[Server, ...]:
        """This one and the others."""
        return (self, *self.others)


@dataclass(frozen=True)
class Pager:
    """A running pager."""

    pid: int
    socket: Path
    control: Path

    def status(self) -> dict[str, Any]:
        """Return its status."""
        return dict(processes.control_request(self.control, "status"))

    def network_bytes(self) -> tuple[int, int]:
        """Return bytes read from and written to the donors."""
        donors = self.status()["donors"]
        return sum(each["read_bytes"] for each in donors), sum(each["written_bytes"] for each in donors)


class Lab:
    """What a benchmark runs on. Servers that several scenarios use are started once and stay until the end.

    With ``donors`` (``host[:port]`` of control APIs) the memory is leased from them, and given back in the end.
    With ``cable`` our memory servers are at its far end and all else that it runs at the near one.
    """

    def __init__(self, paths: Paths, scale: Scale, donors: Sequence[str] = (), cable: Wire | None = None) -> None:
        self.paths = paths
        self.scale = scale
        self.donors = tuple(donors)
        self.cable = cable
        self._stack = contextlib.ExitStack()
        self._kept: dict[str, Any] = {}
        self._n_started = 0

    def __enter__(self) -> Lab:
        self.directory = Path(tempfile.mkdtemp(prefix="ghostbox-bench-"))
        self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def kept(self, key: str, make: Callable[[], contextlib.AbstractContextManager[T]]) -> T:
        """Return what ``make`` gave the first time; it ends with the lab."""
        if key not in self._kept:
            self._kept[key] = self._stack.enter_context(make())
        found: T = self._kept[key]
        return found

    def warm_memory(self) -> None:
        """Touch as much free memory as the next run takes, and free it again.

        In a virtual machine the first touch of memory that was given back to the host (free page reporting) costs a
        fault there, many times what is measured here, of whoever happens to be first.
        """
        with mmap.mmap(-1, self.scale.data_bytes * 3 // 2) as memory:
            memory.madvise(mmap.MADV_NOHUGEPAGE)  # page by page, as the run will take it
            np.frombuffer(memory, dtype=np.uint8)[::PAGE_BYTES] = 1

    @cached_property
    def client_program(self) -> Path:
        """The program in place of QEMU.

        Raises:
            ProgramError: it is not installed.
        """
        return self.paths.program("ghostbox-bench-client")

    @cached_property
    def _shim(self) -> Path:
        """A copy of the shim: LD_PRELOAD cannot name a file whose path has a space in it, as the original's may."""
        return Path(shutil.copy(self.paths.shim_library, self.directory))

    @contextlib.contextmanager
    def running(self, argv: Sequence[str | Path], ready: Callable[[], bool], *, far: bool = False) -> Iterator[int]:
        """Run a server until the end of the block, at the near or the ``far`` end of the wire; its process id.

        Raises:
            ProgramError: it ended before it was ready; ``why`` is the end of its log.
        """
        self._n_started += 1
        name = Path(argv[0]).name
        log = self.directory / f"{self._n_started}-{name}.log"
        words = [self.client_program, "follow", *self.prefix(far=far), *argv]
        child = processes.start_detached(words, log_path=log)
        try:
            _wait_ready(child.poll, name, ready, log)
            yield child.pid
        finally:
            processes.terminate(child.pid)
            child.wait()

    def client(
        self, command: str, words: Mapping[str, object], pager: Pager | None = None, *, far: bool = False
    ) -> dict[str, Any]:
        """Run one command of ``ghostbox-bench-client``, on remote memory if a pager is given; return its result."""
        argv: list[str | Path] = [self.client_program, command, *(f"{key}={value}" for key, value in words.items())]
        if pager is None:
            return dict(json.loads(processes.run([*self.prefix(far=far), *argv], timeout_s=_CLIENT_TIMEOUT_S)))
        # It talks to the pager alone, so it may be in any namespace, and nothing else gets the shim.
        env = {"LD_PRELOAD": str(self._shim), "GHOSTBOX_PAGER_SOCKET": str(pager.socket)}
        return dict(json.loads(processes.run([*argv, "memory=remote"], env=env, timeout_s=_CLIENT_TIMEOUT_S)))

    def client_and_peer(self, command: str, words: Mapping[str, object], *, far: bool = False) -> dict[str, Any]:
        """Run a command that brings its own peer, each at its end of the wire; without a wire both are on loopback."""
        route = self.cable.route(far=far) if self.cable else {}
        return self.client(command, {**words, **route}, far=far)

    def prefix(self, *, far: bool = False) -> tuple[str, ...]:
        """Return the words that run a command at one end of the wire; none without a wire."""
        if self.cable is None:
            return ()
        return (self.cable.there if far else self.cable.here).prefix

    @cached_property
    def cable_missing(self) -> str | None:
        """Why there can be no wire here; None if there can."""
        if os.geteuid() != 0:
            return "a wire between network namespaces needs root"
        return missing_tool(*wire.TOOLS) or wire.kernel_missing()

    def wired(self, rate: str) -> Lab:
        """Return the lab over a wire of that rate (`Wire.lay`). It stays until the end."""
        return self.kept(f"wire {rate}", lambda: self._over_wire(rate))

    @contextlib.contextmanager
    def _over_wire(self, rate: str) -> Iterator[Lab]:
        scale = replace(self.scale, data_bytes=self.scale.data_bytes // 2)  # a slow wire takes long to fill it
        with self._namespace() as here, self._namespace() as there:
            cable = Wire.of(here, there)
            cable.lay(rate)
            with Lab(self.paths, scale, cable=cable) as found:
                yield found

    @contextlib.contextmanager
    def _namespace(self) -> Iterator[int]:
        with self.running(wire.KEEPER, lambda: True) as pid:
            processes.wait_until(lambda: wire.is_made(pid), timeout_s=_READY_TIMEOUT_S, what="a network namespace")
            yield pid

    def fill(self, server: Server, timeout_s: float = _READY_TIMEOUT_S) -> None:
        """Write data over the whole export, so that none of it is a hole."""
        size = server.size_bytes or self.scale.data_bytes
        words = {"mode": "write", "pattern": "sequential", "bytes": "256K", "depth": 8, "ms": self.scale.fill_ms}
        wanted, done = size // (256 << 10), 0
        deadline = time.monotonic() + timeout_s
        while done < wanted:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{server.name} is not filled within {timeout_s:.0f} s")
            done += int(self.load(server, {**words, "first": done})["count"])

    def load(self, server: Server, words: Mapping[str, object]) -> dict[str, Any]:
        """Run the lean NBD load on an export; return its result."""
        where = {"host": server.host, "port": server.port, "export": server.export}
        return self.client("load", {**where, **words})

    @cached_property
    def poll_us(self) -> int:
        """How long a pager polls before it sleeps, if it is not told."""
        with self.pager(self.donor(), 16 * MIB) as running:
            return int(running.status()["poll_us"])

    @contextlib.contextmanager
    def memserver(self, size_bytes: int) -> Iterator[Server]:
        """Run our memory server with an empty export."""
        control = self._socket("memserver")
        host = self.cable.there.address if self.cable else "127.0.0.1"
        argv: list[str | Path] = [self.paths.memserver_program, "--port", "0", "--size", str(size_bytes)]
        argv += ["--export", f"{EXPORT}={size_bytes}", "--control", control, "--bind", host]
        with self.running(argv, lambda: _answers(control), far=True) as pid:
            status = processes.control_request(control, "status")
            yield Server("memserver", pid, int(status["port"]), control, host)

    @contextlib.contextmanager
    def nbdkit(self, size_bytes: int) -> Iterator[Server]:
        """Run nbdkit's memory plugin; it serves the same memory under any export name."""
        port = free_port()
        argv = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "memory", str(size_bytes)]
        with self.running(argv, lambda: _listens(port)) as pid:
            yield Server("nbdkit", pid, port)

    @contextlib.contextmanager
    def qemu_nbd(self, size_bytes: int) -> Iterator[Server]:
        """Run qemu-nbd over a file in RAM."""
        port = free_port()
        with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="ghostbox-bench-") as ram:
            ram.truncate(size_bytes)
            argv = ["qemu-nbd", "-t", "-f", "raw", "-b", "127.0.0.1", "-p", str(port), "-x", EXPORT, "-e", "64"]
            with self.running([*argv, ram.name], lambda: _listens(port)) as pid:
                yield Server("qemu-nbd", pid, port)

    @contextlib.contextmanager
    def filled(self, start: Callable[[int], contextlib.AbstractContextManager[Server]]) -> Iterator[Server]:
        """Run a server with `Scale.data_bytes` of data in it."""
        with start(self.scale.data_bytes) as server:
            self.fill(server)
            yield server

    @contextlib.contextmanager
    def leased(self) -> Iterator[Server]:
        """Lease `Scale.data_bytes` of the donors, in equal parts, and fill them."""
        extents = -(-self.scale.data_bytes // len(self.donors) // _EXTENT_BYTES)
        sizes = dict.fromkeys(self.donors, extents * _EXTENT_BYTES)
        with donor_bench.leased(sizes, "bench") as leases:
            parts = [
                Server(address, 0, lease.nbd_port, None, parse_address(address).host, lease.export, lease.size_bytes)
                for address, lease in zip(sizes, leases, strict=True)
            ]
            for part in parts:
                self.fill(part, _LEASE_FILL_TIMEOUT_S)
            yield replace(parts[0], others=tuple(parts[1:]))

    def donor(self) -> Server:
        """Return a filled memory server that stays, or what is leased from the donors."""
        return self.kept("donor", self.leased if self.donors else lambda: self.filled(self.memserver))

    def nbdkit_donor(self) -> Server:
        """Return a filled nbdkit that stays."""
        return self.kept("nbdkit", lambda: self.filled(self.nbdkit))

    def fuse_donor(self) -> Server:
        """Return what nbdfuse mounts: nbdkit, the server a user would take, or the lease of the one donor."""
        return self.donor() if self.donors else self.nbdkit_donor()

    def fuse_missing(self) -> str | None:
        """Say why nbdfuse cannot be a reference; None if it can."""
        return self.single_missing("nbdfuse") or missing_tool("nbdfuse", *(() if self.donors else ("nbdkit",)))

    def single_missing(self, name: str) -> str | None:
        """Say that a program takes no memory that is on several donors; None if it is not."""
        return f"{name} takes one export: give one --donor" if len(self.donors) > 1 else None

    def qemu_donor(self) -> Server:
        """Return a filled qemu-nbd that stays."""
        return self.kept("qemu-nbd", lambda: self.filled(self.qemu_nbd))

    @contextlib.contextmanager
    def pager(self, server: Server, cache_bytes: int, *options: str) -> Iterator[Pager]:
        """Run a pager on one export. What the export holds is the memory's first content."""
        listen, control = self._socket("pager"), self._socket("control")
        argv: list[str | Path] = [self.paths.pager_program, "--listen", listen, "--control", control]
        argv += ["--cache", str(cache_bytes), "--contents", "keep", *options]
        for part in server.all:
            argv += ["--donor", part.uri]
        with self.running(argv, lambda: listen.exists() and pager.status(control) is not None) as pid:
            yield Pager(pid, listen, control)

    @contextlib.contextmanager
    def nbdfuse(self, server: Server) -> Iterator[Path]:
        """Mount an export as a file."""
        self._n_started += 1
        place = self.directory / f"fuse{self._n_started}"
        pid_file = self.directory / f"fuse{self._n_started}.pid"
        place.mkdir()
        argv: list[str | Path] = ["nbdfuse", "-P", pid_file, place / "nbd", server.uri]
        try:
            with self.running(argv, pid_file.exists):
                yield place / "nbd"
        finally:
            if place.is_mount():
                processes.run(["fusermount3", "-u", "-z", place], timeout_s=_READY_TIMEOUT_S)

    def _socket(self, name: str) -> Path:
        self._n_started += 1
        return self.directory / f"{self._n_started}-{name}"


def _wait_ready(ended: Callable[[], int | None], name: str, ready: Callable[[], bool], log: Path) -> None:
    def settled() -> bool:
        return ended() is not None or ready()

    try:
        processes.wait_until(settled, timeout_s=_READY_TIMEOUT_S, what=f"{name} to be ready", interval_s=0.002)
    except DeadlineExceeded as err:
        raise DeadlineExceeded(err.message, why=processes.last_words(log, lines=_LOG_LINES)) from err
    code = ended()
    if code is not None:
        hint = "ghostbox doctor" if name.startswith("ghostbox-") else None
        raise ProgramError(
            f"{name} ended with status {code}", why=processes.last_words(log, lines=_LOG_LINES), hint=hint
        )


def _answers(control: Path) -> bool:
    try:
        processes.control_request(control, "status")
    except ControlError:
        return False
    return True


def free_port() -> int:
    """Return a port that was free a moment ago, for servers that cannot pick one."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
