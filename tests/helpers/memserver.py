# SPDX-License-Identifier: MIT
"""Run ``ghostbox-memserver`` for its own tests: any argv, its log, and a clean end that is checked.

    with running_server("--export", "a=64M") as server:
        server.uri("a"), server.command("status")

The test fails if a server ends with another status than 0, or if its sanitizers report something.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostbox import paths
from ghostbox.system import processes

READY_TIMEOUT_S = 30.0
_SANITIZER_WORDS = ("Sanitizer", "runtime error:")


@dataclass
class Server:
    """Is a running memory server. ``place`` is a directory of its own with a short path."""

    process: subprocess.Popen[str]
    place: Path
    host: str
    port: int

    @property
    def control(self) -> Path:
        """Return the path of its control socket."""
        return self.place / "control"

    def uri(self, export: str) -> str:
        """Return the NBD URI of an export."""
        return f"nbd://{self.host}:{self.port}/{export}"

    def command(self, cmd: str, **args: Any) -> Any:
        """Return the result of a control command; raise ``processes.ControlError`` if it is refused."""
        return processes.control_request(self.control, cmd, **args)

    def status(self) -> dict[str, Any]:
        """Return the result of ``status``."""
        status: dict[str, Any] = self.command("status")
        return status

    def export(self, name: str) -> dict[str, Any]:
        """Return the status of one export."""
        found: dict[str, Any] = next(entry for entry in self.status()["exports"] if entry["name"] == name)
        return found

    def log(self) -> str:
        """Return all that the server wrote on stderr."""
        return (self.place / "stderr").read_text()

    def wait_for_log(self, text: str) -> None:
        """Wait until the server has logged ``text``."""
        processes.wait_until(lambda: text in self.log(), timeout_s=20, what=f"'{text}' in the log")

    def cpu_s(self) -> float:
        """Return the CPU time that the server has used, user and system."""
        return process_cpu_s(self.process.pid)

    def memory_bytes(self) -> int:
        """Return the resident memory of the process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * int(os.sysconf("SC_PAGESIZE"))


def process_cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used, user and system, in the kernel's ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / float(os.sysconf("SC_CLK_TCK"))


def built_program(name: str, directory: str) -> str:
    """Return a C program that is built but not installed: from the build tree, or from beside the installed programs.

    Args:
        name: its name.
        directory: where its meson.build is (``tests/helpers``).
    """
    places = [paths.find().native / name]
    if "GHOSTBOX_BUILD_DIR" in os.environ:
        places.insert(0, Path(os.environ["GHOSTBOX_BUILD_DIR"]) / directory / name)
    for place in places:
        if place.exists():
            return str(place)
    raise FileNotFoundError(f"{name} is not in {', '.join(map(str, places))}; set GHOSTBOX_BUILD_DIR")


def program() -> str:
    """Return the path of the memory server."""
    return str(paths.find().memserver_program)


def run_server(*argv: str, timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
    """Run the server with an argv that makes it end by itself."""
    return subprocess.run([program(), *argv], capture_output=True, text=True, check=False, timeout=timeout_s)


@contextlib.contextmanager
def running_server(*argv: str, size: str = "1G") -> Iterator[Server]:
    """Run the server on a free port with a control socket and further options until the end of the block."""
    place = Path(tempfile.mkdtemp(prefix="gb-", dir="/tmp"))
    full = [program(), "--port", "0", "--size", size, "--control", str(place / "control"), *argv]
    try:
        with (place / "stderr").open("w") as stderr:
            process = subprocess.Popen(full, stdout=subprocess.PIPE, stderr=stderr, text=True)
        try:
            host, port = _wait_ready(process, place)
            server = Server(process, place, host, port)
            yield server
        finally:
            status = _end(process)
        log = server.log()
        assert status == 0, f"the server ended with status {status}: {log}"
        assert not any(word in log for word in _SANITIZER_WORDS), log
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _wait_ready(process: subprocess.Popen[str], place: Path) -> tuple[str, int]:
    assert process.stdout is not None
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not select.select([process.stdout], [], [], 0.1)[0]:
        assert time.monotonic() < deadline, "the server is not ready"
    line = process.stdout.readline()
    assert line.startswith("listening on "), f"{line!r}: {(place / 'stderr').read_text()}"
    host, _, port = line.removeprefix("listening on ").strip().rpartition(":")
    return host, int(port)


def _end(process: subprocess.Popen[str]) -> int:
    if process.poll() is None:
        process.terminate()
    try:
        return process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
        raise
    finally:
        assert process.stdout is not None
        process.stdout.close()
