# SPDX-License-Identifier: MIT
"""Start and end the processes that are measured: servers, pagers, mounts, clients. Their files are in one directory.

Every server runs under ``ghostbox-bench-client follow``: the kernel ends it when this process ends, for whatever
reason.
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
from urllib.parse import quote

import numpy as np

from ghostbox import pager
from ghostbox.bench import wire
from ghostbox.bench.scale import Scale
from ghostbox.bench.wire import Wire
from ghostbox.donors import bench as donor_bench
from ghostbox.donors.client import parse_address
from ghostbox.errors import DeadlineExceeded, ProgramError
from ghostbox.memserver import model as memserver_model
from ghostbox.pager.model import PagerStatus
from ghostbox.paths import Paths
from ghostbox.system import ports, processes
from ghostbox.system.processes import ControlError
from ghostbox.units import MIB, PAGE_BYTES

_READY_TIMEOUT_S = 60.0
_CLIENT_TIMEOUT_S = 300.0
# This is long enough for 512 MiB over 10 Mbit/s.
_LEASE_FILL_TIMEOUT_S = 500.0
_EXTENT_BYTES = 16 * MIB  # the unit of the pager's pool (--extent)
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
"""The Debian packages of the reference programs."""


def missing_tool(*names: str) -> str | None:
    """Return which program is not installed and what to install; None if all are installed."""
    for name in names:
        if processes.which(name) is None:
            return f"{name} is not installed: install {PACKAGES[name]}"
        if name == "nbdfuse" and not os.access("/dev/fuse", os.R_OK | os.W_OK):
            return "nbdfuse needs /dev/fuse, which cannot be opened"
    return None


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far, with its ended threads (its CPU clock, clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def resident_bytes(pid: int) -> int:
    """Return a process's VmRSS (proc_pid_status(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise ProgramError(f"process {pid} has ended")


@dataclass(frozen=True)
class Server:
    """Describes a running NBD server with one export; ``others`` hold the rest if the memory is on several servers.

    ``keys`` is the file with the key of an export that needs TLS, or None.
    """

    name: str
    pid: int
    port: int
    control: Path | None = None
    host: str = "127.0.0.1"
    export: str = EXPORT
    size_bytes: int = 0
    others: tuple[Server, ...] = ()
    keys: Path | None = None

    @property
    def uri(self) -> str:
        """Return the URI of the export."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.keys is not None:
            return f"nbds://{self.export}@{host}:{self.port}/{self.export}?tls-psk-file={quote(str(self.keys))}"
        return f"nbd://{host}:{self.port}/{self.export}"

    @property
    def all(self) -> tuple[Server, ...]:
        """Return this server and the others."""
        return (self, *self.others)


@dataclass(frozen=True)
class Pager:
    """Describes a running pager."""

    pid: int
    socket: Path
    control: Path

    def status(self) -> PagerStatus:
        """Return the pager's status."""
        found = pager.status(self.control)
        if found is None:
            raise ProgramError(f"no pager answers on {self.control}")
        return found

    def network_bytes(self) -> tuple[int, int]:
        """Return bytes read from and written to the donors."""
        donors = self.status().donors
        return sum(each.read_bytes for each in donors), sum(each.written_bytes for each in donors)


