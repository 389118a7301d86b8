# SPDX-License-Identifier: MIT
"""Run pagers one after another on one state file, and a build of them that can kill itself at a given step."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ghostbox.system import processes
from helpers.pager import Build, MemoryClient, _end_pager, _read_line, installed_build, pager_argv, short_dir
from helpers.sanitized import ROOT, extra_build


def fault_points() -> list[str]:
    """Return the names of all steps at which the test build can kill itself."""
    header = (ROOT / "qemu" / "pager" / "base" / "fault_points.h").read_text()
    return re.findall(r"^ +X\((\w+)\)", header, re.MULTILINE)


def fault_point_build() -> Build:
    """Build the programs with fault points."""
    programs: dict[str, Any] = dict(extra_build("fault-points", "-Dfault_points=true"))
    return Build(**programs)


@contextlib.contextmanager
def other_format(state_file: Path) -> Iterator[None]:
    """Make a state file look like that of another version; a pager that has it mapped does not check again."""
    version_at = 7  # the last character of the file's magic
    with state_file.open("r+b") as stream:
        before = os.pread(stream.fileno(), 1, version_at)
        os.pwrite(stream.fileno(), b"9", version_at)
        try:
            yield
        finally:
            os.pwrite(stream.fileno(), before, version_at)


class PagerLine:
    """Is a series of pagers with the same sockets and the same state file."""

    def __init__(
        self,
        place: Path,
        donors: Sequence[str],
        cache: str,
        build: Build,
        options: dict[str, str],
        prefix: Sequence[str] = (),
    ) -> None:
        self.place, self.build, self.prefix = place, build, prefix
        self.listen, self.control = place / "p", place / "c"
        self.state_file, self.log_path = place / "state", place / "log"
        self._first = pager_argv(build, place, donors, cache, options)
        self.process = self._start([*self._first, "--state", str(self.state_file)])

    def _start(self, argv: list[str], crash_at: str | None = None) -> subprocess.Popen[str]:
        crash = {"GHOSTBOX_CRASH_AT": crash_at} if crash_at else {}
        with self.log_path.open("a") as log:
            process = subprocess.Popen(
                [*self.prefix, *argv], stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, **self.build.env, **crash},
            )  # fmt: skip
        line = _read_line(process, "ghostbox-pager")
        # A pager may reach its fault point before it has reported that it is ready, since rebuilding starts at once.
        crashed = crash_at is not None and line == "" and process.wait(10) == -signal.SIGKILL
        if line != "ready" and not crashed:
            raise RuntimeError(f"the pager said {line!r}, status {process.wait(10)}: {self.log()}")
        return process

    def resume(self, *options: str, crash_at: str | None = None) -> None:
        """Start the next pager, with more ``options``; ``crash_at`` is a fault point."""
        assert self.process.poll() is not None
        argv = [str(self.build.pager), "--listen", str(self.listen), "--control", str(self.control)]
        argv += ["--state", str(self.state_file), "--resume", *options]
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process = self._start(argv, crash_at)

    def kill(self) -> None:
        """Kill the pager (SIGKILL)."""
        self.process.kill()
        self.process.wait(10)

    def wait_crash(self, timeout_s: float = 30.0) -> None:
        """Wait until the pager has killed itself."""
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no crash within {timeout_s:g} s: {self.status()}\n{self.log()}") from None
        assert status == -signal.SIGKILL, self.log()

    def status(self) -> dict[str, Any]:
        """Return the answer of the control socket."""
        status: dict[str, Any] = processes.control_request(self.control, "status")
        return status

    def served(self, client: MemoryClient) -> bool:
        """Tell whether this pager serves the client's memory."""
        return any(region["pid"] == client.pid and region["connected"] for region in self.status()["regions"])

    def wait_served(self, client: MemoryClient) -> None:
        """Wait until the client has connected again."""
        processes.wait_until(lambda: self.served(client), timeout_s=20, what="the client's return")

    def command(self, cmd: str, **args: Any) -> Any:
        """Send a command to the control socket."""
        return processes.control_request(self.control, cmd, **args)

    def log(self) -> str:
        """Return all that the pagers wrote."""
        return self.log_path.read_text()


@contextlib.contextmanager
def pager_line(
    donors: Sequence[str],
    *,
    cache: str = "2M",
    build: Build | None = None,
    prefix: Sequence[str] = (),
    **options: str,
) -> Iterator[PagerLine]:
    """Run a first pager with a state file; the last pager is ended at the end of the block.

    ``prefix`` are the words that start each pager elsewhere.
    """
    with short_dir() as place:
        line = PagerLine(place, donors, cache, build or installed_build(), options, prefix)
        try:
            yield line
        finally:
            _end_pager(line.process)
