# SPDX-License-Identifier: MIT
"""One running memserver: from its options to its end.

    checks → lock → control port → data plane (adopted or started) → leases reconciled → serving
    serving ──data plane died──► restarted, leases of a new incarnation ──► serving
    serving ──`memserver drain`, memory pressure──► no new leases, hosts move away ──taken back──► serving
    serving ──SIGTERM/SIGINT/SIGHUP──► draining ──last lease released──► ended (0); more in `ending`

Everything that blocks (the data plane's start, its control socket) runs in threads; the loop only waits.
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

from ghostbox.errors import ProgramError, Refused
from ghostbox.memserver import records
from ghostbox.memserver.app import make_app
from ghostbox.memserver.data_plane import DataPlane, PlaneSettings
from ghostbox.memserver.ending import Ending, Signals
from ghostbox.memserver.http_server import HttpServer, limits
from ghostbox.memserver.identity import Identity, donor_id, machine_digest
from ghostbox.memserver.leases import DrainCause, LeaseBook
from ghostbox.memserver.lock import HeldLock, name_lock
from ghostbox.memserver.opening import ServiceOptions, check_options, listen, listen_again, open_plane
from ghostbox.memserver.pressure import Pressure, PressureLimit, read_pressure
from ghostbox.paths import Paths
from ghostbox.units import format_duration

_log = logging.getLogger(__name__)

_MAX_RESTARTS = 5
_RESTART_WINDOW_S = 60.0
_PRESSURE_INTERVAL_S = 1.0


@dataclass(frozen=True)
class Ready:
    """What is said once the memserver serves."""

    name: str
    control_address: str
    nbd_address: str
    size_bytes: int
    leases: int
    adopted: bool
    incarnation: str
    pid: int
    data_plane_pid: int


def run(options: ServiceOptions, paths: Paths, on_ready: Callable[[Ready], None]) -> None:
    """Run a memserver in the foreground until it is told to end.

    Raises:
        UsageError: an option is wrong.
        Refused: more than may be lent, another memserver of that name, an address that needs ``insecure``.
        ProgramError: the data plane cannot be started, or dies again and again.
        DeadlineExceeded: ``drain_timeout_s`` passed with leases still held; their memory is gone.
        Interrupted: signals came again after the question, with leases still held; their memory is gone.
    """
    options = check_options(options)
    runtime, state = paths.memserver_runtime(options.name), paths.memserver_state(options.name)
    with (
        name_lock(options.name, state, runtime) as held,
        contextlib.closing(listen(options.bind, options.control_port)) as listener,
    ):
        settings = PlaneSettings(
            program=paths.memserver_program,
            control_socket=runtime / "control.sock",
            log_path=state / "memserver.log",
            bind=options.bind,
            port=options.nbd_port,
            size_bytes=0,
            donor_id=donor_id(state),
            machine=machine_digest(options.machine),
        )
        service = _Service(options, settings, listener, partial(_say_ready, held, on_ready))
        asyncio.run(service.run(state / "leases.json"))


def _say_ready(held: HeldLock, on_ready: Callable[[Ready], None], ready: Ready) -> None:
    host, _, port = ready.control_address.rpartition(":")
    reached_at = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)
    held.write(f"{reached_at}:{port}")
    on_ready(ready)


class _Service:
    """The running memserver. ``_wake`` is set by everything that may end a wait."""

    def __init__(
        self,
        options: ServiceOptions,
        settings: PlaneSettings,
        listener: socket.socket,
        on_ready: Callable[[Ready], None],
    ) -> None:
        self._options = options
        self._settings = settings
        self._listener = listener
        self._on_ready = on_ready
        self._wake = asyncio.Event()
        self._signals = Signals()
        self._tasks: list[asyncio.Task[None]] = []
        self._restarts: deque[float] = deque(maxlen=_MAX_RESTARTS)

    async def run(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup(1)
                loop.add_signal_handler(number, self._signalled, number)
        kept = await asyncio.to_thread(records.load, path)
        plane, adopted = await asyncio.to_thread(open_plane, self._options, self._settings, kept.plane)

        def changed() -> None:
            loop.call_soon_threadsafe(self._wake.set)

        book = LeaseBook(plane, path, kept, changed)
        try:
            await asyncio.to_thread(book.reconcile)
            await self._serve(book, adopted)
        except BaseException:
            if not book.count() and book.plane.alive():
                await asyncio.to_thread(book.stop_plane)
            raise
        finally:
            book.plane.close()

    async def _serve(self, book: LeaseBook, adopted: bool) -> None:
        accepting = asyncio.Event()

        def accepts() -> None:
            accepting.set()
            self._wake.set()

        who = Identity(self._options.name, self._settings.donor_id, self._settings.machine)
        server = HttpServer(make_app(who, book), accepts, limits())
        listeners = [self._listener, *self._listeners_of_before(book)]
        serving = self._task(server.serve(listeners))
        watching = [self._task(self._watch(book))]
        if self._options.pressure is not None:
            watching.append(self._task(_watch_pressure(book, self._options.pressure)))
        try:
            await self._wait_for(accepting.is_set)
            await asyncio.to_thread(book.note_control, [_address_of(each) for each in listeners])
            ready = await asyncio.to_thread(self._ready, book, adopted)
            self._on_ready(ready)
            await self._wait_for(lambda: self._signals.ending)
            failure = await self._ending(book, ready.control_address).wait(self._wait_for)
        finally:
            for task in watching:
                task.cancel()
            server.should_exit = True
            await asyncio.wait([serving, *watching])
        await asyncio.to_thread(book.stop_plane)
        if failure is not None:
            raise failure

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
        )

    def _listeners_of_before(self, book: LeaseBook) -> list[socket.socket]:
        """Return sockets at the control addresses that those who hold leases know, as far as they can be had."""
        own = _address_of(self._listener)
        wanted = [address for address in book.control() if address != own] if book.count() else []
        allowed = [each for each in wanted if self._options.insecure or ipaddress.ip_address(each[0]).is_loopback]
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
        """Wait until ``condition`` holds; False if it did not within ``timeout_s``.

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
                continue  # the pidfd of a dead one says so at once
            _log.warning("the data plane was restarted with empty memory; %d leases lost their content", n_lost)

    def _count_restart(self) -> None:
        """Note a restart.

        Raises:
            ProgramError: there were too many of late.
        """
        if len(self._restarts) == _MAX_RESTARTS and time.monotonic() - self._restarts[0] < _RESTART_WINDOW_S:
            raise ProgramError(
                f"the data plane died {_MAX_RESTARTS + 1} times within {format_duration(_RESTART_WINDOW_S)}",
                hint=f"its log is {self._settings.log_path}",
            )
        self._restarts.append(time.monotonic())


