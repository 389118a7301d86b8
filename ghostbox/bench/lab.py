# SPDX-License-Identifier: MIT
"""Starts and ends what is measured: servers, pagers, mounts, clients. All of it in one directory that goes in the end.

Every server runs under ``ghostbox-bench-client follow``: the kernel ends it when this process is gone, however it went.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ghostbox import pager, processes
from ghostbox.bench.scale import Scale
from ghostbox.errors import DeadlineExceeded, ProgramError
from ghostbox.paths import Paths
from ghostbox.processes import ControlError

_READY_TIMEOUT_S = 60.0
_CLIENT_TIMEOUT_S = 300.0
_LOG_LINES = 5
EXPORT = "bench"

T = TypeVar("T")

PACKAGES = {
    "nbdkit": "nbdkit",
    "qemu-nbd": "qemu-utils",
    "nbdfuse": "libnbd-bin and fuse3",
    "nbdcopy": "libnbd-bin",
    "fio": "fio",
}
"""Debian packages of the programs that give references."""


def missing_tool(*names: str) -> str | None:
    """Say which program is not installed and what to install; None if all are there."""
    for name in names:
        if shutil.which(name) is None:
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
    """A running NBD server with one export called `EXPORT`."""

    name: str
    pid: int
    port: int
    control: Path | None = None

    @property
    def uri(self) -> str:
        """Its export."""
        return f"nbd://127.0.0.1:{self.port}/{EXPORT}"


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
    """What a benchmark runs on. Servers that several scenarios use are started once and stay until the end."""

    def __init__(self, paths: Paths, scale: Scale) -> None:
        self.paths = paths
        self.scale = scale
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

    @cached_property
    def client_program(self) -> Path:
        """The program in place of QEMU.

        Raises:
            ProgramError: it is not installed.
        """
        program = self.paths.native / "ghostbox-bench-client"
        if not program.exists():
            raise ProgramError(f"{program} is not there", hint="install GhostBox again: ./bootstrap install")
        return program

    @contextlib.contextmanager
    def running(self, argv: Sequence[str | Path], ready: Callable[[], bool]) -> Iterator[int]:
        """Run a server until the end of the block; its process id.

        Raises:
            ProgramError: it ended before it was ready; ``why`` is the end of its log.
        """
        self._n_started += 1
        name = Path(argv[0]).name
        log = self.directory / f"{self._n_started}-{name}.log"
        child = processes.start_detached([self.client_program, "follow", *argv], log_path=log)
        try:
            _wait_ready(child.poll, name, ready, log)
            yield child.pid
        finally:
            processes.terminate(child.pid)
            child.wait()

    def client(self, command: str, words: Mapping[str, object], pager: Pager | None = None) -> dict[str, Any]:
        """Run one command of ``ghostbox-bench-client``, on remote memory if a pager is given; return its result."""
        argv: list[str | Path] = [self.client_program, command, *(f"{key}={value}" for key, value in words.items())]
        env = None
        if pager is not None:
            argv.append("memory=remote")
            env = {"LD_PRELOAD": str(self.paths.shim_library), "GHOSTBOX_PAGER_SOCKET": str(pager.socket)}
        return dict(json.loads(processes.run(argv, env=env, timeout_s=_CLIENT_TIMEOUT_S)))

    def fill(self, server: Server) -> None:
        """Write data over the whole export, so that none of it is a hole."""
        size = self.scale.data_bytes
        words = {"port": server.port, "export": EXPORT, "mode": "write", "pattern": "sequential", "bytes": "256K"}
        words |= {"depth": 8, "ms": self.scale.fill_ms}
        wanted, done = size // (256 << 10), 0
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while done < wanted:
            if time.monotonic() > deadline:
                raise DeadlineExceeded(f"{server.name} is not filled within {_READY_TIMEOUT_S:.0f} s")
            done += int(self.client("load", {**words, "first": done})["count"])

    @contextlib.contextmanager
    def memserver(self, size_bytes: int) -> Iterator[Server]:
        """Run our memory server with an empty export."""
        control = self._socket("memserver")
        argv: list[str | Path] = [self.paths.memserver_program, "--port", "0", "--size", str(size_bytes)]
        argv += ["--export", f"{EXPORT}={size_bytes}", "--control", control]
        with self.running(argv, lambda: _answers(control)) as pid:
            status = processes.control_request(control, "status")
            yield Server("memserver", pid, int(status["port"]), control)

    @contextlib.contextmanager
    def nbdkit(self, size_bytes: int) -> Iterator[Server]:
        """Run nbdkit's memory plugin; it serves the same memory under any export name."""
        port = _free_port()
        argv = ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "memory", str(size_bytes)]
        with self.running(argv, lambda: _listens(port)) as pid:
            yield Server("nbdkit", pid, port)

    @contextlib.contextmanager
    def qemu_nbd(self, size_bytes: int) -> Iterator[Server]:
        """Run qemu-nbd over a file in RAM."""
        port = _free_port()
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

    def donor(self) -> Server:
        """Return a filled memory server that stays."""
        return self.kept("donor", lambda: self.filled(self.memserver))

    def nbdkit_donor(self) -> Server:
        """Return a filled nbdkit that stays."""
        return self.kept("nbdkit", lambda: self.filled(self.nbdkit))

    def qemu_donor(self) -> Server:
        """Return a filled qemu-nbd that stays."""
        return self.kept("qemu-nbd", lambda: self.filled(self.qemu_nbd))

    @contextlib.contextmanager
    def pager(self, server: Server, cache_bytes: int, *options: str) -> Iterator[Pager]:
        """Run a pager on one export. What the export holds is the memory's first content."""
        listen, control = self._socket("pager"), self._socket("control")
        argv: list[str | Path] = [self.paths.pager_program, "--listen", listen, "--control", control]
        argv += ["--cache", str(cache_bytes), "--donor", server.uri, "--contents", "keep", *options]
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
        raise DeadlineExceeded(err.message, why=_last_words(log)) from err
    code = ended()
    if code is not None:
        hint = "ghostbox doctor" if name.startswith("ghostbox-") else None
        raise ProgramError(f"{name} ended with status {code}", why=_last_words(log), hint=hint)


def _last_words(log: Path) -> str | None:
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return "\n".join(lines[-_LOG_LINES:]) or None


def _answers(control: Path) -> bool:
    try:
        processes.control_request(control, "status")
    except ControlError:
        return False
    return True


def _free_port() -> int:
    """Return a port that was free a moment ago, for servers that cannot pick one."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
