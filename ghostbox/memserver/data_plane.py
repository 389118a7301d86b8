# SPDX-License-Identifier: MIT
"""One ``ghostbox-memserver`` process: started or adopted, watched, driven through its control socket.

It runs in a session of its own and holds no end of a pipe to us, so nothing that happens to this process reaches it.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ghostbox import process_table, processes
from ghostbox.errors import DeadlineExceeded, GhostboxError, ProgramError, Refused, hint_for
from ghostbox.memserver.records import PlaneRecord
from ghostbox.paths import make_directory
from ghostbox.processes import ControlError
from ghostbox.units import format_bytes

_log = logging.getLogger(__name__)

OOM_SCORE_ADJ = 800
"""The kernel's first choice when the donor runs out of memory is the data plane: it holds the lent memory, so that
killing it gives the owner his RAM back at once, while killing the control plane would give back next to nothing and
the owner's own programs are not ours to sacrifice. Not 1000: a program of the owner that by itself outweighs the
lent memory by four fifths of all RAM is the culprit, and an almost empty memserver would die in vain. The control
plane keeps the score that it was started with, survives, and reports the loss."""

RESTORE = signal.SIGUSR1
"""What the C program takes as the wish to make its control socket anew; versions before 2026-11-29 would end."""

PRIVILEGED_PORTS = 1024
"""Ports below are for root, or for whom net.ipv4.ip_unprivileged_port_start lets in (ip(7))."""

_START_TIMEOUT_S = 20.0
_RESTORE_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 30.0
_ADOPT_TIMEOUT_S = 5.0
_REQUEST_TIMEOUT_S = 30.0  # a forced removal waits for the clients to be gone, and for their requests before that
_MAX_SOCKET_PATH = 107  # sun_path less its final zero, unix(7)


@dataclass(frozen=True)
class PlaneSettings:
    """How to start the C program. ``port`` 0 picks one."""

    program: Path
    control_socket: Path
    log_path: Path
    bind: str
    port: int
    size_bytes: int
    donor_id: str
    machine: str


@dataclass(frozen=True)
class Export:
    """One export as the data plane sees it."""

    name: str
    size_bytes: int
    resident_bytes: int
    incarnation: str
    connections: int
    idle_s: float


@dataclass(frozen=True)
class PlaneStatus:
    """The data plane's own account. ``also`` are the addresses that it listens on besides ``host`` and ``port``."""

    pid: int
    host: str
    port: int
    size_bytes: int
    exported_bytes: int
    resident_bytes: int
    exports: dict[str, Export]
    also: tuple[tuple[str, int], ...] = ()


