# SPDX-License-Identifier: MIT
"""Processes by an identity that outlasts the command that started them, and how much of the process table we see.

A process id alone is given to another process some day. Id, start time and boot together are not (proc(5): field 22 of
/proc/PID/stat, /proc/sys/kernel/random/boot_id). The namespace says where the id counts (pid_namespaces(7)).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ghostbox import processes
from ghostbox.errors import DeadlineExceeded, ProgramError

_PROC = Path("/proc")
# PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h: the namespace in which every process has an id.
_FIRST_NAMESPACE = 0xEFFFFFFC


@dataclass(frozen=True)
class Identity:
    """One process, as a record keeps it."""

    pid: int
    start_ticks: int
    boot_id: str
    namespace: int


def boot_id() -> str:
    """Return what tells this boot of the kernel from all others."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def machine_id() -> str:
    """Return what tells this machine from others: a digest of its machine id, or of its name where it has none."""
    try:
        machine = Path("/etc/machine-id").read_bytes()
    except OSError:
        machine = os.uname().nodename.encode(errors="surrogateescape")
    return hashlib.sha256(machine).hexdigest()[:8]


def start_ticks(pid: int) -> int:
    """Return when a process was started, in clock ticks since boot; 0 if there is none."""
    try:
        return int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0


def identify(pid: int) -> Identity | None:
    """Return the identity of a process that runs; None if there is none."""
    ticks = start_ticks(pid)
    return Identity(pid, ticks, boot_id(), own_namespace()) if ticks else None


def is_alive(known: Identity) -> bool:
    """Tell whether this very process runs, as far as its id counts in our namespace."""
    same_numbering = (known.boot_id, known.namespace) == (boot_id(), own_namespace())
    return same_numbering and start_ticks(known.pid) == known.start_ticks and processes.pid_alive(known.pid)


def own_namespace() -> int:
    """Return the number of our process id namespace."""
    try:
        return (_PROC / "self/ns/pid").stat().st_ino
    except OSError:
        return 0


def blind_spot(namespace: int | None = None) -> str | None:
    """Return why a process may live that we do not see; None if we see all (that began in ``namespace``)."""
    own = own_namespace()
    if own not in (_FIRST_NAMESPACE, namespace):
        return "this command runs in a container, which shows its own processes alone"
    try:
        (_PROC / "1/cmdline").read_bytes()
    except OSError:
        return "/proc hides the processes of other users (hidepid)"
    return None


def takes_signal(pid: int, number: signal.Signals) -> bool:
    """Tell whether a process expects a signal: it blocks or catches it, so that the signal does not end it.

    A main thread that waits for the signal by sigtimedwait(2) does not show it as blocked meanwhile; then its other
    threads count, which have their masks from it.
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
    """Send a signal to the process that ``check`` finds to be the right one while we hold a descriptor of it.

    Returns whether it was sent: False if the process is gone, or is not the one.

    Raises:
        ProgramError: it belongs to somebody else.
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not check():
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    except PermissionError as err:
        raise ProgramError(f"process {pid} cannot be signalled: {os.strerror(errno.EPERM).lower()}") from err
    finally:
        os.close(descriptor)
    return True


def end(pid: int, check: Callable[[], bool], *, timeout_s: float = 20.0) -> bool:
    """End a process that ``check`` confirms: SIGTERM, then SIGKILL; tell whether it is gone.

    Raises:
        ProgramError: it belongs to somebody else.
    """
    for number, wait_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, timeout_s)):
        if not send(pid, number, check):
            break
        with contextlib.suppress(DeadlineExceeded):
            processes.wait_until(lambda: not processes.pid_alive(pid), timeout_s=wait_s, what=f"end of process {pid}")
            return True
    return not (processes.pid_alive(pid) and check())
