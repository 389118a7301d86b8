# SPDX-License-Identifier: MIT
"""Memory server and pager run in a sandbox: once they serve, a thread may only make the system calls of the list."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.devices import need_device
from helpers.memserver import running_server
from helpers.pager import Build, memory_client, pager_argv, running_memserver, running_pager, short_dir
from helpers.takeover import fault_point_build

FILTER = "2"  # the value of Seccomp in /proc/PID/status, proc(5)


def _threads(pid: int, field: str) -> set[str]:
    """Return a line of the status of each thread of a process."""
    texts = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
    assert len(texts) > 1
    return {line.split()[1] for text in texts for line in text.splitlines() if line.startswith(f"{field}:")}


def test_every_thread_of_the_memory_server_is_in_the_sandbox() -> None:
    with running_server("--export", "a=1M") as server:
        assert server.status()["seccomp"] is True
        assert _threads(server.process.pid, "Seccomp") == {FILTER}
        assert _threads(server.process.pid, "NoNewPrivs") == {"1"}


def test_every_thread_of_the_pager_is_in_the_sandbox_and_serves_from_there() -> None:
    need_device("/dev/userfaultfd")
    with (
        running_memserver(a="16M") as donor,
        running_pager([donor.uri("a")], cache="2M") as pager,
        memory_client("8M", pager) as client,
    ):
        client.command("fill", seed=1)
        client.command("verify", seed=1)
        assert pager.status()["seccomp"] is True
        assert _threads(pager.process.pid, "Seccomp") == {FILTER}
        assert _threads(pager.process.pid, "NoNewPrivs") == {"1"}


def test_without_the_list_the_status_says_so() -> None:
    need_device("/dev/userfaultfd")
    with (
        running_memserver(a="16M", options=("--no-seccomp",)) as donor,
        running_pager([donor.uri("a")], cache="2M", no_seccomp="") as pager,
    ):
        for process, status in ((donor.process, donor.status()), (pager.process, pager.status())):
            assert status["seccomp"] is False
            assert _threads(process.pid, "Seccomp") == {"0"}
            assert _threads(process.pid, "NoNewPrivs") == {"1"}


@pytest.fixture(scope="module")
def build() -> Build:
    """Return programs that act like an intruder once they serve (common/sandbox.c)."""
    return fault_point_build()


@contextmanager
def _argv(build: Build, program: str) -> Iterator[list[str]]:
    with short_dir() as place:
        if program == "memserver":
            yield [str(build.memserver), "--size", "1M", "--port", "0"]
            return
        need_device("/dev/userfaultfd")
        with running_memserver(a="16M") as donor:
            yield pager_argv(build, place, [donor.uri("a")], "2M", {})


def _tries(argv: list[str], call: str) -> tuple[int, str]:
    """Let a program make a system call once it serves, and end it; return how it ended, and its log."""
    env = {**os.environ, "GHOSTBOX_TRY_CALL": call}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline():
            process.terminate()
        _, log = process.communicate(timeout=60)
        return process.returncode, log


@pytest.mark.parametrize("program", ["memserver", "pager"])
@pytest.mark.parametrize("call", ["execve", "ptrace"])
def test_another_program_or_process_kills_it(build: Build, program: str, call: str) -> None:
    with _argv(build, program) as argv:
        status, log = _tries(argv, call)
    assert status == -signal.SIGSYS, log
    assert "tried" not in log


@pytest.mark.parametrize("program", ["memserver", "pager"])
@pytest.mark.parametrize("call", ["raw", "fork", "kill"])
def test_what_it_may_not_do_fails_and_it_goes_on(build: Build, program: str, call: str) -> None:
    with _argv(build, program) as argv:
        status, log = _tries(argv, call)
    assert f"tried {call}: Function not implemented" in log
    assert status == 0
