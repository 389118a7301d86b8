# SPDX-License-Identifier: MIT
"""Serve the HTTP API of a donor, ``/v1``: a thin layer over the lease book, described at ``/openapi.json``.

Every error answer has the same form: ``{"error": {"code", "message", "hint"}}``. Who sends a request is known by the
layer around the application (`access`), through which each request comes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import ghostbox
from ghostbox.donors.models import (
    LEASE_NAME,
    DonorStatus,
    ErrorBody,
    ErrorDetail,
    Holder,
    HolderFields,
    LeaseFields,
    LeaseRequest,
)
from ghostbox.memserver import limits
from ghostbox.memserver.access import Caller, address_of, caller_of, owner_only, signs
from ghostbox.memserver.audit import AuditLog, Event
from ghostbox.memserver.body_limit import BodyLimit
from ghostbox.memserver.client_view import limit_fields
from ghostbox.memserver.clients import Client, ClientStore
from ghostbox.memserver.identity import Identity
from ghostbox.memserver.leases import DrainCause, Lease, LeaseBook
from ghostbox.memserver.owner_api import MakeText, add_clients, add_tokens
from ghostbox.memserver.pairing import add_pairing, add_version
from ghostbox.memserver.refusal import STATUS_OF_CODE, RequestRefused, errors
from ghostbox.memserver.request_api import add_requests
from ghostbox.memserver.requests import RequestStore
from ghostbox.memserver.role_api import add_client_limits, add_roles
from ghostbox.system.processes import ControlError

_log = logging.getLogger(__name__)

_HINT_OF_CODE = {
    "busy": "stop the VM that uses it, or force the release: its memory is lost then",
    "too-small": "ask for less, or add another donor",
    "unavailable": "the donor's data plane is being restarted; try again in a few seconds",
}
_REASON_CHARACTERS = 500  # of a refused request, in the audit log
_CODE_OF_HTTP = {404: "unknown-route", 405: "method-not-allowed"}
_OF_ALL_ROUTES = errors(400, 401, 403, 413, 500, 503)
"""The error answers that each route may have, most of them from the layers around the application."""

LeaseName = Annotated[str, Path(description="Name of the lease.", pattern=LEASE_NAME)]


class _Signature:
    """Is ASGI middleware that adds the donor's id to every answer, errors too, to a sender who is known."""

    def __init__(self, app: ASGIApp, donor_id: str) -> None:
        self._app = app
        self._header = (b"ghostbox-donor", donor_id.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def signed(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), self._header]
            await send(message)

        await self._app(scope, receive, signed if signs(scope) else send)


@dataclass(frozen=True)
class Trust:
    """Holds what a secure donor knows of its clients, and how it writes a token's line."""

    store: ClientStore
    make_text: MakeText
    requests: RequestStore


def make_app(identity: Identity, book: LeaseBook, audit: AuditLog, trust: Trust | None = None) -> FastAPI:
    """Return the application that serves ``book`` for the memserver ``identity``; one without ``trust`` is not secure.

    Requests must come through `access.Guard` or `access.AllRights`.
    """
    app = FastAPI(
        title="GhostBox donor",
        description="Lends this machine's RAM: one lease is one NBD export of the same name.",
        version=ghostbox.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # each answer that is no success is an error of the one form
        responses=_OF_ALL_ROUTES,
    )
    app.add_middleware(BodyLimit)
    app.add_middleware(_Signature, donor_id=identity.id)
    store = None if trust is None else trust.store
    add_version(app)
    _add_status(app, identity, book)
    _add_drain(app, identity, book)
    _add_lease_queries(app, book)
    _add_lease_changes(app, book)
    add_pairing(app, identity, book, store, audit)
    add_requests(app, identity, book, None if trust is None else trust.requests, audit)
    add_tokens(app, store, _no_text if trust is None else trust.make_text, audit)
    add_clients(app, store, book, audit)
    add_roles(app, store, book, audit)
    add_client_limits(app, store, book, audit)
    _add_error_forms(app, audit)
    return app


def _no_text(_token: object) -> str:
    raise AssertionError("a donor without a store makes no token")


def _add_status(app: FastAPI, identity: Identity, book: LeaseBook) -> None:
    @app.get("/v1/status", summary="Sizes and state of this donor", responses=errors(503))
    def status(request: Request) -> DonorStatus:
        return _status(identity, book, _client(request))


def _add_drain(app: FastAPI, identity: Identity, book: LeaseBook) -> None:
    @app.put(
        "/v1/drain",
        summary="Ask for the memory back: no new leases are made; hosts that see `draining` move their pages",
        responses=errors(403, 500, 503),
        dependencies=[Depends(owner_only)],
    )
    def drain(request: Request) -> DonorStatus:
        book.drain(DrainCause.ASKED, address=address_of(request))
        status = _status(identity, book)
        _log.warning("asked to drain: this donor gives no new leases, %d are held", status.leases)
        return status

    @app.delete(
        "/v1/drain",
        summary="Take back the drain that was asked for",
        responses=errors(403, 500, 503),
        dependencies=[Depends(owner_only)],
    )
    def keep(request: Request) -> DonorStatus:
        book.stop_draining(DrainCause.ASKED, address=address_of(request))
        status = _status(identity, book)
        _log.warning(
            "the drain was taken back%s",
            ", another reason to drain remains" if status.draining else ": leases are given again",
        )
        return status