class Lab:
    """Runs what a benchmark measures. Servers that several scenarios use are started once and run until the end.

    With ``donors`` (``host[:port]`` of control APIs) the memory is leased from them, and given back at the end. With
    ``cable`` the memory servers are at its far end and all other programs at the near end.
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
        """Return what ``make`` returned the first time; it ends with the lab."""
        if key not in self._kept:
            self._kept[key] = self._stack.enter_context(make())
        found: T = self._kept[key]
        return found

    def warm_memory(self) -> None:
        """Touch as much free memory as the next run takes, and free it again.

        In a virtual machine, the first touch of memory that was given back to the host (free page reporting) causes a
        fault on the host, many times longer than what is measured here, in whichever process is first.
        """
        with mmap.mmap(-1, self.scale.data_bytes * 3 // 2) as memory:
            memory.madvise(mmap.MADV_NOHUGEPAGE)  # page by page, like the run
            np.frombuffer(memory, dtype=np.uint8)[::PAGE_BYTES] = 1

    @cached_property
    def client_program(self) -> Path:
        """Return the program that runs in place of QEMU.

        Raises:
            ProgramError: the program is not installed.
        """
        return self.paths.program("ghostbox-bench-client")

    @cached_property
    def _shim(self) -> Path:
        """Return a copy of the shim: LD_PRELOAD cannot name a path with a space, which the original's may have."""
        return Path(shutil.copy(self.paths.shim_library, self.directory))

    @contextlib.contextmanager
    def running(self, argv: Sequence[str | Path], ready: Callable[[], bool], *, far: bool = False) -> Iterator[int]:
        """Run a server until the end of the block, at the near or the ``far`` end of the wire; yield its process id.

        Raises:
            ProgramError: the server ended before it was ready; ``why`` is the end of its log.
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
        # The client only talks to the pager, so its namespace does not matter; run directly, only it gets the shim.
        env = {"LD_PRELOAD": str(self._shim), "GHOSTBOX_PAGER_SOCKET": str(pager.socket)}
        return dict(json.loads(processes.run([*argv, "memory=remote"], env=env, timeout_s=_CLIENT_TIMEOUT_S)))

    def client_and_peer(self, command: str, words: Mapping[str, object], *, far: bool = False) -> dict[str, Any]:
        """Run a command that starts its own peer at the other end of the wire; without a wire both use loopback."""
        route = self.cable.route(far=far) if self.cable else {}
        return self.client(command, {**words, **route}, far=far)

    def prefix(self, *, far: bool = False) -> tuple[str, ...]:
        """Return the words that run a command at one end of the wire; none without a wire."""
        if self.cable is None:
            return ()
        return (self.cable.there if far else self.cable.here).prefix

    @property
    def _far_address(self) -> str:
        return self.cable.there.address if self.cable else "127.0.0.1"

    @cached_property
    def cable_missing(self) -> str | None:
        """Return why there can be no wire here; None if there can be one."""
        if os.geteuid() != 0:
            return "a wire between network namespaces needs root"
        return missing_tool(*wire.TOOLS) or wire.kernel_missing()

    def wired(self, rate: str) -> Lab:
        """Return the lab over a wire of that rate (`Wire.lay`). The wire stays until the end."""
        return self.kept(f"wire {rate}", lambda: self._over_wire(rate))

    @contextlib.contextmanager
    def from_here(self, rate: str) -> Iterator[Lab]:
        """Return a lab whose near end is this machine's own namespace, so that libvirt's QEMU is at that end, too.

        The machine has one more network interface meanwhile.
        """
        with self._namespace() as there:
            cable = Wire.of(os.getpid(), there, wire.DEVICE_HERE)
            cable.lay(rate)
            with Lab(self.paths, self.scale, cable=cable) as found:
                yield found

    @contextlib.contextmanager
    def _over_wire(self, rate: str) -> Iterator[Lab]:
        scale = replace(self.scale, data_bytes=self.scale.data_bytes // 2)  # filling it over a slow wire takes long
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
        """Write data over the whole export, so that it has no holes."""
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
        where: dict[str, object] = {"host": server.host, "port": server.port, "export": server.export}
        where |= {"keys": server.keys} if server.keys else {}
        return self.client("load", {**where, **words})

    @cached_property
    def poll_us(self) -> int:
        """Return how long a pager polls before it sleeps, by default."""
        with self.pager(self.donor(), 16 * MIB) as running:
            return running.status().poll_us

    @contextlib.contextmanager
    def memserver(self, size_bytes: int, keys: Path | None = None, *, beside: str | None = None) -> Iterator[Server]:
        """Run GhostBox's memory server with an empty export; with a file of keys the export needs TLS.

        With ``beside`` there is a second export of this name, and one worker serves both.
        """
        control = self._socket("memserver")
        host = self._far_address
        total_bytes = size_bytes * (2 if beside else 1)
        argv: list[str | Path] = [self.paths.memserver_program, "--port", "0", "--size", str(total_bytes)]
        argv += ["--threads", "1", "--export", f"{beside}={size_bytes}"] if beside else []
        argv += ["--export", f"{EXPORT}={size_bytes}", "--control", control, "--bind", host]
        argv += ["--tls", "require", "--tls-psk", keys] if keys else []
        with self.running(argv, lambda: _answers(control), far=True) as pid:
            yield Server("memserver", pid, memserver_model.status(control).port, control, host, keys=keys)

    @contextlib.contextmanager
    def nbdkit(self, size_bytes: int, keys: Path | None = None) -> Iterator[Server]:
        """Run nbdkit's memory plugin; it serves the same memory under any export name, with keys over TLS only."""
        port, host = ports.choose(), self._far_address
        argv = ["nbdkit", "-f", "-i", host, "-p", str(port)]
        argv += ["--tls=require", f"--tls-psk={keys}"] if keys else []
        argv += ["memory", str(size_bytes)]
        with self.running(argv, lambda: _listens(port, host), far=True) as pid:
            yield Server("nbdkit", pid, port, None, host, keys=keys)

    @contextlib.contextmanager
    def qemu_nbd(self, size_bytes: int) -> Iterator[Server]:
        """Run qemu-nbd over a file in RAM."""
        port = ports.choose()
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
        """Lease `Scale.data_bytes` from the donors, in equal parts, and fill them."""
        extents = -(-self.scale.data_bytes // len(self.donors) // _EXTENT_BYTES)
        sizes = dict.fromkeys(self.donors, extents * _EXTENT_BYTES)
        with donor_bench.leased(sizes, "bench") as leases, contextlib.ExitStack() as stack:
            keys = [stack.enter_context(donor_bench.key_file(self.paths, lease)) for lease in leases]
            parts = [
                Server(
                    address,
                    0,
                    lease.nbd_port,
                    None,
                    parse_address(address).host,
                    lease.export,
                    lease.size_bytes,
                    keys=key,
                )
                for address, lease, key in zip(sizes, leases, keys, strict=True)
            ]
            for part in parts:
                self.fill(part, _LEASE_FILL_TIMEOUT_S)
            yield replace(parts[0], others=tuple(parts[1:]))

    def donor(self) -> Server:
        """Return a filled memory server that runs on, or the memory that is leased from the donors."""
        return self.kept("donor", self.leased if self.donors else lambda: self.filled(self.memserver))

    def nbdkit_donor(self) -> Server:
        """Return a filled nbdkit that runs on."""
        return self.kept("nbdkit", lambda: self.filled(self.nbdkit))

    def fuse_donor(self) -> Server:
        """Return the server that nbdfuse mounts: nbdkit, as a user would choose, or the lease of the one donor."""
        return self.donor() if self.donors else self.nbdkit_donor()

    def fuse_missing(self) -> str | None:
        """Return why nbdfuse cannot be a reference; None if it can."""
        return self.single_missing("nbdfuse") or missing_tool("nbdfuse", *(() if self.donors else ("nbdkit",)))

    def single_missing(self, name: str) -> str | None:
        """Return the reason if the memory is on several donors, of which a program takes only one; otherwise None."""
        return f"{name} takes one export: give one --donor" if len(self.donors) > 1 else None

    def qemu_donor(self) -> Server:
        """Return a filled qemu-nbd that runs on."""
        return self.kept("qemu-nbd", lambda: self.filled(self.qemu_nbd))

    @contextlib.contextmanager
    def pager(self, server: Server, cache_bytes: int, *options: str) -> Iterator[Pager]:
        """Run a pager on one server; the export's content is the memory's first content."""
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


def _listens(port: int, host: str = "127.0.0.1") -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False
