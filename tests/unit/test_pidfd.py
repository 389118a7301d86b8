# SPDX-License-Identifier: MIT
"""Processes are watched and ended by a descriptor, so that no other process with the same id is met."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ghostbox.system import pidfd, processes

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_end_is_seen_though_nobody_has_waited_for_the_process(sleeper: subprocess.Popen[bytes]) -> None:
    with pidfd.Process(sleeper.pid) as held:
        assert not held.ended()
        sleeper.kill()
        assert held.ended(10)
        assert held.send(signal.SIGTERM) or held.ended(), "a signal to one that has ended is no error"


def test_process_that_ignores_sigterm_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) as deaf:
        assert deaf.stdout is not None
        deaf.stdout.readline()
        with pidfd.Process(deaf.pid) as held:
            held.end(timeout_s=0.1)
        assert deaf.wait(10) == -signal.SIGKILL


def test_process_that_is_not_found_again_once_it_is_held_is_let_be(sleeper: subprocess.Popen[bytes]) -> None:
    looks = iter([[sleeper.pid], []])
    pidfd.end_all(lambda: next(looks))
    assert sleeper.poll() is None
    processes.terminate(sleeper.pid, check=lambda: False)
    assert sleeper.poll() is None


def test_all_that_are_found_are_ended_and_one_that_is_gone_is_no_error(sleeper: subprocess.Popen[bytes]) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait(10)
    pidfd.end_all(lambda: [gone.pid, sleeper.pid])
    assert sleeper.wait(10) == -signal.SIGTERM
    processes.terminate(gone.pid)
