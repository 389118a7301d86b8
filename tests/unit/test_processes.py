# SPDX-License-Identifier: MIT
"""Programs are started with a clean environment, and found among all processes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.errors import ProgramError
from ghostbox.paths import Paths
from ghostbox.system import processes
from helpers import project
from helpers.other_user import NOBODY, as_user


def test_a_program_inherits_the_environment_only_where_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_STATE_DIR", "/ours")
    assert "GHOSTBOX_STATE_DIR=/ours" in processes.run(["/usr/bin/env"]).splitlines()
    assert {"GHOSTBOX_STATE_DIR=/ours", "A=b"} <= set(processes.run(["/usr/bin/env"], env={"A": "b"}).splitlines())
    assert processes.run(["/usr/bin/env"], env={"A": "b"}, inherit_env=False) == "A=b\n"


ATTACH = "import sys; from ghostbox.system import processes; raise SystemExit(processes.attach(sys.argv[1:]))"


def attached(*argv: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(project.ROOT)}
    return subprocess.Popen([sys.executable, "-c", ATTACH, *argv], env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 255", 255), ("kill -TERM $$", 143)])
def test_a_program_on_the_terminal_returns_its_status_as_in_a_shell(script: str, status: int) -> None:
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


def test_an_attached_program_ends_with_its_caller_even_after_a_kill() -> None:
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
    """An ordinary user's PATH may lack /usr/sbin, where libvirtd and mke2fs are."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for program in ("libvirtd", "mke2fs"):
        assert processes.which(program) is not None
    assert "libvirt" in processes.run(["libvirtd", "--version"])
    assert processes.which("no-such-program") is None
    with pytest.raises(ProgramError, match="cannot run no-such-program: not found"):
        processes.run(["no-such-program"])


@contextlib.contextmanager
def waiting(*words: str, title: str | None = None, user: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``cat`` with further words, or under another title; it waits for its input to the end of the block."""
    argv = ["cat", "-", *words] if title is None else [title]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, executable="/bin/cat", stdin=pipe, stdout=pipe, bufsize=0, user=user) as child:
        try:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write(b"at work\n")  # Popen returns before the kernel shows the new command line
            assert child.stdout.readline() == b"at work\n"
            yield child
        finally:
            child.kill()


def test_processes_are_found_by_their_program_and_words_of_any_user() -> None:
    word = str(uuid.uuid4())
    with waiting(word) as ours, waiting("other", word) as more, waiting(str(uuid.uuid4())):
        assert sorted(processes.find("cat", word)) == sorted([ours.pid, more.pid])
        assert processes.find("at", word, "other") == [more.pid], "the end of the first word is enough"
        assert processes.find("dog", word) == []
        if os.geteuid() == 0:
            assert sorted(as_user(lambda: processes.find("cat", word))) == sorted([ours.pid, more.pid])
            with waiting("theirs", word, user=NOBODY) as theirs:
                assert processes.find("cat", "theirs", word) == [theirs.pid]


def test_process_whose_words_only_look_alike_is_not_found() -> None:
    """A title that a program gave itself is one word, with whatever spaces (psutil splits it)."""
    word = str(uuid.uuid4())
    with waiting(title=f"/bin/cat {word}") as alike:
        assert processes.find(f"/bin/cat {word}") == [alike.pid]
        assert processes.find("cat", word) == []


def test_zombie_is_not_found() -> None:
    word = str(uuid.uuid4())
    with waiting(word) as child:
        assert processes.find("cat", word) == [child.pid]
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not processes.pid_alive(child.pid)
        assert processes.find("cat", word) == []


def test_ghostbox_command_uses_its_directories_and_not_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ghostbox.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(project.ROOT))
    places = Paths(tmp_path / "s", tmp_path / "r", tmp_path / "c", tmp_path / "e", tmp_path / "n")
    env = {"GHOSTBOX_STATE_DIR": "/elsewhere", "GHOSTBOX_OUTPUT": "json"}
    child = processes.start_own("paths", paths=places, log_path=tmp_path / "log", env=env)
    assert child.wait(60) == 0, (tmp_path / "log").read_text()
    found = json.loads((tmp_path / "log").read_text())
    assert [found[kind] for kind in ("state", "runtime", "cache")] == [str(tmp_path / name) for name in "src"]
    assert found["pager"] == str(tmp_path / "n/ghostbox-pager")
