# SPDX-License-Identifier: MIT
"""Processes are known by identity, signals reach the right process only, and hidden parts of /proc are noticed."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.system import hypervisor, process_table, processes
from ghostbox.system.process_table import identify, is_alive
from ghostbox.units import MIB
from helpers import nbd
from helpers.ports import free_port

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="cannot run here: not root")


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_process_is_known_by_more_than_its_id(sleeper: subprocess.Popen[bytes]) -> None:
    known = identify(sleeper.pid)
    assert known is not None
    assert is_alive(known)
    for changed in ({"start_ticks": known.start_ticks + 1}, {"boot_id": "another"}, {"namespace": 1}):
        assert not is_alive(dataclasses.replace(known, **changed))
    sleeper.kill()
    processes.wait_until(lambda: not is_alive(known), timeout_s=10, what="its end, though no process has waited for it")
    sleeper.wait()
    assert identify(sleeper.pid) is None


def test_process_of_this_user_is_known_with_its_words(sleeper: subprocess.Popen[bytes]) -> None:
    processes.wait_until(lambda: process_table.words(sleeper.pid) == ["sleep", "600"], timeout_s=10, what="its program")
    assert process_table.is_own(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert (process_table.words(sleeper.pid), process_table.is_own(sleeper.pid)) == ([], False)


@ROOT_ONLY
@pytest.mark.parametrize("how", [["unshare", "--fork", "--pid"], ["setpriv", "--reuid=65534", "--clear-groups"]])
def test_process_of_another_user_or_of_a_container_is_not_ones_own(how: list[str]) -> None:
    mark = f"0.{os.getpid()}{len(how)}"
    with subprocess.Popen([*how, "sleep", "600", mark]) as process:
        try:
            processes.wait_until(lambda: processes.find("sleep", mark) != [], timeout_s=10, what="the process")
            (pid,) = processes.find("sleep", mark)
            assert not process_table.is_own(pid)
        finally:
            for pid in processes.find("sleep", mark):
                os.kill(pid, signal.SIGKILL)  # the first process of a container does not die of SIGTERM
            process.wait(10)


def test_signal_goes_to_the_process_that_was_meant(sleeper: subprocess.Popen[bytes]) -> None:
    assert not process_table.send(sleeper.pid, signal.SIGTERM, lambda: False)
    assert sleeper.poll() is None
    assert process_table.end(sleeper.pid, lambda: True)
    assert sleeper.wait(10) == -signal.SIGTERM
    assert process_table.end(sleeper.pid, lambda: True), "one that is gone is no error"


BLOCKS = "import signal, threading, time; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); "
THREAD = "threading.Thread(target=time.sleep, args=(600,), daemon=True).start(); print(flush=True); "


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        (BLOCKS + "print(flush=True); signal.pause()", True),
        (BLOCKS + THREAD + "signal.sigtimedwait([signal.SIGUSR1], 600)", True),
        ("import signal, threading, time; " + THREAD + "signal.pause()", False),
    ],
)
def test_process_that_would_die_of_a_signal_is_told_from_one_that_expects_it(program: str, expected: bool) -> None:
    """A main thread in sigtimedwait() does not block the signal meanwhile."""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        if "sigtimedwait" in program:
            status = Path(f"/proc/{process.pid}/status")
            processes.wait_until(
                lambda: "SigBlk:\t0000000000000000" in status.read_text(), timeout_s=10, what="it to wait"
            )
        assert process_table.takes_signal(process.pid, signal.SIGUSR1) is expected
        assert not process_table.takes_signal(process.pid, signal.SIGUSR2)
        process.kill()


HIDDEN = "/proc hides the processes of other users (hidepid)"


@ROOT_ONLY
@pytest.mark.parametrize(
    ("hidepid", "uid", "expected"), [("0", 65534, "None"), ("1", 65534, HIDDEN), ("2", 65534, HIDDEN), ("2", 0, "None")]
)
def test_hidden_processes_are_known_to_be_hidden(hidepid: str, uid: int, expected: str) -> None:
    """The test hides them in a mount namespace."""
    program = (
        "import os, subprocess; from ghostbox.system import process_table as table; "
        f"subprocess.run(['mount', '-t', 'proc', '-o', 'hidepid={hidepid}', 'proc', '/proc'], check=True); "
        f"os.setgroups([]); os.setgid({uid}); os.setuid({uid}); print(table.blind_spot(table.own_namespace()))"
    )
    argv = ["unshare", "--mount", sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd="/")
    assert done.stdout.strip() == expected, done.stderr


@ROOT_ONLY
def test_other_namespace_hides_what_began_outside() -> None:
    program = (
        "from ghostbox.system import process_table; "
        "own = process_table.own_namespace(); print(process_table.blind_spot(own)); print(process_table.blind_spot(1))"
    )
    argv = ["unshare", "--fork", "--pid", "--mount-proc", sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd="/")
    assert done.stdout.splitlines() == [
        "None", "this command runs in a container, which shows its own processes alone"
    ], done.stderr  # fmt: skip


def is_written(disk: Path) -> bool:
    return hypervisor.disk_is_written(disk) is True


def test_disk_that_a_qemu_writes_is_known_by_its_lock(tmp_path: Path) -> None:
    """A process that only reads the disk, as the VM of a clone does, does not count."""
    disk, clone = tmp_path / "disk.qcow2", tmp_path / "clone.qcow2"
    assert hypervisor.disk_is_written(disk) is None
    processes.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, str(MIB)])
    processes.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk, clone])
    assert hypervisor.disk_is_written(disk) is False
    for opened, expected in ((clone, False), (disk, True)):
        port = str(free_port())
        with subprocess.Popen(["qemu-nbd", "-p", port, "-b", "127.0.0.1", "--persistent", opened]) as server:
            processes.wait_until(functools.partial(is_written, opened), timeout_s=20, what="the lock")
            assert hypervisor.disk_is_written(disk) is expected
            nbd.wait_for_greeting(("127.0.0.1", int(port)))
            server.terminate()
    assert hypervisor.disk_is_written(disk) is False
