# SPDX-License-Identifier: MIT
"""Memory of the host itself in a donor's place, for a donor that must leave and nobody else has room.

Each lease of it is a ``ghostbox-memserver`` of its own on loopback, with one export; it ends with its lease.
"""

from __future__ import annotations

from pathlib import Path

from ghostbox import processes
from ghostbox.errors import DeadlineExceeded, ProgramError, Refused
from ghostbox.memserver.identity import machine_digest
from ghostbox.memserver.memory import read_facts
from ghostbox.paths import VmPaths, find
from ghostbox.processes import ControlError
from ghostbox.session.record import LeaseRecord
from ghostbox.units import MIB, format_bytes

ADDRESS = "127.0.0.1"
"""Where it is reached."""
RESERVE_BYTES = 512 * MIB
"""What the host's own programs keep."""
_READY_TIMEOUT_S = 20.0


def free_bytes() -> int:
    """Return what this host can give."""
    return max(read_facts().available_bytes - RESERVE_BYTES, 0)


def start(files: VmPaths, lease: LeaseRecord) -> str:
    """Start the server of a lease; return its NBD URI.

    Raises:
        Refused: the host has too little memory itself.
        ProgramError: it does not start.
    """
    if lease.size_bytes > free_bytes():
        raise Refused(
            f"this host has {format_bytes(free_bytes())} to give, and {format_bytes(lease.size_bytes)} are needed",
            hint="add a donor: ghostbox donor add ADDRESS",
        )
    control, log = _control(files, lease), files.state / "host-memory.log"
    argv: list[str | Path] = [find().program("ghostbox-memserver"), "--port", "0", "--size", str(lease.size_bytes)]
    argv += ["--export", f"{lease.name}={lease.size_bytes}", "--control", control, "--bind", ADDRESS]
    argv += ["--machine", machine_digest()]
    child = processes.start_detached(argv, log_path=log)
    try:
        processes.wait_until(
            lambda: child.poll() is not None or _port(control) is not None,
            timeout_s=_READY_TIMEOUT_S,
            what="the server of this host's memory",
        )
        port = _port(control)
        if port is None:
            raise ProgramError("the server of this host's memory does not start", why=f"its log is {log}")
    except BaseException:
        processes.terminate(child.pid)
        raise
    return f"nbd://{ADDRESS}:{port}/{lease.name}"


def lives(files: VmPaths, lease: LeaseRecord) -> bool:
    """Tell whether the server of a lease runs."""
    return bool(_find(files, lease))


def _find(files: VmPaths, lease: LeaseRecord) -> list[int]:
    return processes.find("ghostbox-memserver", str(_control(files, lease)))


def stop(files: VmPaths, lease: LeaseRecord) -> None:
    """End the server of a lease. One that is gone is no error."""
    control = _control(files, lease)
    try:
        pid = int(processes.control_request(control, "status")["pid"])
        processes.control_request(control, "shutdown")
    except ControlError as err:
        if err.code != "gone":
            raise
        for pid in _find(files, lease):  # its socket was removed, or it does not answer
            processes.terminate(pid)
    else:
        try:
            processes.wait_until(
                lambda: not processes.pid_alive(pid), timeout_s=_READY_TIMEOUT_S, what=f"the end of process {pid}"
            )
        except DeadlineExceeded:
            processes.terminate(pid)
    control.unlink(missing_ok=True)


def _control(files: VmPaths, lease: LeaseRecord) -> Path:
    return files.runtime / f"host-{lease.name.rpartition('-')[2]}.sock"


def _port(control: Path) -> int | None:
    try:
        return int(processes.control_request(control, "status")["port"])
    except ControlError:
        return None
