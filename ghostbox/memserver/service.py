# SPDX-License-Identifier: MIT
"""Run a memserver, from its options to its end.

    checks → lock → control port → data plane (adopted or started) → leases reconciled → serving
    serving ──data plane died──► restarted, leases of a new incarnation ──► serving
    serving ──`memserver drain`, memory pressure──► no new leases, hosts move away ──taken back──► serving
    serving ──SIGTERM/SIGINT/SIGHUP──► draining ──last lease released──► ended (0); more in `ending`

All that blocks (the data plane's start, its control socket) runs in threads, never in the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from starlette.types import ASGIApp

from ghostbox import __version__
from ghostbox.discovery import announce
from ghostbox.discovery.record import Announced
from ghostbox.errors import ProgramError, Refused
from ghostbox.memserver import audit, audit_gaps, limit_hits, records
from ghostbox.memserver.access import AllRights, Guard
from ghostbox.memserver.app import make_app
from ghostbox.memserver.audit import AuditLog, Event
from ghostbox.memserver.clients import owner_of
from ghostbox.memserver.data_plane import DataPlane, PlaneSettings, running_id
from ghostbox.memserver.doors import owners_door
from ghostbox.memserver.ending import Ending, Signals
from ghostbox.memserver.http_server import HttpServer, limits
from ghostbox.memserver.identity import Identity, donor_id
from ghostbox.memserver.leases import DrainCause, LeaseBook
from ghostbox.memserver.lock import HeldLock, name_lock, owner_socket
from ghostbox.memserver.opening import TRUSTS, ServiceOptions, check_options, listen, listen_again, open_plane
from ghostbox.memserver.pressure import Pressure, PressureLimit, read_pressure
from ghostbox.memserver.role_store import RoleStore
from ghostbox.memserver.secure import CLIENTS, Secure, open_secure
from ghostbox.paths import Paths
from ghostbox.system.machine import machine_digest
from ghostbox.units import format_duration

_log = logging.getLogger(__name__)

_MAX_RESTARTS = 5
_RESTART_WINDOW_S = 60.0
_PRESSURE_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Ready:
    """Holds what the memserver reports once it serves. ``secure``: paired hosts alone are served, over TLS."""

    name: str
    control_address: str
    nbd_address: str
    size_bytes: int
    leases: int
    adopted: bool
    incarnation: str
    pid: int
    data_plane_pid: int
    secure: bool


@dataclass(frozen=True)
class Reports:
    """Holds what is called once the memserver serves.

    ``token``, if it is set, gets the line by which a first host is paired, while no host is; it is secret.
    """

    ready: Callable[[Ready], None]
    token: Callable[[str], None] | None = None


def run(options: ServiceOptions, paths: Paths, reports: Reports) -> None:
    """Run a memserver in the foreground until it is told to end.

    Raises:
        UsageError: an option is wrong.
        GhostboxError: certificate or clients of a secure donor cannot be used.
        Refused: the size is more than may be lent, or a memserver of that name runs.
        ProgramError: the data plane cannot be started, or dies again and again.
        DeadlineExceeded: ``drain_timeout_s`` passed with leases still held; their memory is gone.
        Interrupted: a signal confirmed the question, with leases still held; their memory is gone.
    """
    options = check_options(options)
    runtime, state = paths.memserver_runtime(options.name), paths.memserver_state(options.name)
    control_socket = runtime / "control.sock"
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(name_lock(options.name, state, runtime))
        listener = stack.enter_context(contextlib.closing(listen(options.bind, options.control_port)))
        number = donor_id(
            state,
            known=lambda: running_id(paths.memserver_program, control_socket) or owner_of(state / CLIENTS),
        )
        secure = None
        if options.secure:
            secure = open_secure(state, number, options.bind, trusts_network=options.trust_network)
            secure.port = listener.getsockname()[1]
            stack.enter_context(secure.store)
        settings = PlaneSettings(
            program=paths.memserver_program,
            control_socket=control_socket,
            log_path=state / "memserver.log",
            bind=options.bind,
            port=options.nbd_port,
            size_bytes=0,
            donor_id=number,
            machine=machine_digest(options.machine),
            lock_memory=options.lock_memory,
            tls=options.secure,
        )
        service = _Service(options, settings, listener, partial(_say_ready, held, reports, secure), secure)
        asyncio.run(service.run(state / "leases.json", AuditLog(audit.path(state))))


def _say_ready(held: HeldLock, reports: Reports, secure: Secure | None, ready: Ready) -> None:
    host, _, port = ready.control_address.rpartition(":")
    reached_at = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - compared with, not bound to
    held.write(f"{reached_at}:{port}")
    reports.ready(ready)
    if secure is None or secure.store.clients():
        return
    if reports.token is None:
        _log.warning("no host is paired with this donor so far: ghostbox token create")
    else:
        reports.token(secure.first_line())


class _Service:
    """Is the running memserver. Everything that may end a wait sets ``_wake``."""

    def __init__(
        self,
        options: ServiceOptions,
        settings: PlaneSettings,
        listener: socket.socket,
        on_ready: Callable[[Ready], None],
        secure: Secure | None,
    ) -> None:
        self._options = options
        self._settings = settings
        self._listener = listener
        self._on_ready = on_ready
        self._secure = secure
        self._wake = asyncio.Event()
        self._signals = Signals()
        self._tasks: list[asyncio.Task[None]] = []
        self._restarts: deque[float] = deque(maxlen=_MAX_RESTARTS)

    async def run(self, path: Path, log: AuditLog) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1)
                loop.add_signal_handler(number, self._signalled, number)
        kept = await asyncio.to_thread(records.load, path)
        plane, adopted = await asyncio.to_thread(open_plane, self._options, self._settings, kept.plane)

        def changed() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        standings = None if self._secure is None else RoleStore(self._secure.store).standings
        book = LeaseBook(plane, path, kept, changed, log, standings=standings)
        try:
            await asyncio.to_thread(book.reconcile)
            if self._secure is not None:
                await asyncio.to_thread(audit_gaps.fill_clients, log, self._secure.store)
            identity = Identity(self._options.name, self._settings.donor_id, self._settings.machine)
            app = make_app(identity, book, log, None if self._secure is None else self._secure.trust)
            async with owners_door(app, owner_socket(self._settings.control_socket.parent)):
                await self._serve(app, book, adopted, log)
        except BaseException:
            if not book.count() and book.plane.alive():
                await asyncio.to_thread(book.stop_plane)
            raise
        finally:
            book.plane.close()

    async def _serve(self, app: ASGIApp, book: LeaseBook, adopted: bool, log: AuditLog) -> None:
        accepting = asyncio.Event()

        def accepts() -> None:
            accepting.set()
            self._wake.set()

        server = self._server(app, accepts, log)
        listeners = [self._listener, *self._listeners_of_before(book)]
        serving = self._task(server.serve(listeners))
        watching = [self._task(self._watch(book))]
        if self._options.pressure is not None:
            watching.append(self._task(_watch_pressure(book, self._options.pressure)))
        if self._secure is not None:
            watching.append(self._task(limit_hits.watch(book, log)))
        watching += [self._task(each) for each in self._announcement()]
        try:
            await self._wait_for(accepting.is_set)
            await asyncio.to_thread(book.note_control, [_address_of(each) for each in listeners])
            ready = await asyncio.to_thread(self._ready, book, adopted)
            trusts = f"; --trust-network: {TRUSTS}" if self._options.trust_network else ""
            log.note(Event.STARTED, size_bytes=ready.size_bytes, reason=f"listens on {ready.nbd_address}{trusts}")
            await asyncio.to_thread(self._on_ready, ready)
            await self._wait_for(lambda: self._signals.ending)
            failure = await self._ending(book, ready.control_address).wait(self._wait_for)
        finally:
            for task in watching:
                task.cancel()
            server.should_exit = True
            await asyncio.wait([serving, *watching])
        await asyncio.to_thread(book.stop_plane)
        log.note(Event.ENDED)
        if failure is not None:
            raise failure

    def _server(self, app: ASGIApp, on_ready: Callable[[], None], log: AuditLog) -> HttpServer:
        """Return the server of the control port."""

        def over_limit(address: str, reason: str) -> None:
            log.note(Event.LIMIT_HIT, address=address, reason=reason)

        def no_tls(address: str, reason: str) -> None:
            log.note(Event.REQUEST_REFUSED, address=address, code="no-tls", reason=reason)

        if self._secure is None:
            return HttpServer(AllRights(app), on_ready, limits(), over_limit)
        guarded = Guard(app, self._secure.store, log)
        return HttpServer(guarded, on_ready, limits(), over_limit, tls=self._secure.tls, on_no_tls=no_tls)

    def _announcement(self) -> list[Coroutine[None, None, None]]:
        """Return the work of announcing this donor on the network, if that is wanted and of use."""
        options = self._options
        if not (options.announce and announce.is_announced(options.bind)):
            return []
        fingerprint = "" if self._secure is None else self._secure.fingerprint.hex()
        said = Announced(options.name, self._settings.donor_id, __version__, fingerprint)
        return [announce.announce(said, options.bind, self._listener.getsockname()[1])]

    def _task(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(lambda done: self._wake.set())
        self._tasks.append(task)
        return task

    def _ready(self, book: LeaseBook, adopted: bool) -> Ready:
        status = book.status()
        control_port = self._listener.getsockname()[1]
        host = f"[{self._options.bind}]" if ":" in self._options.bind else self._options.bind
        return Ready(
            name=self._options.name,
            control_address=f"{host}:{control_port}",
            nbd_address=f"{host}:{status.plane.port}",
            size_bytes=status.plane.size_bytes,
            leases=status.n_leases,
            adopted=adopted,
            incarnation=status.incarnation,
            pid=os.getpid(),
            data_plane_pid=status.plane.pid,
            secure=self._options.secure,
        )

    def _listeners_of_before(self, book: LeaseBook) -> list[socket.socket]:
        """Return sockets at the control addresses that holders of leases know, as far as they can be bound."""
        own = _address_of(self._listener)
        wanted = [address for address in book.control() if address != own] if book.count() else []
        open_to_all = self._options.insecure or self._options.secure
        allowed = [each for each in wanted if open_to_all or ipaddress.ip_address(each[0]).is_loopback]
        return [found for host, port in allowed if (found := listen_again(host, port)) is not None]

    def _ending(self, book: LeaseBook, address: str) -> Ending:
        options = self._options
        return Ending(
            options.name,
            book,
            self._signals,
            address=address,
            timeout_s=options.drain_timeout_s,
            remind_every_s=options.remind_every_s,
        )

    def _signalled(self, number: int) -> None:
        self._signals.note(number)
        self._wake.set()

    async def _wait_for(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until ``condition`` holds; return False if it does not within ``timeout_s``.

        Raises:
            GhostboxError: one of the tasks failed meanwhile.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._wake.clear()
            for task in self._tasks:
                if task.done():
                    task.result()
                    raise ProgramError("the HTTP server of the memserver ended by itself")
            if condition():
                return True
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), left_s)

    async def _watch(self, book: LeaseBook) -> None:
        """Restart the data plane whenever it dies."""
        seen_pid = 0
        while True:
            await _readable(book.plane.pidfd)
            if book.plane.record.pid != seen_pid:
                seen_pid = book.plane.record.pid
                _log.error("the data plane (pid %d) died: %s", seen_pid, _how_it_ended(book.plane))
            self._count_restart()
            try:
                start_again = partial(DataPlane.start, book.plane.settings)
                n_lost = await asyncio.to_thread(book.replace_plane, start_again)
            except ProgramError as err:
                if book.plane.alive():
                    raise
                _log.error("the data plane could not be restarted: %s: %s", err, err.why)
                continue  # the dead process's pidfd is readable at once
            _log.warning("the data plane was restarted with empty memory; %d leases lost their content", n_lost)

    def _count_restart(self) -> None:
        """Count a restart.

        Raises:
            ProgramError: there were too many restarts lately.
        """
        if len(self._restarts) == _MAX_RESTARTS and time.monotonic() - self._restarts[0] < _RESTART_WINDOW_S:
            raise ProgramError(
                f"the data plane died {_MAX_RESTARTS + 1} times within {format_duration(_RESTART_WINDOW_S)}",
                hint=f"its log is {self._settings.log_path}",
            )
        self._restarts.append(time.monotonic())


def _address_of(listener: socket.socket) -> tuple[str, int]:
    """Return the address that a socket listens on; a link-local address has its interface."""
    host, port = socket.getnameinfo(listener.getsockname(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return host, int(port)


async def _watch_pressure(book: LeaseBook, limit: PressureLimit) -> None:
    """Drain while the machine is short of memory."""
    draining = False
    while True:
        try:
            now = await asyncio.to_thread(read_pressure, limit.path)
        except Refused as err:  # the control group was removed: the drain stays as it is
            if book.memory_pressure is not None:
                _log.warning("%s", err)
            book.memory_pressure = None
        else:
            book.memory_pressure = now.avg10
            draining = await asyncio.to_thread(_follow_pressure, book, limit, now, draining=draining)
        await asyncio.sleep(_PRESSURE_INTERVAL_S)


def _follow_pressure(book: LeaseBook, limit: PressureLimit, now: Pressure, *, draining: bool) -> bool:
    """Begin or end the drain by the pressure; return whether it is on."""
    crossed = limit.crossed(now, draining=draining)
    if crossed and not draining:
        _log.warning(
            "memory pressure: tasks waited for memory in %.1f %% of the last 10 s (limit %.1f %%): draining,"
            " no new leases are given",
            now.avg10,
            limit.percent,
        )
        book.drain(DrainCause.PRESSURE)
    elif draining and not crossed:
        _log.warning("memory pressure is gone (%.1f %% of the last 10 s): the drain for it ends", now.avg10)
        book.stop_draining(DrainCause.PRESSURE)
    return crossed


async def _readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def _how_it_ended(plane: DataPlane) -> str:
    status = plane.exit_status()
    if status is None:
        return "its exit status is unknown, it was adopted"
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