class DataPlane:
    """A running data plane; make one by ``start`` or ``adopt``.

    ``pidfd`` becomes readable when the process has ended, whoever its parent is. ``settings`` are those it runs with:
    what starts it again as it was.
    """

    def __init__(self, settings: PlaneSettings, record: PlaneRecord, reap: Callable[[], int | None]) -> None:
        self.record = record
        self.pidfd = os.pidfd_open(record.pid)
        self._control_socket = settings.control_socket
        self._reap = reap
        found = self.status()
        self.settings = replace(settings, bind=found.host, port=found.port, size_bytes=found.size_bytes)

    @classmethod
    def start(cls, settings: PlaneSettings) -> DataPlane:
        """Start the program and wait until it serves.

        Raises:
            ProgramError: it cannot be run or ended at once; ``why`` holds the end of its log.
        """
        _check_socket_path(settings.control_socket)
        _make_directory(settings.control_socket)
        log_start = settings.log_path.stat().st_size if settings.log_path.exists() else 0
        argv: list[str | Path] = [settings.program, "--bind", settings.bind, "--port", str(settings.port)]
        argv += ["--size", str(settings.size_bytes), "--control", settings.control_socket]
        argv += ["--donor-id", settings.donor_id, "--machine", settings.machine]
        child = processes.start_detached(argv, log_path=settings.log_path)
        _prefer_as_victim(child.pid)

        def answers_or_ended() -> bool:
            return child.poll() is not None or _answers(settings.control_socket, child.pid)

        try:
            processes.wait_until(answers_or_ended, timeout_s=_START_TIMEOUT_S, what="start of ghostbox-memserver")
        except GhostboxError:
            child.kill()
            child.wait()
            raise
        if child.returncode is not None:
            raise _start_failure(settings, child.returncode, log_start)
        _log.info("data plane started: pid %d, %s", child.pid, format_bytes(settings.size_bytes))
        return cls(settings, _record_of(child.pid, settings.control_socket), child.poll)

    @classmethod
    def adopt(cls, settings: PlaneSettings, known: PlaneRecord | None) -> DataPlane | None:
        """Take over a data plane that an earlier control plane left running; None if there is none.

        It is known by its record, wherever its control socket is, and makes that anew if it was removed.

        Raises:
            ProgramError: one is there and does not answer.
        """
        if known is not None and _lives(known):
            control_socket = Path(known.control_socket or settings.control_socket)
            _make_socket_anew(known.pid, control_socket)
            settings = replace(settings, control_socket=control_socket)
        control_socket = settings.control_socket
        _check_socket_path(control_socket)
        try:
            pid = int(processes.control_request(control_socket, "status", timeout_s=_ADOPT_TIMEOUT_S)["pid"])
        except ControlError as err:
            nobody = isinstance(err.__cause__, (FileNotFoundError, ConnectionRefusedError))
            if nobody and (known is None or not _lives(known)):
                return None
            raise _no_answer(control_socket, known, err) from err
        found = _record_of(pid, control_socket)
        if known is not None and (known.pid, known.start_ticks, known.boot_id) == (
            found.pid,
            found.start_ticks,
            found.boot_id,
        ):
            found = replace(known, control_socket=found.control_socket)
        plane = cls(settings, found, lambda: None)
        _prefer_as_victim(pid)
        _log.info("data plane adopted: pid %d", pid)
        return plane

    def close(self) -> None:
        """Give the pidfd back; the process goes on."""
        os.close(self.pidfd)

    def exit_status(self) -> int | None:
        """Return the exit status of an ended data plane, or None if it was not our child (it was adopted)."""
        return self._reap()

    def alive(self) -> bool:
        """Tell whether the process still runs."""
        return self.exit_status() is None and processes.pid_alive(self.record.pid)

    def status(self) -> PlaneStatus:
        """Ask the data plane for its exports and sizes.

        Raises:
            ControlError: it is gone.
        """
        reply = self._request("status")
        exports = (_export(item) for item in reply["exports"])
        sizes = (reply["size_bytes"], reply["exported_bytes"], reply["resident_bytes"])
        also = tuple((each["host"], each["port"]) for each in reply.get("also", ()))
        named = {item.name: item for item in exports}
        return PlaneStatus(reply["pid"], reply["host"], reply["port"], *sizes, named, also)

    def listen(self, host: str, port: int) -> None:
        """Have it listen on one more address, which is named first from then on; connections stay.

        Raises:
            ControlError: ``unavailable``, or ``unknown-command`` of an older program.
        """
        self._request("listen", host=host, port=port, only=False)
        found = self.status()
        self.settings = replace(self.settings, bind=found.host, port=found.port)

    def add_export(self, name: str, size_bytes: int) -> Export:
        """Make an export of zeroes.

        Raises:
            ControlError: ``exists``, ``too-small``, ``invalid`` or ``gone``.
        """
        return _export(self._request("export-add", name=name, size_bytes=size_bytes))

    def remove_export(self, name: str, *, force: bool) -> None:
        """Remove an export and give its memory back to the operating system.

        Raises:
            ControlError: ``not-found``, ``busy`` (connections and not ``force``) or ``gone``.
        """
        self._request("export-remove", name=name, force=force)

    def stop(self) -> None:
        """End the process; its memory is given back. A process that is gone is no error."""
        try:
            self._request("shutdown")
        except ControlError as err:
            _log.debug("shutdown: %s", err)
        try:
            processes.wait_until(lambda: not self.alive(), timeout_s=_STOP_TIMEOUT_S, what="end of the data plane")
        except GhostboxError as err:
            _log.warning("%s: it is killed", err)
            processes.terminate(self.record.pid)
        self._control_socket.unlink(missing_ok=True)  # left behind if it was killed

    def _request(self, cmd: str, **args: Any) -> Any:
        """Send a command. A socket that was removed (a cleaner, the end of a login) is made anew, once."""
        try:
            return processes.control_request(self._control_socket, cmd, timeout_s=_REQUEST_TIMEOUT_S, **args)
        except ControlError as err:
            if not isinstance(err.__cause__, FileNotFoundError) or not self._made_anew():
                raise
        return processes.control_request(self._control_socket, cmd, timeout_s=_REQUEST_TIMEOUT_S, **args)

    def _made_anew(self) -> bool:
        if not self.alive():
            return False
        try:
            _make_socket_anew(self.record.pid, self._control_socket)
        except GhostboxError as err:
            _log.error("%s%s", err.message, f": {err.why}" if err.why else "")
            return False
        return True


