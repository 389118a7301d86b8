# SPDX-License-Identifier: MIT
"""The pager of one VM: start it, ask it, stop it. It is a C program that outlives the command that started it."""

from __future__ import annotations

import json
import logging
import math
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
_ADD_TIMEOUT_S = 40.0
_PROBE_TIMEOUT_S = 20.0
_LOG_LINES = 6
# sockaddr_un.sun_path (unix(7)), less the terminating NUL.
SOCKET_PATH_BYTES = 107


@dataclass(frozen=True)
class PagerFiles:
    """Where a pager listens and writes."""

    socket: Path
    control: Path
    log: Path
    state: Path


def start(
    program: Path,
    plan: PagerPlan,
    files: PagerFiles,
    donors: Sequence[str],
    *,
    peer_uid: int | None,
    backup: str | None = None,
) -> int:
    """Start a pager and wait until it is ready; return its process id.

    Args:
        program: the C program.
        plan: its sizes.
        files: its sockets and log.
        donors: NBD URIs.
        peer_uid: who besides us may hand it memory (the user that QEMU runs as).
        backup: NBD URI of the copy on disk.

    Raises:
        ProgramError: it ended at once; the ``why`` is what it said.
        DeadlineExceeded: it does not get ready.
    """
    own = ["--cache", str(plan.cache_bytes), "--extent", str(plan.extent_bytes)]
    for uri in donors:
        own += ["--donor", uri]
    if backup is not None:
        own += ["--backup", backup]
    if plan.pool_bytes:
        own += ["--pool", str(plan.pool_bytes)]
    own += ["--replicas", str(plan.replicas)]
    if plan.allow_same_host:
        own.append("--allow-same-host")
    return _start([*_argv(program, plan, files, peer_uid), *own], files)


def resume(program: Path, plan: PagerPlan, files: PagerFiles, *, peer_uid: int | None) -> int:
    """Start a pager that goes on with the page map of one that died; return its process id when it is ready.

    The processes whose memory it is then connect by themselves: see `serves`. Cache, extents and donors are as they
    were; of ``plan`` the rest counts.

    Raises:
        ProgramError: there is no page map, or the pager ended at once; the ``why`` is what it said.
        DeadlineExceeded: it does not get ready.
    """
    if not files.state.exists():
        raise ProgramError(f"the pager left no page map: {files.state} is not there")
    return _start([*_argv(program, plan, files, peer_uid), "--resume"], files)


def check_resume(program: Path, files: PagerFiles) -> None:
    """Let a pager that is to follow the running one look at its state file, which stays as it is.

    Raises:
        ProgramError: it could not go on with that file; the ``why`` is what it said.
    """
    answer = processes.run([program, "--probe", "--state", files.state], timeout_s=_PROBE_TIMEOUT_S)
    if not json.loads(answer).get("resumable"):
        why = f"{program} is too old to say whether it can read {files.state}"
        raise ProgramError("the new pager may not be able to go on", why=why)


def hand_over(files: PagerFiles) -> None:
    """Ask the pager to end in favour of the next one, and wait until it has.

    Raises:
        ProgramError: it refuses, or does not end.
    """
    pids = find(files.control)
    processes.control_request(files.control, "hand-over")
    processes.wait_until(
        lambda: not any(processes.pid_alive(pid) for pid in pids),
        timeout_s=_STOP_TIMEOUT_S,
        what="the end of the pager that hands over",
    )


def _start(argv: list[str | Path], files: PagerFiles) -> int:
    said_before = files.log.stat().st_size if files.log.exists() else 0
    child = processes.start_detached(argv, log_path=files.log)

    def settled() -> bool:
        return child.poll() is not None or _answers(files)

    try:
        processes.wait_until(settled, timeout_s=_START_TIMEOUT_S, what="the pager's control socket")
    except DeadlineExceeded as err:
        raise DeadlineExceeded(
            err.message, why=processes.last_words(files.log, lines=_LOG_LINES, offset=said_before)
        ) from err
    if child.poll() is not None:
        raise ProgramError(
            f"the pager does not start (status {child.returncode})",
            why=processes.last_words(files.log, lines=_LOG_LINES, offset=said_before),
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
    return found is not None and any(region["pid"] == pid and region["connected"] for region in found["regions"])


def set_cache(control: Path, cache_bytes: int) -> None:
    """Have the pager keep that much of the memory here from now on; what is too much leaves in the background."""
    processes.control_request(control, "set-cache", cache_bytes=cache_bytes)


def set_rebuild_rate(control: Path, bytes_per_s: int) -> None:
    """Have the pager make copies at most that fast; 0 is without limit."""
    processes.control_request(control, "set-rebuild-rate", bytes_per_s=bytes_per_s)


def add_donor(control: Path, uri: str) -> None:
    """Have the pager use one more export; it has connected to it when this returns.

    Raises:
        ControlError: it has it already (``exists``), cannot use it (``invalid``, ``unreachable``), or has no place left
            (``too-many``): another pager has those again of donors that were removed.
    """
    processes.control_request(control, "add-donor", timeout_s=_ADD_TIMEOUT_S, uri=uri)


def drain_donor(control: Path, uri: str) -> int:
    """Have the pager move what an export holds to the others, and put nothing more there; return the bytes to move.

    Raises:
        ControlError: it does not fit there (``too-small``).
    """
    return int(processes.control_request(control, "drain-donor", uri=uri)["bytes"])


def keep_donor(control: Path, uri: str) -> None:
    """Call a drain off."""
    processes.control_request(control, "keep-donor", uri=uri)


def lose_donor(control: Path, uri: str) -> None:
    """Tell the pager that what an export held is gone for good, and not only away.

    Raises:
        ControlError: it answers (``busy``).
    """
    processes.control_request(control, "lose-donor", uri=uri)


def remove_donor(control: Path, uri: str) -> None:
    """Have the pager forget an export that holds nothing any more.

    Raises:
        ControlError: it still holds something (``busy``).
    """
    processes.control_request(control, "remove-donor", uri=uri)


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
    return processes.find("ghostbox-pager", str(control))


def _argv(program: Path, plan: PagerPlan, files: PagerFiles, peer_uid: int | None) -> list[str | Path]:
    argv: list[str | Path] = [program, "--listen", files.socket, "--control", files.control, "--state", files.state]
    argv += ["--readahead", str(plan.readahead_bytes), "--poll-us", str(plan.poll_us)]
    level = {"warn": "warning"}.get(plan.log_level, plan.log_level)
    argv += ["--log-level", level, "--exit-with-client"]
    argv += ["--on-donor-loss", "poison" if plan.on_donor_loss == "poison" else "wait"]
    argv += ["--lost-pages", plan.lost_pages]
    argv += ["--rebuild-after", str(math.ceil(plan.rebuild_after_s)), "--rebuild-rate", str(plan.rebuild_rate_bytes)]
    argv += ["--slow-us", str(plan.slow_us)]
    if peer_uid is not None:
        argv += ["--peer-uid", str(peer_uid)]
    return argv


def _answers(files: PagerFiles) -> bool:
    return files.socket.exists() and status(files.control) is not None
