# SPDX-License-Identifier: MIT
"""Identify processes beyond the life of a command, and tell how much of the process table is visible.

A process id alone is given to another process some day; id, start time and boot together are not (proc(5): field 22 of
/proc/PID/stat, /proc/sys/kernel/random/boot_id). The namespace says where the id is valid (pid_namespaces(7)).
"""

from __future__ import annotations

import errno
import hashlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import ProgramError
from ghostbox.system import processes
from ghostbox.system.pidfd import Process

_PROC = Path("/proc")
# This is PROC_PID_INIT_INO of the kernel's include/linux/proc_ns.h, the namespace in which every process has an id.
_FIRST_NAMESPACE = 0xEFFFFFFC


@dataclass(frozen=True)
class Identity:
    """Identifies one process, in the form that records keep."""

    pid: int
    start_ticks: int
    boot_id: str
    namespace: int


def boot_id() -> str:
    """Return the id of this boot of the kernel."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def machine_id() -> str:
    """Return a short id of this machine: a digest of its machine id, or of its name if it has none."""
    try:
        machine = Path("/etc/machine-id").read_bytes()
    except OSError:
        machine = os.uname().nodename.encode(errors="surrogateescape")
    return hashlib.sha256(machine).hexdigest()[:8]


def start_ticks(pid: int) -> int:
    """Return when a process was started, in clock ticks since boot; 0 if there is no such process."""
    try:
        return int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def identify(pid: int) -> Identity | None:
    """Return the identity of a running process; None if there is no such process."""
    ticks = start_ticks(pid)
    return Identity(pid, ticks, boot_id(), own_namespace()) if ticks else None


def is_alive(known: Identity) -> bool:
    """Tell whether exactly this process runs, as far as its id is valid in this command's namespace."""
    same_numbering = (known.boot_id, known.namespace) == (boot_id(), own_namespace())
    return same_numbering and start_ticks(known.pid) == known.start_ticks and processes.pid_alive(known.pid)


def words(pid: int) -> list[str]:
    """Return the command line of a process; it is empty if there is no such process."""
    try:
        line = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in line.split(b"\0")[:-1]]


def is_own(pid: int) -> bool:
    """Tell whether a process runs as this command's user, and in no container that this command is outside of."""
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return False
    said = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    # A process has an id in its own namespace and in each one around it: NSpid lists those that are visible here.
    return said.get("Uid", [])[:2] == [str(os.getuid()), str(os.geteuid())] and len(said.get("NSpid", [])) == 1


def own_namespace() -> int:
    """Return the number of this command's process id namespace; 0 if it cannot be read."""
    try:
        return (_PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return 0


def blind_spot(namespace: int | None = None) -> str | None:
    """Return why a running process may be invisible here; None if all processes (of ``namespace``) are visible."""
    own = own_namespace()
    if own not in (_FIRST_NAMESPACE, namespace):
        return "this command runs in a container, which shows its own processes alone"
    try:
        (_PROC / "1/cmdline").read_bytes()
    except OSError:
        return "/proc hides the processes of other users (hidepid)"
    return None


def takes_signal(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process expects a signal: it blocks or catches it, so that the signal does not end the process.

    While a main thread waits for the signal with sigtimedwait(2), /proc does not show the signal as blocked there; then
    its other threads count, which inherited their masks from it.
    """
    try:
        tasks = [int(entry.name) for entry in (_PROC / str(pid) / "task").iterdir()]
        expects = {task: _expects(_PROC / str(pid) / "task" / str(task) / "status", number) for task in tasks}
    except OSError:
        return False
    main = expects.pop(pid, False)
    return main or (bool(expects) and all(expects.values()))


def _expects(status: Path, number: signal.Signals) -> bool:
    lines = status.read_text().splitlines()
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigBlk:", "SigCgt:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def send(pid: int, number: signal.Signals, check: Callable[[], bool]) -> bool:
    """Send a signal to a process that ``check`` confirms while its descriptor is held.

    Returns whether the signal was sent: False if the process is gone, or is not confirmed.

    Raises:
        ProgramError: the process belongs to another user.
    """
    try:
        with Process(pid) as process:
            return check() and process.send(number)
    except ProcessLookupError:
        return False
    except PermissionError as err:
        raise ProgramError(f"process {pid} cannot be signalled: {os.strerror(errno.EPERM).lower()}") from err


def end(pid: int, check: Callable[[], bool], *, timeout_s: float = 20.0) -> bool:
    """End a process that ``check`` confirms: SIGTERM, then SIGKILL; return whether it is gone.

    Raises:
        ProgramError: the process belongs to another user.
    """
    try:
        with Process(pid) as process:
            for number in (signal.SIGTERM, signal.SIGKILL):
                if not (check() and process.send(number)) or process.ended(timeout_s):
                    break
            return process.ended() or not check()
    except ProcessLookupError:
        return True
    except PermissionError as err:
        raise ProgramError(f"process {pid} cannot be signalled: {os.strerror(errno.EPERM).lower()}") from err
