# SPDX-License-Identifier: MIT
"""Open the doors of a memserver's API: the control port, and the owner's Unix socket.

The owner's socket is in the runtime directory, which the cleaning of temporary files or the end of a login may remove.
It is made anew then, so that the owner of a secure donor, who has no other door, is never locked out. The modes of file
and directory keep other users out; if somebody has opened those, the kernel still tells which user connects.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
from asyncio.trsock import TransportSocket
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from ghostbox.donors.models import ErrorBody, ErrorDetail
from ghostbox.errors import GhostboxError, hint_for
from ghostbox.memserver.access import AllRights
from ghostbox.memserver.http_server import HttpLimits, HttpServer
from ghostbox.memserver.refusal import STATUS_OF_CODE
from ghostbox.paths import make_directory

_log = logging.getLogger(__name__)
_OWNER_LIMITS = HttpLimits(max_connections=16)
_LOOK_EVERY_S = 1.0
_UCRED = struct.Struct("3i")  # pid, uid, gid


@contextlib.asynccontextmanager
async def owners_door(app: ASGIApp, path: Path) -> AsyncIterator[None]:
    """Serve ``app`` on the owner's socket, with all rights, until the end of the block.

    Raises:
        GhostboxError: the socket cannot be made.
    """
    door = _Door(app, path)
    await door.open()
    keeping = asyncio.create_task(door.keep())
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await door.close()
        path.unlink(missing_ok=True)


class _Door:
    """Is the owner's socket, and the server behind it."""

    def __init__(self, app: ASGIApp, path: Path) -> None:
        self._app: ASGIApp = AllRights(app)
        self._path = path
        self._server: HttpServer | None = None
        self._serving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        listener = _listen(self._path)
        accepts = asyncio.Event()
        self._server = HttpServer(self._app, accepts.set, _OWNER_LIMITS, choose=self._app_for)
        self._serving = asyncio.create_task(self._server.serve([listener]))
        accepting = asyncio.create_task(accepts.wait())
        await asyncio.wait([self._serving, accepting], return_when=asyncio.FIRST_COMPLETED)
        if not accepts.is_set():
            accepting.cancel()
            raise GhostboxError(f"the server at {self._path} ended by itself")

    def _app_for(self, connection: TransportSocket) -> ASGIApp:
        """Return what serves a connection, by the user that has made it."""
        uid = _peer_uid(connection)
        return self._app if uid in (0, os.geteuid()) else _refusal_of(uid)

    async def keep(self) -> None:
        """Make the socket anew whenever it was removed."""
        failed = False
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if self._path.exists():
                continue
            try:
                await self.close()
                await self.open()
                _log.warning("the owner's socket %s was gone: it was made anew", self._path)
                failed = False
            except GhostboxError as err:
                if not failed:
                    _log.error("%s", err)
                failed = True

    async def close(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.wait([self._serving])
        self._server = self._serving = None


def _peer_uid(connection: TransportSocket) -> int:
    """Return the user of the process that connected to a Unix socket, which the kernel tells (unix(7))."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    assert isinstance(credentials, bytes)
    _, uid, _ = _UCRED.unpack(credentials)
    return int(uid)


def _refusal_of(uid: int) -> ASGIApp:
    """Return an application that refuses whatever another user asks for."""
    _log.warning("a process of user %d was refused at the owner's socket", uid)
    error = ErrorDetail(
        code="owner-only",
        message="the owner's socket of this memserver answers its own user and root alone",
        hint="run the command as the user that the memserver runs as, or as root (sudo)",
    )
    return JSONResponse(ErrorBody(error=error).model_dump(), status_code=STATUS_OF_CODE["owner-only"])


def _listen(path: Path) -> socket.socket:
    """Return a socket at ``path``, which only this user may connect to."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        make_directory(path.parent, 0o700)
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)  # nobody can connect before listen(2), which the server calls
    except OSError as err:
        listener.close()
        hint = hint_for(err, "set GHOSTBOX_RUNTIME_DIR to a directory that can be written")
        raise GhostboxError(f"cannot make the owner's socket {path}: {err.strerror}", hint=hint) from err
    return listener
