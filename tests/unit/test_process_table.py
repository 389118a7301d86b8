# SPDX-License-Identifier: MIT
"""Processes by identity, signals that are sent to the right one alone, and what of the process table is hidden."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox import hypervisor, process_table, processes
from ghostbox.process_table import identify, is_alive
from ghostbox.units import MIB
from helpers import nbd
from helpers.guest import free_port

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
    processes.wait_until(lambda: not is_alive(known), timeout_s=10, what="its end, though nobody has waited for it")
    sleeper.wait()
    assert identify(sleeper.pid) is None


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
    """A main thread that waits for a signal does not block it meanwhile."""
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
    """In a mount namespace of its own."""
    program = (
        "import os, subprocess; from ghostbox import process_table as table; "
        f"subprocess.run(['mount', '-t', 'proc', '-o', 'hidepid={hidepid}', 'proc', '/proc'], check=True); "
        f"os.setgroups([]); os.setgid({uid}); os.setuid({uid}); print(table.blind_spot(table.own_namespace()))"
    )
    argv = ["unshare", "--mount", sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd="/")
    assert done.stdout.strip() == expected, done.stderr


@ROOT_ONLY
def test_other_namespace_hides_what_began_outside() -> None:
    program = (
        "from ghostbox import process_table; "
        "own = process_table.own_namespace(); print(process_table.blind_spot(own)); print(process_table.blind_spot(1))"
    )
    argv = ["unshare", "--fork", "--pid", "--mount-proc", sys.executable, "-c", program]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60, cwd="/")
    assert done.stdout.splitlines() == [
        "None", "this command runs in a container, which shows its own processes alone"
    ], done.stderr  # fmt: skip


def test_disk_that_a_qemu_writes_is_known_by_its_lock(tmp_path: Path) -> None:
    """Whoever only reads it, as the VM of a clone does, does not count."""
    disk, clone = tmp_path / "disk.qcow2", tmp_path / "clone.qcow2"
    assert hypervisor.disk_is_written(disk) is None
    processes.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, str(MIB)])
    processes.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk, clone])
    assert hypervisor.disk_is_written(disk) is False
    for opened, expected in ((clone, False), (disk, True)):
        port = str(free_port())
        with subprocess.Popen(["qemu-nbd", "-p", port, "-b", "127.0.0.1", "--persistent", opened]) as server:
            processes.wait_until(
                lambda opened=opened: hypervisor.disk_is_written(opened) is True, timeout_s=20, what="the lock"
            )  # type: ignore[misc]
            assert hypervisor.disk_is_written(disk) is expected
            nbd.wait_for_greeting(("127.0.0.1", int(port)))
            server.terminate()
    assert hypervisor.disk_is_written(disk) is False