def _status(identity: Identity, book: LeaseBook, client: Client | None = None) -> DonorStatus:
    now = book.status()
    free_bytes = now.plane.size_bytes - now.plane.exported_bytes
    standing = None if client is None else book.standings().get(client.id)
    if client is not None and standing is not None:
        free_bytes = limits.room_bytes(free_bytes, standing.limits, book.held(client.id))
    return DonorStatus(
        name=identity.name,
        id=identity.id,
        machine=identity.machine,
        version=ghostbox.__version__,
        incarnation=now.incarnation,
        nbd_port=now.plane.port,
        size_bytes=now.plane.size_bytes,
        exported_bytes=now.plane.exported_bytes,
        free_bytes=free_bytes,
        resident_bytes=now.plane.resident_bytes,
        leases=now.n_leases,
        draining=bool(now.drain_causes),
        drain_causes=list(now.drain_causes),
        memory_pressure=now.memory_pressure,
        role=None if standing is None else standing.role,
        limits=None if standing is None else limit_fields(standing.limits),
    )


def _add_lease_queries(app: FastAPI, book: LeaseBook) -> None:
    @app.get("/v1/leases", summary="All leases; a paired host's own", responses=errors(503))
    def list_leases(request: Request) -> list[LeaseFields]:
        return [_fields(lease) for lease in book.all(_client(request))]

    @app.get("/v1/leases/{name}", summary="One lease", responses=errors(404, 422, 503))
    def show_lease(name: LeaseName, request: Request) -> LeaseFields:
        return _fields(book.get(name, _client(request)), _caller(request))


def _add_lease_changes(app: FastAPI, book: LeaseBook) -> None:
    @app.post(
        "/v1/leases",
        status_code=201,
        summary="Make a lease: an export that reads as zeroes",
        responses=errors(409, 422, 503, 507),
    )
    def create_lease(wanted: LeaseRequest, request: Request) -> LeaseFields:
        holder = Holder(wanted.holder.host, wanted.holder.vm)
        client, address = _client(request), address_of(request)
        made = book.create(wanted.name, wanted.size_bytes, holder, address=address, client=client)
        return _fields(made, _caller(request))

    @app.delete(
        "/v1/leases/{name}",
        status_code=204,
        response_class=Response,
        response_model=None,
        summary="End a lease: the donor gets its memory back, the content is lost",
        responses=errors(404, 409, 422, 503),
    )
    def release_lease(
        name: LeaseName,
        request: Request,
        force: Annotated[bool, Query(description="Close connections that are open.")] = False,
    ) -> None:
        book.release(name, force=force, address=address_of(request), client=_client(request))


def _caller(request: Request) -> Caller:
    """Return who sends a request; the layer around the application lets no other in."""
    found = caller_of(request)
    assert found is not None, f"{request.url.path} is for those who are known"
    return found


def _client(request: Request) -> Client | None:
    """Return the paired host that sends a request; None: the owner."""
    return _caller(request).client


def _fields(lease: Lease, caller: Caller | None = None) -> LeaseFields:
    """Describe a lease; its key is told to its holder, if that is the ``caller``."""
    record, export = lease.record, lease.export
    is_holder = caller is not None and record.client == (caller.client and caller.client.id)
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
        tls_psk=record.tls_psk if is_holder else None,
    )


def _add_error_forms(app: FastAPI, audit: AuditLog) -> None:
    def note(request: Request, code: str, message: str) -> None:
        what = f"{request.method} {request.url.path}: {message}"
        audit.note(Event.REQUEST_REFUSED, address=address_of(request), code=code, reason=what[:_REASON_CHARACTERS])

    @app.exception_handler(RequestRefused)
    def refused(request: Request, err: RequestRefused) -> JSONResponse:
        if err.code == "internal" and caller_of(request) is None:  # the message names files
            return _error("internal", "the donor has a problem", "the donor's log has the reason")
        return _error(err.code, err.message, err.hint)

    @app.exception_handler(ControlError)
    def data_plane(request: Request, err: ControlError) -> JSONResponse:
        code = "unavailable" if err.code == "gone" else err.code
        message = "the data plane does not answer" if err.code == "gone" else err.message
        return _error(code, message, _HINT_OF_CODE.get(code))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, err: RequestValidationError) -> JSONResponse:
        message = "; ".join(_problem(item) for item in err.errors())
        note(request, "invalid", message)
        return _error("invalid", message, None)

    @app.exception_handler(HTTPException)
    def http(request: Request, err: HTTPException) -> JSONResponse:
        code = _CODE_OF_HTTP.get(err.status_code, "bad-request")
        message = f"{request.method} {request.url.path}: {err.detail}"
        note(request, code, str(err.detail))
        return _error(code, message, "the API is described at /openapi.json", status=err.status_code)

    @app.exception_handler(Exception)
    def unexpected(request: Request, err: Exception) -> JSONResponse:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=err)
        if caller_of(request) is None:
            return _error("internal", "the donor has a problem", "the donor's log has the reason")
        return _error("internal", f"{type(err).__name__}: {err}", "see the memserver's log; this is a bug")


def _problem(item: dict[str, Any]) -> str:
    """Return one validation problem: the place in the request, and what is wrong there."""
    where: Sequence[object] = item["loc"][1:]
    return ": ".join(filter(None, [".".join(str(part) for part in where), str(item["msg"])]))


def _error(code: str, message: str, hint: str | None, *, status: int | None = None) -> JSONResponse:
    body = ErrorBody(error=ErrorDetail(code=code, message=message, hint=hint))
    return JSONResponse(body.model_dump(), status_code=status or STATUS_OF_CODE.get(code, 500))
