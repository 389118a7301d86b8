# SPDX-License-Identifier: MIT
"""Lend memory of this host in a donor's place, for a donor that must leave while no other donor has room.

Each lease of this memory is a ``ghostbox-memserver`` process of its own on loopback, with one export; the process ends
with the lease.
"""

from __future__ import annotations

from pathlib import Path

from ghostbox.errors import ProgramError, Refused
from ghostbox.memserver import model as memserver
from ghostbox.memserver.memory import read_facts
from ghostbox.paths import VmPaths, find
from ghostbox.session.record import LeaseRecord
from ghostbox.system import pidfd, processes
from ghostbox.system.machine import machine_digest
from ghostbox.system.processes import ControlError
from ghostbox.units import MIB, format_bytes

ADDRESS = "127.0.0.1"
"""The address that the servers of this host's memory bind."""
RESERVE_BYTES = 512 * MIB
"""The memory that is left for this host's own programs."""
_READY_TIMEOUT_S = 20.0


def free_bytes() -> int:
    """Return how many bytes this host can lend."""
    return max(read_facts().available_bytes - RESERVE_BYTES, 0)


def start(files: VmPaths, lease: LeaseRecord) -> str:
    """Start the server of a lease; return its NBD URI.

    Raises:
        Refused: this host itself has too little memory.
        ProgramError: the server does not start.
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
    """End the server of a lease. A server that is gone already is no error."""
    control = _control(files, lease)
    with pidfd.held(lambda: _find(files, lease)) as servers:
        patience_s = _READY_TIMEOUT_S
        try:
            processes.control_request(control, "shutdown")
        except ControlError as err:
            if err.code != "gone":
                raise
            patience_s = 0.0  # nothing listens on the control socket: end the server at once
        for server in servers:
            if not server.ended(patience_s):
                server.end()
    control.unlink(missing_ok=True)


def _control(files: VmPaths, lease: LeaseRecord) -> Path:
    return files.runtime / f"host-{lease.name.rpartition('-')[2]}.sock"


def _port(control: Path) -> int | None:
    try:
        return memserver.status(control).port
    except ControlError as err:
        if err.code != "gone":
            raise
        return None
