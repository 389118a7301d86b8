# SPDX-License-Identifier: MIT
"""The pager of one VM: start it, ask it, stop it. It is a C program that outlives the command that started it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostbox import processes
from ghostbox.errors import DeadlineExceeded, ProgramError
from ghostbox.plan import PagerPlan
from ghostbox.processes import ControlError

_log = logging.getLogger(__name__)
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 20.0
_LOG_LINES = 6
# sockaddr_un.sun_path (unix(7)), less the terminating NUL.
SOCKET_PATH_BYTES = 107


@dataclass(frozen=True)
class PagerFiles:
    """Where a pager listens and writes."""

    socket: Path
    control: Path
    log: Path


def start(program: Path, plan: PagerPlan, files: PagerFiles, donors: Sequence[str], *, peer_uid: int | None) -> int:
    """Start a pager and wait until it is ready; return its process id.

    Args:
        program: the C program.
        plan: its sizes.
        files: its sockets and log.
        donors: NBD URIs.
        peer_uid: who besides us may hand it memory (the user that QEMU runs as).

    Raises:
        ProgramError: it ended at once; the ``why`` is what it said.
        DeadlineExceeded: it does not get ready.
    """
    argv = _argv(program, plan, files, donors, peer_uid)
    said_before = files.log.stat().st_size if files.log.exists() else 0
    child = processes.start_detached(argv, log_path=files.log)

    def settled() -> bool:
        return child.poll() is not None or _answers(files)

    try:
        processes.wait_until(settled, timeout_s=_START_TIMEOUT_S, what="the pager's control socket")
    except DeadlineExceeded as err:
        raise DeadlineExceeded(err.message, why=_last_words(files.log, said_before)) from err
    if child.poll() is not None:
        raise ProgramError(
            f"the pager does not start (status {child.returncode})",
            why=_last_words(files.log, said_before),
            hint="ghostbox doctor",
        )
    return child.pid


def status(control: Path) -> dict[str, Any] | None:
    """Return the pager's status (ARCHITECTURE.md names the fields), or None if no pager answers."""
    try:
        answer = processes.control_request(control, "status")
    except ControlError as err:
        if err.code == "gone":
            return None
        raise
    return dict(answer)


def serves(control: Path, pid: int) -> bool:
    """Tell whether the pager has a region of memory of process ``pid``."""
    found = status(control)
    return found is not None and any(region["pid"] == pid for region in found["regions"])


def stop(files: PagerFiles) -> None:
    """End the pager, whatever it still serves. One that is gone is no error.

    Raises:
        ProgramError: it does not end.
    """
    try:
        processes.control_request(files.control, "stop", force=True)
    except ControlError as err:
        _log.debug("pager: %s", err)
    for pid in find(files.control):
        try:
            processes.wait_until(
                lambda pid=pid: not processes.pid_alive(pid),  # type: ignore[misc]
                timeout_s=_STOP_TIMEOUT_S,
                what=f"end of pager {pid}",
            )
        except DeadlineExceeded:
            processes.terminate(pid)


def find(control: Path) -> list[int]:
    """Return the process ids of pagers with this control socket (one, or none), by their command lines."""
    wanted = str(control).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"ghostbox-pager") and wanted in words and processes.pid_alive(int(entry.name)):
            found.append(int(entry.name))
    return found


def _argv(
    program: Path, plan: PagerPlan, files: PagerFiles, donors: Sequence[str], peer_uid: int | None
) -> list[str | Path]:
    argv: list[str | Path] = [program, "--listen", files.socket, "--control", files.control]
    argv += ["--cache", str(plan.cache_bytes), "--extent", str(plan.extent_bytes)]
    argv += ["--readahead", str(plan.readahead_bytes), "--poll-us", str(plan.poll_us)]
    level = {"warn": "warning"}.get(plan.log_level, plan.log_level)
    argv += ["--log-level", level, "--exit-with-client"]
    for uri in donors:
        argv += ["--donor", uri]
    if peer_uid is not None:
        argv += ["--peer-uid", str(peer_uid)]
    return argv


def _answers(files: PagerFiles) -> bool:
    return files.socket.exists() and status(files.control) is not None


def _last_words(log: Path, offset: int) -> str | None:
    """Return the last lines that were logged after ``offset``."""
    try:
        with log.open("rb") as stream:
            stream.seek(offset)
            text = stream.read().decode(errors="replace")
    except OSError:
        return None
    return "\n".join(text.strip().splitlines()[-_LOG_LINES:]) or None
