# SPDX-License-Identifier: MIT
"""Run pagers, donors and memory clients for tests: the real C programs, on sockets of their own.

    with running_memserver(a="64M") as donor, running_pager([donor.uri("a")], cache="8M") as pager:
        with memory_client("64M", pager) as client:
            client.command("fill", seed=1)

However the block ends, the processes end with it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import queue
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ghostbox import paths
from ghostbox.system import processes

READY_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Build:
    """Holds where one build's programs are, and the environment that they need."""

    pager: Path
    shim: Path
    memserver: Path
    client: Path
    preload_first: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


def helper_program(name: str) -> Path:
    """Return a C program of tests/helpers: from the build tree, or from beside the installed programs."""
    native = paths.find().native
    places = [native / name]
    if "GHOSTBOX_BUILD_DIR" in os.environ:
        places.insert(0, Path(os.environ["GHOSTBOX_BUILD_DIR"]) / "tests" / "helpers" / name)
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(
        f"{name} is built by meson but not in {', '.join(map(str, places))}; set GHOSTBOX_BUILD_DIR"
    )


@functools.cache
def preloadable(shim: Path) -> Path:
    """Return a copy of a shim that LD_PRELOAD can name: the project's path may have a space."""
    directory = Path(tempfile.mkdtemp(prefix="gb-shim-", dir="/tmp"))
    directory.chmod(0o755)
    atexit.register(shutil.rmtree, directory)
    return Path(shutil.copy(shim, directory))


def installed_build() -> Build:
    """Return the programs that the tests test by default."""
    found = paths.find()
    return Build(found.pager_program, found.shim_library, found.memserver_program, helper_program("memory-client"))


