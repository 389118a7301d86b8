# SPDX-License-Identifier: MIT
"""The HTTP server answers while a data plane starts slowly, whatever waits for the lease book meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fastapi import FastAPI

from ghostbox.donors.models import Holder
from ghostbox.memserver import service
from ghostbox.memserver.audit import AuditLog
from ghostbox.memserver.data_plane import DataPlane, PlaneSettings
from ghostbox.memserver.ending import Ending, Signals
from ghostbox.memserver.http_server import HttpServer, limits
from ghostbox.memserver.leases import LeaseBook
from ghostbox.memserver.pressure import PressureLimit
from ghostbox.memserver.records import LeaseRecord, PlaneRecord, Records
from ghostbox.system import process_table
from helpers.fake_control import fake_control

STATUS = {"pid": 1, "host": "127.0.0.1", "port": 7, "size_bytes": 8192, "exported_bytes": 0, "resident_bytes": 0}
EXPORT = {"name": "one", "size_bytes": 4096, "resident_bytes": 0, "incarnation": "b", "connections": 0, "idle_s": 0}
LEASE = LeaseRecord("one", 4096, Holder("h", "v"), "2026-01-01T00:00:00Z", "a")
ANSWER_S = 20.0
"""The longest time for an answer; a blocked event loop gives none."""


@pytest.fixture
def planes() -> Iterator[Callable[[], DataPlane]]:
    """Yield what starts data planes: another program answers on their control socket."""
    with tempfile.TemporaryDirectory(prefix="gb-") as place, contextlib.ExitStack() as stack:
        control = Path(place) / "control.sock"
        settings = PlaneSettings(Path("/none"), control, Path(place) / "log", "127.0.0.1", 0, 8192, "id", "machine")
        own = PlaneRecord(os.getpid(), process_table.start_ticks(os.getpid()), process_table.boot_id(), "i")
        stack.enter_context(fake_control(control, {"status": {**STATUS, "exports": []}, "export-add": EXPORT}))

        yield lambda: DataPlane(settings, own, lambda: None)


@dataclass
class SlowStart:
    """Is the start of a data plane, which takes until `may_end`; a request is sent once `under_way` is set."""

    book: LeaseBook
    planes: Callable[[], DataPlane]
    place: Path
    under_way: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)

    def replace(self) -> None:
        """Replace the data plane, slowly."""
        self.book.replace_plane(self._start)

    def _start(self) -> DataPlane:
        self.under_way.set()
        assert self.may_end.wait(2 * ANSWER_S)
        return self.planes()

    async def begin(self) -> None:
        """Begin, and hold the lease book's lock from then on."""
        self.done = asyncio.create_task(asyncio.to_thread(self.replace))
        await asyncio.to_thread(self.under_way.wait)


async def _begin_to_end(start: SlowStart, wait: Callable[[], None]) -> None:
    await start.begin()
    asyncio.get_running_loop().call_soon(wait)
    ending = Ending("a", start.book, Signals(), address="a:1", timeout_s=None, remind_every_s=60)
    await ending.wait(lambda condition, timeout_s: asyncio.Event().wait())


async def _give_leases_up(start: SlowStart, wait: Callable[[], None]) -> None:
    signals = Signals()

    async def confirm(condition: Callable[[], bool], timeout_s: float | None) -> bool:
        await start.begin()
        asyncio.get_running_loop().call_soon(wait)
        signals.confirmed = True
        return True

    await Ending("a", start.book, signals, address="a:1", timeout_s=None, remind_every_s=60).wait(confirm)


async def _follow_high_pressure(start: SlowStart, wait: Callable[[], None]) -> None:
    file = start.place / "pressure"
    file.write_text("some avg10=90.00 avg60=90.00 avg300=0.00 total=0\n")
    await start.begin()
    watching = asyncio.create_task(service._watch_pressure(start.book, PressureLimit(20.0, file)))
    while start.book.memory_pressure is None:
        await asyncio.sleep(0)
    wait()
    await watching


@pytest.mark.parametrize("work", [_begin_to_end, _give_leases_up, _follow_high_pressure])
def test_http_server_answers_while_a_data_plane_starts(
    tmp_path: Path,
    planes: Callable[[], DataPlane],
    work: Callable[[SlowStart, Callable[[], None]], Coroutine[None, None, None]],
) -> None:
    log, records = AuditLog(tmp_path / "audit.jsonl"), Records(leases={"one": LEASE})
    start = SlowStart(LeaseBook(planes(), tmp_path / "leases.json", records, lambda: None, log), planes, tmp_path)
    waits = threading.Event()

    def ask(port: int) -> int:
        try:
            assert waits.wait(ANSWER_S), "the event loop stands still"
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S)) as connection:
                connection.request("GET", "/openapi.json")
                return connection.getresponse().status
        finally:
            start.may_end.set()

    async def run(listener: socket.socket) -> int:
        accepting = asyncio.Event()
        server = HttpServer(FastAPI(), accepting.set, limits())
        serving = asyncio.create_task(server.serve([listener]))
        await accepting.wait()
        working = asyncio.create_task(work(start, waits.set))
        try:
            status = await asyncio.to_thread(ask, listener.getsockname()[1])
            await start.done
            return status
        finally:
            working.cancel()
            server.should_exit = True
            await asyncio.wait([serving, working])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        try:
            assert asyncio.run(run(listener)) == 200
        finally:
            start.book.plane.close()
