# SPDX-License-Identifier: MIT
"""The HTTP API of a donor, ``/v1``: a thin layer over the lease book, described at ``/openapi.json``.

Every failure, whatever its cause, has the same form: ``{"error": {"code", "message", "hint"}}``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import ghostbox
from ghostbox.memserver.body_limit import BodyLimit
from ghostbox.memserver.identity import Identity
from ghostbox.memserver.leases import DrainCause, Lease, LeaseBook, LeaseRefused
from ghostbox.memserver.models import (
    LEASE_NAME,
    DonorStatus,
    ErrorBody,
    ErrorDetail,
    HolderFields,
    LeaseFields,
    LeaseRequest,
)
from ghostbox.memserver.records import Holder
from ghostbox.processes import ControlError

_log = logging.getLogger(__name__)

_STATUS_OF_CODE = {
    "not-found": 404,
    "exists": 409,
    "busy": 409,
    "invalid": 422,
    "internal": 500,
    "draining": 503,
    "unavailable": 503,
    "too-small": 507,
}
_HINT_OF_CODE = {
    "busy": "stop the VM that uses it, or force the release: its memory is lost then",
    "too-small": "ask for less, or add another donor",
    "unavailable": "the donor's data plane is being restarted; try again in a few seconds",
}
_CODE_OF_HTTP = {404: "unknown-route", 405: "method-not-allowed"}

LeaseName = Annotated[str, Path(description="Name of the lease.", pattern=LEASE_NAME)]


class _Signature:
    """ASGI middleware: every answer says by whom it was given, errors too."""

    def __init__(self, app: ASGIApp, donor_id: str) -> None:
        self._app = app
        self._header = (b"ghostbox-donor", donor_id.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), self._header]
            await send(message)

        await self._app(scope, receive, signed)


def make_app(who: Identity, book: LeaseBook) -> FastAPI:
    """Return the application that serves ``book`` for the memserver ``who``."""
    app = FastAPI(
        title="GhostBox donor",
        description="Lends this machine's RAM: one lease is one NBD export of the same name.",
        version=ghostbox.__version__,
        docs_url=None,
        redoc_url=None,
    )
    app.add_middleware(BodyLimit)
    app.add_middleware(_Signature, donor_id=who.id)
    _add_status(app, who, book)
    _add_drain(app, who, book)
    _add_lease_queries(app, book)
    _add_lease_changes(app, book)
    _add_error_forms(app)
    return app


def _errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error answers of a route, for its description."""
    codes = {
        status: [code for code, status_of in _STATUS_OF_CODE.items() if status_of == status] for status in statuses
    }
    return {status: {"model": ErrorBody, "description": f"Code {' or '.join(codes[status])}."} for status in statuses}


def _add_status(app: FastAPI, who: Identity, book: LeaseBook) -> None:
    @app.get("/v1/status", summary="Sizes and state of this donor", responses=_errors(503))
    def status() -> DonorStatus:
        return _status(who, book)


def _add_drain(app: FastAPI, who: Identity, book: LeaseBook) -> None:
    @app.put(
        "/v1/drain",
        summary="Ask for the memory back: no new leases; hosts that follow `draining` move their pages away",
        responses=_errors(500, 503),
    )
    def drain() -> DonorStatus:
        book.drain(DrainCause.ASKED)
        status = _status(who, book)
        _log.warning("asked to drain: no new leases are given, %d are held", status.leases)
        return status

    @app.delete("/v1/drain", summary="Take the drain that was asked for back", responses=_errors(500, 503))
    def keep() -> DonorStatus:
        book.stop_draining(DrainCause.ASKED)
        status = _status(who, book)
        _log.warning(
            "the drain was taken back%s", ", another goes on" if status.draining else ": leases are given again"
        )
        return status