@contextlib.contextmanager
def short_dir() -> Iterator[Path]:
    """Make a directory whose path is short enough for Unix sockets."""
    path = Path(tempfile.mkdtemp(prefix="gb-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _read_line(process: subprocess.Popen[str], what: str) -> str:
    """Return the first line of a program's stdout; if there is none, the error has its stderr."""
    assert process.stdout is not None
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not select.select([process.stdout], [], [], 0.1)[0]:
        if time.monotonic() > deadline:
            process.kill()
            raise TimeoutError(f"{what} is not ready after {READY_TIMEOUT_S:.0f} s")
    return process.stdout.readline().strip()


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    if process.stdout is not None:
        process.stdout.close()


def _end_pager(process: subprocess.Popen[str]) -> None:
    """End a pager. It refuses while a process uses its memory, so a process that was just killed is waited for."""
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    _end(process)


@contextlib.contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[None]:
    """Stop a process until the end of the block."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@dataclass
class RunningMemserver:
    """Is a ``ghostbox-memserver`` without its control plane."""

    process: subprocess.Popen[str]
    address: str
    control: Path

    def uri(self, export: str) -> str:
        """Return the NBD URI of an export."""
        return f"nbd://{self.address}/{export}"

    def status(self) -> dict[str, Any]:
        """Return the answer of the control socket."""
        status: dict[str, Any] = processes.control_request(self.control, "status")
        return status

    def resident_bytes(self, export: str) -> int:
        """Return the memory that an export occupies."""
        found = [entry for entry in self.status()["exports"] if entry["name"] == export]
        return int(found[0]["resident_bytes"])


@contextlib.contextmanager
def running_memserver(
    *,
    size: str = "1G",
    build: Build | None = None,
    options: Sequence[str] = (),
    prefix: Sequence[str] = (),
    **exports: str,
) -> Iterator[RunningMemserver]:
    """Run the C memory server on a free port: ``running_memserver(a="64M", b="32M")``.

    ``prefix`` starts it elsewhere: it is the prefix of a ``netns.Machine``, whose address is in ``options``.
    """
    build = build or installed_build()
    with short_dir() as place:
        argv = [*prefix, str(build.memserver), "--port", "0", "--size", size, "--control", str(place / "c"), *options]
        for name, export_size in exports.items():
            argv += ["--export", f"{name}={export_size}"]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, **build.env})
        try:
            line = _read_line(process, "ghostbox-memserver")
            assert line.startswith("listening on "), line
            yield RunningMemserver(process, line.removeprefix("listening on "), place / "c")
        finally:
            _end(process)


@contextlib.contextmanager
def nbdkit_memory(size: str, *options: str, plugin: str = "memory") -> Iterator[str]:
    """Run nbdkit's memory plugin and yield its URI; ``options`` are filters and their parameters."""
    filters = [option for option in options if option.startswith("--")]
    parameters = [option for option in options if not option.startswith("--")]
    with short_dir() as place:
        pid_file, sock = place / "pid", place / "s"
        argv = ["nbdkit", "-f", "-P", str(pid_file), "-U", str(sock), *filters, plugin, size, *parameters]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        try:
            processes.wait_until(
                lambda: pid_file.exists() or process.poll() is not None, timeout_s=READY_TIMEOUT_S, what="nbdkit"
            )
            if process.poll() is not None:
                raise RuntimeError(f"nbdkit ended with status {process.returncode}")
            yield f"nbd+unix:///?socket={sock}"
        finally:
            _end(process)


@dataclass
class RunningPager:
    """Is a ``ghostbox-pager`` that a test started."""

    process: subprocess.Popen[str]
    listen: Path
    control: Path
    log_path: Path
    build: Build

    def status(self) -> dict[str, Any]:
        """Return the answer of the control socket."""
        status: dict[str, Any] = processes.control_request(self.control, "status")
        return status

    def command(self, cmd: str, **args: Any) -> Any:
        """Send a command to the control socket."""
        return processes.control_request(self.control, cmd, **args)

    def resident_bytes(self) -> int:
        """Return the size of the remote memory on this host, whether mapped or not."""
        pages = self.status()["pages"]
        return int(pages["resident"] + pages["inactive"]) * 4096

    def log(self) -> str:
        """Return all that the pager wrote."""
        return self.log_path.read_text()

    def kill(self) -> None:
        """Kill the pager (SIGKILL)."""
        self.process.kill()
        self.process.wait(10)


def pager_argv(build: Build, place: Path, donors: Sequence[str], cache: str, options: Mapping[str, str]) -> list[str]:
    """Return the command line: ``readahead="0"`` for ``--readahead 0``, an empty value for a flag."""
    argv = [str(build.pager), "--listen", str(place / "p"), "--control", str(place / "c"), "--cache", cache]
    for uri in donors:
        argv += ["--donor", uri]
    for key, value in options.items():
        argv += [f"--{key.replace('_', '-')}", *([value] if value else [])]
    return argv


@contextlib.contextmanager
def running_pager(
    donors: Sequence[str],
    *,
    cache: str = "8M",
    build: Build | None = None,
    place: Path | None = None,
    prefix: Sequence[str] = (),
    **options: str,
) -> Iterator[RunningPager]:
    """Run a pager until the end of the block.

    Args:
        donors: NBD URIs.
        cache: the cache's size.
        build: the programs to use.
        place: the directory of its sockets, to start a second pager in the first one's place.
        prefix: the words that start it elsewhere.
        options: any other option; ``exit_with_client=""`` for a flag.
    """
    build = build or installed_build()
    with contextlib.ExitStack() as stack:
        place = place or stack.enter_context(short_dir())
        log_path = place / "log"
        argv = [*prefix, *pager_argv(build, place, donors, cache, options)]
        with log_path.open("a") as log:
            process = subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **build.env}
            )
        stack.callback(_end_pager, process)
        line = _read_line(process, "ghostbox-pager")
        if line != "ready":
            raise RuntimeError(f"the pager said {line!r}, status {process.wait(10)}: {log_path.read_text()}")
        yield RunningPager(process, place / "p", place / "c", log_path, build)


class ClientFailed(AssertionError):
    """Is raised if a command of the memory client fails; ``answer`` is its answer."""

    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__(str(answer))
        self.answer = answer


