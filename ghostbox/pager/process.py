# SPDX-License-Identifier: MIT
"""Start, ask and stop the pager of one VM, a C program that outlives the command that starts it."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import DeadlineExceeded, ProgramError
from ghostbox.pager.model import PROGRAM, Drain, PagerStatus
from ghostbox.plan.plan import PagerPlan
from ghostbox.system import pidfd, processes
from ghostbox.system.processes import ControlError

_log = logging.getLogger(__name__)
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 20.0
_ADD_TIMEOUT_S = 40.0
_PROBE_TIMEOUT_S = 20.0
_LOG_LINES = 6
# This is the size of sockaddr_un.sun_path (unix(7)) less the terminating NUL.
SOCKET_PATH_BYTES = 107


@dataclass(frozen=True)
class PagerFiles:
    """Holds the paths of a pager's sockets, log and state file."""

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
    """Start a pager and wait until it serves; return its process id.

    Args:
        program: the C program.
        plan: its settings.
        files: its sockets, log and state file.
        donors: NBD URIs.
        peer_uid: the user besides the pager's own that may hand it memory (QEMU's).
        backup: NBD URI of the copy on disk.

    Raises:
        ProgramError: the pager ended at once; ``why`` has its last words.
        DeadlineExceeded: the pager does not answer in time.
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
    """Start a pager that resumes from the page map of a dead pager; return its process id when it serves.

    The processes whose memory it serves then connect by themselves: see `serves`. Cache, extents and donors come from
    the page map, the other settings from ``plan``.

    Raises:
        ProgramError: there is no page map, or the pager ended at once; ``why`` has its last words.
        DeadlineExceeded: the pager does not answer in time.
    """
    if not files.state.exists():
        raise ProgramError(f"the pager left no page map: {files.state} does not exist")
    return _start([*_argv(program, plan, files, peer_uid), "--resume"], files)


def check_resume(program: Path, files: PagerFiles) -> None:
    """Check, with the program of a new pager, that it can resume from the running pager's state file.

    The state file stays as it is.

    Raises:
        ProgramError: the new pager cannot resume from that file; ``why`` has its last words.
    """
    answer = processes.run([program, "--probe", "--state", files.state], timeout_s=_PROBE_TIMEOUT_S)
    if not json.loads(answer).get("resumable"):
        why = f"{program} is too old to say whether it can read {files.state}"
        raise ProgramError("the new pager may not be able to resume", why=why)


def hand_over(files: PagerFiles) -> None:
    """Ask the pager to end, so that the next pager can take over, and wait until it has ended.

    Raises:
        ProgramError: the pager refuses.
        DeadlineExceeded: the pager does not end in time.
    """
    with pidfd.held(lambda: find(files.control)) as pagers:
        processes.control_request(files.control, "hand-over")
        processes.wait_until(
            lambda: all(each.ended() for each in pagers),
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


def status(control: Path) -> PagerStatus | None:
    """Return the pager's status, or None if no pager answers.

    Raises:
        ControlError: the pager refuses, or its answer has an unknown form (``misfit``).
    """
    try:
        return PROGRAM.ask(PagerStatus, control, "status")
    except ControlError as err:
        if err.code == "gone":
            return None
        raise


def serves(control: Path, pid: int) -> bool:
    """Tell whether the pager has a connected region of memory of process ``pid``."""
    found = status(control)
    return found is not None and any(region.pid == pid and region.connected for region in found.regions)


def set_cache(control: Path, cache_bytes: int) -> None:
    """Set the size of the pager's cache; if it shrinks, pages are evicted in the background."""
    processes.control_request(control, "set-cache", cache_bytes=cache_bytes)


def set_rebuild_rate(control: Path, bytes_per_s: int) -> None:
    """Set the highest rate at which the pager makes copies; 0 sets no limit."""
    processes.control_request(control, "set-rebuild-rate", bytes_per_s=bytes_per_s)


def add_donor(control: Path, uri: str) -> None:
    """Let the pager use one more export; the pager has connected to it when this returns.

    Raises:
        ControlError: the pager has the export already (``exists``), cannot use it (``invalid``, ``unreachable``), or
            has no free donor number (``too-many``): a restarted pager gets back the numbers of donors that were
            removed.
    """
    processes.control_request(control, "add-donor", timeout_s=_ADD_TIMEOUT_S, uri=uri)


def drain_donor(control: Path, uri: str) -> int:
    """Let the pager move an export's content to the others and write no more to it; return the bytes to move.

    Raises:
        ControlError: the content does not fit on the others (``too-small``).
    """
    return PROGRAM.ask(Drain, control, "drain-donor", uri=uri).bytes


def keep_donor(control: Path, uri: str) -> None:
    """Call a drain off."""
    processes.control_request(control, "keep-donor", uri=uri)


def lose_donor(control: Path, uri: str) -> None:
    """Tell the pager that an export's content is lost for good, so that the pager does not wait for it.

    Raises:
        ControlError: the export answers (``busy``).
    """
    processes.control_request(control, "lose-donor", uri=uri)


def remove_donor(control: Path, uri: str) -> None:
    """Let the pager forget an export that holds nothing any more.

    Raises:
        ControlError: the export still holds something (``busy``).
    """
    processes.control_request(control, "remove-donor", uri=uri)


def stop(files: PagerFiles) -> None:
    """End the pager, whatever it still serves. A pager that is gone already is no error.

    Raises:
        ProgramError: the pager does not end.
    """
    with pidfd.held(lambda: find(files.control)) as pagers:
        try:
            processes.control_request(files.control, "stop", force=True)
        except ControlError as err:
            _log.debug("pager: %s", err)
        for each in pagers:
            if not each.ended(_STOP_TIMEOUT_S):
                each.end()


def find(control: Path) -> list[int]:
    """Return the process ids of pagers with this control socket (one, or none), by their command lines."""
    return processes.find(PROGRAM.name, str(control))


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
