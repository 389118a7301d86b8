# SPDX-License-Identifier: MIT
"""A lock between processes has one holder at a time, whatever happens to the file and to the holder."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ghostbox.system import locks

HOLDER = """
import sys
from pathlib import Path
from ghostbox.system import locks
locks.write(locks.take(Path(sys.argv[1])), "the other one\\n")
print(flush=True)
sys.stdin.read()
"""


def holder(file: Path) -> subprocess.Popen[str]:
    """Start a process that holds a lock."""
    argv = [sys.executable, "-c", HOLDER, str(file)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_second_process_learns_the_holder_of_the_lock_until_the_holder_dies(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with holder(file) as other:
        assert not locks.is_free(file)
        with pytest.raises(locks.Held) as caught:
            locks.take(file)
        assert caught.value.said == "the other one"
        other.kill()
        other.wait(10)
    assert locks.is_free(file)
    os.close(locks.take(file))


def test_lock_is_given_back_at_the_end_of_the_block(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with locks.held(file):
        assert not locks.is_free(file)
    assert locks.is_free(file)


def test_a_waiting_process_locks_the_present_file_and_not_a_removed_one(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    first = locks.take(file)
    found: list[int] = []
    waiter = threading.Thread(target=lambda: found.append(locks.take(file, wait=True)))
    waiter.start()
    file.unlink()
    second = locks.take(file)
    os.close(first)
    waiter.join(0.2)
    assert waiter.is_alive(), "it waits for the file that is there now"
    os.close(second)
    waiter.join(10)
    assert os.fstat(found[0]).st_ino == file.stat().st_ino
    os.close(found[0])


def test_file_that_is_not_there_is_held_by_nobody(tmp_path: Path) -> None:
    assert locks.is_free(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        locks.take(tmp_path / "no directory" / "lock")


def test_file_is_removed_unless_its_lock_is_held(tmp_path: Path) -> None:
    file = tmp_path / "draft"
    with locks.held(file):
        assert not locks.remove_unheld(file)
        assert file.exists()
    assert locks.remove_unheld(file)
    assert not file.exists()
    assert not locks.remove_unheld(file), "a file that is gone is no error"


def test_a_file_that_was_made_anew_before_it_was_locked_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, flock = tmp_path / "draft", fcntl.flock
    holders: list[int] = []

    def made_anew_first(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        file.unlink()
        holders.append(locks.take(file))
        flock(descriptor, how)

    file.touch()
    monkeypatch.setattr(fcntl, "flock", made_anew_first)
    assert not locks.remove_unheld(file)
    assert os.path.samestat(file.stat(), os.fstat(holders[0]))
    os.close(holders[0])


def test_link_is_not_followed_to_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    assert not locks.remove_unheld(tmp_path / "link")
    assert (tmp_path / "other").exists()


def test_directory_has_one_holder_at_a_time(tmp_path: Path) -> None:
    descriptor = locks.take_directory(tmp_path)
    with pytest.raises(locks.Held):
        locks.take_directory(tmp_path)
    os.close(descriptor)
    os.close(locks.take_directory(tmp_path))
    with pytest.raises(FileNotFoundError):
        locks.take_directory(tmp_path / "none")