def _status(who: Identity, book: LeaseBook) -> DonorStatus:
    now = book.status()
    return DonorStatus(
        name=who.name,
        id=who.id,
        machine=who.machine,
        version=ghostbox.__version__,
        incarnation=now.incarnation,
        nbd_port=now.plane.port,
        size_bytes=now.plane.size_bytes,
        exported_bytes=now.plane.exported_bytes,
        free_bytes=now.plane.size_bytes - now.plane.exported_bytes,
        resident_bytes=now.plane.resident_bytes,
        leases=now.n_leases,
        draining=bool(now.drain_causes),
        drain_causes=list(now.drain_causes),
        memory_pressure=now.memory_pressure,
    )


def _add_lease_queries(app: FastAPI, book: LeaseBook) -> None:
    @app.get("/v1/leases", summary="All leases", responses=_errors(503))
    def list_leases() -> list[LeaseFields]:
        return [_fields(lease) for lease in book.all()]

    @app.get("/v1/leases/{name}", summary="One lease", responses=_errors(404, 422, 503))
    def show_lease(name: LeaseName) -> LeaseFields:
        return _fields(book.get(name))


def _add_lease_changes(app: FastAPI, book: LeaseBook) -> None:
    @app.post(
        "/v1/leases",
        status_code=201,
        summary="Make a lease: an export that reads as zeroes",
        responses=_errors(409, 422, 503, 507),
    )
    def create_lease(wanted: LeaseRequest) -> LeaseFields:
        holder = Holder(wanted.holder.host, wanted.holder.vm)
        return _fields(book.create(wanted.name, wanted.size_bytes, holder))

    @app.delete(
        "/v1/leases/{name}",
        status_code=204,
        response_class=Response,
        summary="End a lease: its memory is given back to the donor, its content is gone",
        responses=_errors(404, 409, 422, 503),
    )
    def release_lease(
        name: LeaseName,
        force: Annotated[bool, Query(description="Close connections that are open.")] = False,
    ) -> None:
        book.release(name, force=force)


def _fields(lease: Lease) -> LeaseFields:
    record, export = lease.record, lease.export
    return LeaseFields(
        name=record.name,
        export=export.name,
        size_bytes=export.size_bytes,
        resident_bytes=export.resident_bytes,
        incarnation=export.incarnation,
        holder=HolderFields(host=record.holder.host, vm=record.holder.vm),
        created_at=datetime.fromisoformat(record.created_at),
        connections=export.connections,
        idle_s=export.idle_s,
    )


def _add_error_forms(app: FastAPI) -> None:
    @app.exception_handler(LeaseRefused)
    def refused(request: Request, err: LeaseRefused) -> JSONResponse:
        return _error(err.code, err.message, err.hint)

    @app.exception_handler(ControlError)
    def data_plane(request: Request, err: ControlError) -> JSONResponse:
        code = "unavailable" if err.code == "gone" else err.code
        message = "the data plane does not answer" if err.code == "gone" else err.message
        return _error(code, message, _HINT_OF_CODE.get(code))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, err: RequestValidationError) -> JSONResponse:
        return _error("invalid", "; ".join(_problem(item) for item in err.errors()), None)

    @app.exception_handler(HTTPException)
    def http(request: Request, err: HTTPException) -> JSONResponse:
        code = _CODE_OF_HTTP.get(err.status_code, "bad-request")
        message = f"{request.method} {request.url.path}: {err.detail}"
        return _error(code, message, "the API is described at /openapi.json", status=err.status_code)

    @app.exception_handler(Exception)
    def unexpected(request: Request, err: Exception) -> JSONResponse:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=err)
        return _error("internal", f"{type(err).__name__}: {err}", "see the memserver's log; this is a bug")


def _problem(item: dict[str, Any]) -> str:
    """Return one validation problem: where it is, and what is wrong there."""
    where: Sequence[object] = item["loc"][1:]
    return ": ".join(filter(None, [".".join(str(part) for part in where), str(item["msg"])]))


def _error(code: str, message: str, hint: str | None, *, status: int | None = None) -> JSONResponse:
    body = ErrorBody(error=ErrorDetail(code=code, message=message, hint=hint))
    return JSONResponse(body.model_dump(), status_code=status or _STATUS_OF_CODE.get(code, 500))
