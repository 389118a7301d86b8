# SPDX-License-Identifier: MIT
"""Starting programs: what they get of our environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from ghostbox import processes
from ghostbox.errors import ProgramError
from helpers import project


def test_a_program_inherits_our_environment_only_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_STATE_DIR", "/ours")
    assert "GHOSTBOX_STATE_DIR=/ours" in processes.run(["/usr/bin/env"]).splitlines()
    assert {"GHOSTBOX_STATE_DIR=/ours", "A=b"} <= set(processes.run(["/usr/bin/env"], env={"A": "b"}).splitlines())
    assert processes.run(["/usr/bin/env"], env={"A": "b"}, inherit_env=False) == "A=b\n"


ATTACH = "import sys; from ghostbox import processes; raise SystemExit(processes.attach(sys.argv[1:]))"


def attached(*argv: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(project.ROOT)}
    return subprocess.Popen([sys.executable, "-c", ATTACH, *argv], env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 255", 255), ("kill -TERM $$", 143)])
def test_a_program_on_our_terminal_returns_its_status_as_in_a_shell(script: str, status: int) -> None:
    assert attached("sh", "-c", script).wait(60) == status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_passed_on_to_it(number: signal.Signals) -> None:
    script = f"trap 'echo got; exit 7' {number.name.removeprefix('SIG')}; echo ready; while :; do sleep 0.05; done"
    with attached("sh", "-c", script) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        running.send_signal(number)
        assert running.wait(60) == 7
        assert running.stdout.read() == "got\n"


def test_it_ends_with_us_even_if_we_are_killed() -> None:
    with attached("sh", "-c", "echo $$; exec sleep 600") as running:
        assert running.stdout is not None
        child = int(running.stdout.readline())
        running.kill()
        running.wait(60)
        processes.wait_until(lambda: not processes.pid_alive(child), timeout_s=20, what="the child's end")


def test_a_program_that_is_not_there_is_said() -> None:
    with pytest.raises(ProgramError, match="cannot run /none: No such file or directory"):
        processes.attach(["/none"])


def test_programs_of_the_system_are_found_where_path_ends_before_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a user who is not root: libvirtd and mke2fs lie in /usr/sbin."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for program in ("libvirtd", "mke2fs"):
        assert processes.which(program) is not None
    assert "libvirt" in processes.run(["libvirtd", "--version"])
    assert processes.which("no-such-program") is None
    with pytest.raises(ProgramError, match="cannot run no-such-program: not found"):
        processes.run(["no-such-program"])