def _export(reply: dict[str, Any]) -> Export:
    return Export(**{key: reply[key] for key in Export.__dataclass_fields__})


def _answers(control_socket: Path, pid: int) -> bool:
    try:
        reply = processes.control_request(control_socket, "status", timeout_s=1.0)
    except ControlError:
        return False
    return bool(reply["pid"] == pid)


def _record_of(pid: int, control_socket: Path) -> PlaneRecord:
    return PlaneRecord(
        pid, process_table.start_ticks(pid), process_table.boot_id(), str(uuid.uuid4()), str(control_socket)
    )


def _lives(known: PlaneRecord) -> bool:
    same = known.boot_id == process_table.boot_id() and known.start_ticks == process_table.start_ticks(known.pid)
    return same and processes.pid_alive(known.pid)


def _make_directory(control_socket: Path) -> None:
    try:
        make_directory(control_socket.parent, 0o700)
    except OSError as err:
        raise GhostboxError(
            f"cannot make {control_socket.parent}: {err.strerror}", hint=hint_for(err, "set GHOSTBOX_RUNTIME_DIR")
        ) from err


def _make_socket_anew(pid: int, control_socket: Path) -> None:
    """Have a data plane that lives make its control socket anew, if that is gone.

    Raises:
        GhostboxError: the directory cannot be made, or the data plane is of a version that cannot do it.
    """
    if control_socket.exists():
        return
    _make_directory(control_socket)
    if process_table.takes_signal(pid, RESTORE):
        process_table.send(pid, RESTORE, lambda: True)
        with suppress(DeadlineExceeded):
            processes.wait_until(
                lambda: _answers(control_socket, pid), timeout_s=_RESTORE_TIMEOUT_S, what="the control socket"
            )
            _log.warning(
                "the control socket %s was gone: the data plane (pid %d) has made it anew", control_socket, pid
            )
            return
    raise ProgramError(
        f"the control socket {control_socket} is gone, and the data plane (pid {pid}) does not make it anew",
        why="it is of an earlier version; the hosts are served as before, but no lease can be made or ended",
        hint="move its leases away on the hosts (ghostbox donor drain), then start it again",
    )


def _no_answer(control_socket: Path, known: PlaneRecord | None, err: ControlError) -> ProgramError:
    hint = "see what it does: ps -C ghostbox-memserver"
    if known is not None:
        hint = f"see what it does: kill -CONT {known.pid} if it is stopped; the memory that it lent lives in it"
    return ProgramError(
        f"a ghostbox-memserver is running but does not answer on {control_socket}", why=err.message, hint=hint
    )


def _check_socket_path(path: Path) -> None:
    if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
        raise Refused(
            f"the path of the control socket is longer than {_MAX_SOCKET_PATH} bytes: {path}",
            hint="choose a shorter --name or set GHOSTBOX_RUNTIME_DIR to a shorter path",
        )


def _start_failure(settings: PlaneSettings, returncode: int, log_start: int) -> ProgramError:
    with settings.log_path.open("rb") as log:
        log.seek(log_start)
        lines = log.read().decode(errors="replace").strip().splitlines()
    why = "\n".join(lines[-3:])
    hint = f"another --port, if this one is taken; the log is {settings.log_path}"
    if os.strerror(errno.EACCES) in why and 0 < settings.port < PRIVILEGED_PORTS:
        hint = f"ports below {PRIVILEGED_PORTS} are root's: choose another --port, or run as root"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return ProgramError(
        f"{settings.program.name} did not start on {settings.bind} port {settings.port}: status {returncode}",
        why=why or None,
        hint=hint_for(full, hint) if os.strerror(errno.ENOSPC) in why else hint,
    )


def _prefer_as_victim(pid: int) -> None:
    """Set the OOM score; a process may always raise that of its own user's processes (proc(5))."""
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    except OSError as err:
        _log.warning("cannot set oom_score_adj of the data plane: %s", err)