def _address_of(listener: socket.socket) -> tuple[str, int]:
    """Return where a socket listens, a link-local address with its interface."""
    host, port = socket.getnameinfo(listener.getsockname(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
    return host, int(port)


async def _watch_pressure(book: LeaseBook, limit: PressureLimit) -> None:
    """Drain while the machine is short of memory."""
    draining = False
    while True:
        try:
            now = await asyncio.to_thread(read_pressure, limit.path)
        except Refused as err:  # a control group that was removed: nothing is known, so nothing changes
            if book.memory_pressure is not None:
                _log.warning("%s", err)
            book.memory_pressure = None
        else:
            book.memory_pressure = now.avg10
            draining = _follow_pressure(book, limit, now, draining=draining)
        await asyncio.sleep(_PRESSURE_INTERVAL_S)


def _follow_pressure(book: LeaseBook, limit: PressureLimit, now: Pressure, *, draining: bool) -> bool:
    """Begin or end the drain as the pressure says; returns whether it is on."""
    crossed = limit.crossed(now, draining=draining)
    if crossed and not draining:
        _log.warning(
            "memory pressure: something waited for memory in %.1f %% of the last 10 s (limit %.1f %%): draining,"
            " no new leases are given",
            now.avg10,
            limit.percent,
        )
        book.drain(DrainCause.PRESSURE)
    elif draining and not crossed:
        _log.warning("memory pressure is gone (%.1f %% of the last 10 s): no more reason to drain", now.avg10)
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