class MemoryClient:
    """Is the process in place of QEMU; see tests/helpers/memory_client/client.h for its commands."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._answers: dict[str, queue.Queue[dict[str, Any]]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        """Return its process id."""
        return self.process.pid

    def _queue(self, name: str) -> queue.Queue[dict[str, Any]]:
        with self._lock:
            return self._answers.setdefault(name, queue.Queue())

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            answer = json.loads(line)
            self._queue(answer["command"]).put(answer)

    def start(self, name: str, /, **args: int | str) -> None:
        """Run a command in the background; ``result`` waits for it."""
        self._send("& " + " ".join([name, *(f"{key}={value}" for key, value in args.items())]))

    def _send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def result(self, name: str, *, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait for the answer of a command, success or failure.

        Raises:
            TimeoutError: there was no answer in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._queue(name).get(timeout=0.2)
            except queue.Empty:
                if self.process.poll() is not None and self._queue(name).empty():
                    raise ChildProcessError(f"the client ended with status {self.process.returncode}") from None
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{name}: no answer within {timeout_s} s") from None

    def attempt(self, name: str, /, *, timeout_s: float = 60.0, **args: int | str) -> dict[str, Any]:
        """Run a command and return its answer, success or failure."""
        self._send(" ".join([name, *(f"{key}={value}" for key, value in args.items())]))
        return self.result(name, timeout_s=timeout_s)

    def command(self, name: str, /, *, timeout_s: float = 60.0, **args: int | str) -> dict[str, Any]:
        """Run a command that must succeed and return its answer."""
        answer = self.attempt(name, timeout_s=timeout_s, **args)
        if not answer["ok"]:
            raise ClientFailed(answer)
        return answer

    def answers_nothing(self, name: str, *, for_s: float = 1.0) -> bool:
        """Tell whether a started command gives no answer for this time."""
        try:
            answer = self.result(name, timeout_s=for_s)
        except TimeoutError:
            return True
        self._queue(name).put(answer)
        return False

    def kill(self) -> None:
        """Kill the client (SIGKILL)."""
        self.process.kill()
        self.process.wait(10)


def client_env(build: Build, listen: Path | None, **more: str) -> dict[str, str]:
    """Return the environment of a client; without ``listen`` it names no pager."""
    env = {key: value for key, value in os.environ.items() if key not in ("GHOSTBOX_PAGER_SOCKET", "LD_PRELOAD")}
    env["LD_PRELOAD"] = " ".join([*build.preload_first, str(preloadable(build.shim))])
    if listen is not None:
        env["GHOSTBOX_PAGER_SOCKET"] = str(listen)
    return {**env, **build.env, **more}


def run_client(
    size: str, *words: str, listen: Path | None, build: Build | None = None, timeout_s: float = 60.0, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run a client with one command to its end."""
    build = build or installed_build()
    return subprocess.run(
        [str(build.client), "--bytes", size, *words],
        env=client_env(build, listen, **env),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


@contextlib.contextmanager
def memory_client(
    size: str,
    listen: Path | RunningPager,
    *,
    build: Build | None = None,
    stderr: Path | None = None,
    words: Sequence[str] = (),
) -> Iterator[MemoryClient]:
    """Run a client that has mapped ``size`` of remote memory, until the end of the block."""
    process = start_client(size, listen, build=build, stderr=stderr, words=words)
    client = MemoryClient(process)
    try:
        client.result("hold", timeout_s=READY_TIMEOUT_S)
        yield client
    finally:
        process.kill()
        process.wait(10)
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()


def start_client(
    size: str,
    listen: Path | RunningPager,
    *,
    build: Build | None = None,
    stderr: Path | None = None,
    words: Sequence[str] = (),
) -> subprocess.Popen[str]:
    """Start a client without waiting for it."""
    if isinstance(listen, RunningPager):
        build, listen = build or listen.build, listen.listen
    build = build or installed_build()
    with contextlib.ExitStack() as stack:
        err = stack.enter_context(stderr.open("a")) if stderr else None
        return subprocess.Popen(
            [str(build.client), "--bytes", size, *words, "hold"],
            env=client_env(build, listen),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
