# SPDX-License-Identifier: MIT
"""Start or adopt a ``ghostbox-memserver`` process, watch it, and drive it through its control socket.

The process runs in a session of its own and has no pipe to this process, so it survives the end of this process.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import signal
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ghostbox.errors import DeadlineExceeded, GhostboxError, ProgramError, Refused, hint_for
from ghostbox.memserver import model
from ghostbox.memserver.model import PROGRAM, Export, PlaneStatus
from ghostbox.memserver.records import PlaneRecord
from ghostbox.memserver.roles import Limits
from ghostbox.paths import make_directory
from ghostbox.system import process_table, processes
from ghostbox.system.pidfd import Process
from ghostbox.system.processes import ControlError
from ghostbox.units import format_bytes

_log = logging.getLogger(__name__)

OOM_SCORE_ADJ = 800
"""The OOM score adjustment that makes the kernel choose the data plane first when the donor runs out of memory. Its end
gives the owner the lent RAM back at once; the end of the control plane would free next to nothing, and the owner's
programs must not die for GhostBox. The value is not 1000: a program of the owner that is larger than the lent memory by
four fifths of all RAM is itself the cause, and the end of an almost empty memserver would not help. The control plane
keeps the score that it was started with, survives, and reports the loss."""

RESTORE = signal.SIGUSR1
"""The signal at which the C program makes its control socket anew; versions before 2026-11-29 end at it."""

PRIVILEGED_PORTS = 1024
"""Below this port only root may listen, unless net.ipv4.ip_unprivileged_port_start is lower (ip(7))."""

_CANNOT_LOCK = "RLIMIT_MEMLOCK"  # in the data plane's log

_START_TIMEOUT_S = 20.0
_RESTORE_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 30.0
_ADOPT_TIMEOUT_S = 5.0
_REQUEST_TIMEOUT_S = 30.0  # a forced removal first waits for the clients' requests and connections to end
_NAMED_BY = 2  # the last parts of the control socket's path: the memserver's name, and the socket's
_MAX_SOCKET_PATH = 107  # the size of sun_path less its final zero byte, unix(7)


@dataclass(frozen=True)
class PlaneSettings:
    """Holds how to start the C program. ``port`` 0 lets the kernel choose a port; ``tls``: it answers nothing else."""

    program: Path
    control_socket: Path
    log_path: Path
    bind: str
    port: int
    size_bytes: int
    donor_id: str
    machine: str
    lock_memory: bool = False
    tls: bool = False


class DataPlane:
    """Drives a running data plane; ``start`` and ``adopt`` make one.

    ``pidfd`` becomes readable when the process has ended, also if its parent is another process. ``settings`` are those
    that the process runs with, so that it can be started again in the same way.
    """

    def __init__(self, settings: PlaneSettings, record: PlaneRecord, reap: Callable[[], int | None]) -> None:
        self.record = record
        self._process = Process(record.pid)
        self.pidfd = self._process.descriptor
        self._control_socket = settings.control_socket
        self._reap = reap
        found = self.status()
        self.settings = replace(settings, bind=found.host, port=found.port, size_bytes=found.size_bytes)

    @classmethod
    def start(cls, settings: PlaneSettings) -> DataPlane:
        """Start the program and wait until it serves.

        Raises:
            ProgramError: the program cannot be run, or ended at once; ``why`` has the end of its log.
            Refused: the path of the control socket is too long.
            DeadlineExceeded: the program did not answer in time.
        """
        _check_socket_path(settings.control_socket)
        _make_directory(settings.control_socket)
        log_start = settings.log_path.stat().st_size if settings.log_path.exists() else 0
        argv: list[str | Path] = [settings.program, "--bind", settings.bind, "--port", str(settings.port)]
        argv += ["--size", str(settings.size_bytes), "--control", settings.control_socket]
        argv += ["--donor-id", settings.donor_id, "--machine", settings.machine]
        argv += ["--lock-memory"] if settings.lock_memory else []
        argv += ["--tls", "require"] if settings.tls else []
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
        record = replace(_record_of(child.pid, settings.control_socket), tls=settings.tls)
        return cls(settings, record, child.poll)

    @classmethod
    def adopt(cls, settings: PlaneSettings, known: PlaneRecord | None) -> DataPlane | None:
        """Take over a data plane that an earlier control plane left running; return None if there is none.

        The process is found through its record, wherever its control socket is. If no record names it (the records were
        damaged, or the control plane was killed before it wrote them), it is found in the process table. A socket that
        was removed is made anew.

        Raises:
            ProgramError: a data plane runs and does not answer.
        """
        if known is None or not _is_alive(known):
            known = _unrecorded(settings)
        if known is not None:
            control_socket = Path(known.control_socket or settings.control_socket)
            _make_socket_anew(known.pid, control_socket)
            settings = replace(settings, control_socket=control_socket)
        control_socket = settings.control_socket
        _check_socket_path(control_socket)
        try:
            pid = model.status(control_socket, timeout_s=_ADOPT_TIMEOUT_S).pid
        except ControlError as err:
            if err.code != "gone":
                raise
            nobody = isinstance(err.__cause__, (FileNotFoundError, ConnectionRefusedError))
            if nobody and known is None:
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
        """Close the pidfd; the process runs on."""
        self._process.close()

    def exit_status(self) -> int | None:
        """Return the exit status of an ended data plane; None if it runs, or is no child (it was adopted)."""
        return self._reap()

    def alive(self) -> bool:
        """Tell whether the process still runs."""
        return self.exit_status() is None and not self._process.ended()

    def status(self) -> PlaneStatus:
        """Return the data plane's exports and sizes.

        Raises:
            ControlError: the data plane is gone, or its answer has an unknown form (``misfit``).
        """
        return PROGRAM.understood(PlaneStatus, self._request("status"), self._control_socket, "status")

    def listen(self, host: str, port: int) -> None:
        """Let the data plane listen on one more address, which it reports first from then on; connections stay.

        Raises:
            ControlError: ``unavailable``, or ``unknown-command`` of an older program.
        """
        self._request("listen", host=host, port=port, only=False)
        found = self.status()
        self.settings = replace(self.settings, bind=found.host, port=found.port)

    @property
    def tls(self) -> bool:
        """Tell whether it answers nothing without TLS; if no record says so, whether each of its leases has a key."""
        return self.status().tls if self.record.tls is None else self.record.tls

    def add_export(
        self, name: str, size_bytes: int, *, tls_psk: str | None = None, client: str | None = None
    ) -> Export:
        """Make an export that reads as zeroes.

        Args:
            name: of the export.
            size_bytes: its size.
            tls_psk: its key, hexadecimal, without which nobody opens it; None: it has none.
            client: the id of the client whose limits hold for it.

        Raises:
            ControlError: ``exists``, ``too-small``, ``invalid``, ``gone`` or ``misfit``.
        """
        more = {key: value for key, value in (("tls_psk", tls_psk), ("client", client)) if value is not None}
        answer = self._request("export-add", name=name, size_bytes=size_bytes, **more)
        return PROGRAM.understood(Export, answer, self._control_socket, "export-add")

    def remove_export(self, name: str, *, force: bool) -> None:
        """Remove an export and give its memory back to the operating system.

        Raises:
            ControlError: ``not-found``, ``busy`` (connections are open and not ``force``) or ``gone``.
        """
        self._request("export-remove", name=name, force=force)

    def shut_out(self, client: str) -> None:
        """End all connections of a client's exports, and let none of them come back, until `let_in`.

        Raises:
            ControlError: ``gone``, or ``unknown-command`` of an older program.
        """
        self._request("client-set", client=client, max_connections=0)
        try:
            self._request("client-close", client=client)
        except ControlError as err:
            if err.code != "not-found":
                raise

    def let_in(self, client: str, limits: Limits) -> None:
        """Set the limits of a client, at once for what is open as well; after `shut_out` it may come back.

        Without a limit and an export the data plane forgets the client.

        Raises:
            ControlError: ``gone``. An older program knows no limits, and has shut nobody out.
        """
        try:
            self._request(
                "client-set",
                client=client,
                max_resident_bytes=limits.memory_bytes,
                max_connections=limits.connections,
                max_bytes_per_s=limits.bytes_per_s,
            )
        except ControlError as err:
            if err.code != "unknown-command":
                raise
            if limits != Limits(leases=limits.leases):
                _log.error("client %s has limits, and the data plane is too old to keep it within them", client)

    def stop(self) -> None:
        """End the process, which frees its memory. A process that is gone already is no error."""
        try:
            self._request("shutdown")
        except ControlError as err:
            _log.debug("shutdown: %s", err)
        try:
            processes.wait_until(lambda: not self.alive(), timeout_s=_STOP_TIMEOUT_S, what="end of the data plane")
        except GhostboxError as err:
            _log.warning("%s: it is killed", err)
            self._process.end()
        self._control_socket.unlink(missing_ok=True)  # a killed process leaves its socket behind

    def _request(self, cmd: str, **args: Any) -> Any:
        """Send a command. A socket that was removed (temporary files were cleaned, a login ended) is made anew once."""
        try:
            return processes.control_request(self._control_socket, cmd, timeout_s=_REQUEST_TIMEOUT_S, **args)
        except ControlError as err:
            if not isinstance(err.__cause__, FileNotFoundError) or not self._try_new_socket():
                raise
        return processes.control_request(self._control_socket, cmd, timeout_s=_REQUEST_TIMEOUT_S, **args)

    def _try_new_socket(self) -> bool:
        if not self.alive():
            return False
        try:
            _make_socket_anew(self.record.pid, self._control_socket)
        except GhostboxError as err:
            _log.error("%s%s", err.message, f": {err.why}" if err.why else "")
            return False
        return True


def _answers(control_socket: Path, pid: int) -> bool:
    try:
        return model.status(control_socket, timeout_s=1.0).pid == pid
    except ControlError as err:
        if err.code != "gone":
            raise
        return False


def _record_of(pid: int, control_socket: Path) -> PlaneRecord:
    return PlaneRecord(
        pid, process_table.start_ticks(pid), process_table.boot_id(), str(uuid.uuid4()), str(control_socket)
    )


def running_id(program: Path, control_socket: Path) -> str | None:
    """Return the donor id of a data plane that runs with this control socket; None if none is seen."""
    for pid in processes.find(program.name, "--control", str(control_socket)):
        if process_table.is_own(pid):
            return _value(process_table.words(pid), "--donor-id") or None
    return None


def _unrecorded(settings: PlaneSettings) -> PlaneRecord | None:
    """Return a data plane of this memserver that runs and that no record names; None if none is seen.

    Its command line has the control socket of this memserver; or, in the runtime directory of another login, a socket
    of the same name, and this memserver's id.
    """
    for pid in processes.find(settings.program.name, "--control"):
        words = process_table.words(pid)
        control_socket = Path(_value(words, "--control"))
        ours = control_socket == settings.control_socket or (
            _value(words, "--donor-id") == settings.donor_id
            and control_socket.parts[-_NAMED_BY:] == settings.control_socket.parts[-_NAMED_BY:]
        )
        if ours and process_table.is_own(pid):
            _log.warning("the data plane (pid %d) runs, and no record names it", pid)
            return _record_of(pid, control_socket)
    return None


def _value(words: Sequence[str], option: str) -> str:
    """Return the value of an option in a command line; it is empty if the option is missing."""
    return next((value for name, value in itertools.pairwise(words) if name == option), "")


def _is_alive(known: PlaneRecord) -> bool:
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
    """Let a running data plane make its control socket anew, if the socket is gone.

    Raises:
        GhostboxError: the directory cannot be made, or the data plane's version cannot make the socket anew.
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
        hint="on the hosts, move its leases away (ghostbox donor drain); then start it again",
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
    if _CANNOT_LOCK in why:
        hint = f"raise the limit as it says, or leave --lock-memory out; the log is {settings.log_path}"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return ProgramError(
        f"{settings.program.name} did not start on {settings.bind} port {settings.port}: status {returncode}",
        why=why or None,
        hint=hint_for(full, hint) if os.strerror(errno.ENOSPC) in why else hint,
    )


def _prefer_as_victim(pid: int) -> None:
    """Set the OOM score; a process may always raise the score of its own user's processes (proc(5))."""
    try:
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE_ADJ))
    except OSError as err:
        _log.warning("cannot set oom_score_adj of the data plane: %s", err)
