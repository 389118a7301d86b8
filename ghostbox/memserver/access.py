# SPDX-License-Identifier: MIT
"""Let only paired hosts and the donor's owner reach the API of a secure donor.

A layer around the application looks at each request before anything else does. Who shows no good credential learns the
version and may ask to be paired; all else has one and the same answer, whether there is such a route or not. What may
be done by whom then is the application's part, which asks for the request's `Caller`.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ghostbox.memserver.audit import AuditLog, Event
from ghostbox.memserver.clients import Client, ClientStore, State
from ghostbox.memserver.http_server import peer_text
from ghostbox.memserver.refusal import RequestRefused

OWNER_ADDRESS = "owner"
"""The address of requests that come over the owner's socket, in the audit log."""
OPEN = frozenset(
    {
        ("GET", "/v1/version"),
        ("POST", "/v1/pairings"),
        ("POST", "/v1/pairing-requests"),
        ("PUT", "/v1/pairing-requests/self"),
        ("GET", "/v1/pairing-requests/self"),
        ("DELETE", "/v1/pairing-requests/self"),
    }
)
"""Method and path of what a host reaches that is not paired: the version and pairing."""
_CREDENTIAL = re.compile(r"Bearer ([0-9a-f]{16})\.([0-9a-f]{64})")
_KEY = "ghostbox.caller"
_PAIR = (
    "pair this host: here, ghostbox donor add with the donor's name or address, which its owner approves; or on the"
    " donor, ghostbox token create, and here, ghostbox donor add with what that prints"
)
_REFUSALS = {
    "not-paired": (401, "this host is not paired with this donor", _PAIR),
    State.REVOKED: (403, "the donor's owner has revoked the pairing of this host", _PAIR),
    State.SUSPENDED: (
        403,
        "the donor's owner has suspended this host",
        "ask the owner: on the donor, ghostbox memserver resume",
    ),
    "unavailable": (503, "the donor cannot look up its clients now", "try again later; the donor's log has the reason"),
}


@dataclass(frozen=True)
class Caller:
    """Is who sends a request: a paired host, or with ``client`` None the donor's owner, who may do all."""

    client: Client | None = None


OWNER = Caller()


def caller_of(request: Request) -> Caller | None:
    """Return who sends a request; None for one that is not paired."""
    found = request.scope.get(_KEY)
    assert found is None or isinstance(found, Caller)
    return found


def signs(scope: Scope) -> bool:
    """Tell whether an answer may say which donor this is: whether the request's sender is known."""
    return scope.get(_KEY) is not None


def shown_in(scope: Scope) -> tuple[str, str] | None:
    """Return the id and the secret that a request shows (both hexadecimal); None if it shows none, or several."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    match = _CREDENTIAL.fullmatch(given[0].decode("latin-1")) if len(given) == 1 else None
    return None if match is None else (match[1], match[2])


def address_of(request: Request) -> str | None:
    """Return the address that a request comes from, or `OWNER_ADDRESS`."""
    return _address(request.scope)


class AllRights:
    """Is ASGI middleware for a door that only the owner has, or that is open to all: each request is the owner's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        await self._app({**scope, _KEY: OWNER}, receive, send)


class Guard:
    """Is ASGI middleware that asks for the credential of a paired host."""

    def __init__(self, app: ASGIApp, store: ClientStore, audit: AuditLog) -> None:
        self._app = app
        self._store = store
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return  # nothing else is served, and a WebSocket that is not accepted is closed
        client, code = await asyncio.to_thread(self._client, scope)
        if code is None:
            await self._app({**scope, _KEY: Caller(client)}, receive, send)
        elif code == "not-paired" and (scope["method"], scope["path"]) in OPEN:
            await self._app(scope, receive, send)
        else:
            await self._refusal(scope, client, code)(scope, receive, send)

    def _client(self, scope: Scope) -> tuple[Client | None, str | None]:
        """Return the client that a request's credential shows, and why it may do nothing."""
        given = shown_in(scope)
        if given is None:
            return None, "not-paired"
        try:
            client = self._store.authenticate(*given, _address(scope))
        except RequestRefused:
            return None, "unavailable"
        if client is None:
            return None, "not-paired"
        return client, None if client.state is State.ACTIVE else client.state

    def _refusal(self, scope: Scope, client: Client | None, code: str) -> JSONResponse:
        status, message, hint = _REFUSALS[code]
        what = f"{scope['method']} {scope['path']}"[:200]
        self._audit.note(
            Event.REQUEST_REFUSED,
            address=_address(scope),
            client=None if client is None else client.id,
            code=code,
            reason=what,
        )
        error = {"code": str(code), "message": message, "hint": hint}
        return JSONResponse({"error": error}, status_code=status)


def owner_only(request: Request) -> None:
    """Refuse a request that is not the owner's; a dependency of the owner's routes.

    Raises:
        RequestRefused: ``owner-only``.
    """
    caller = caller_of(request)
    if caller is None or caller.client is not None:
        raise RequestRefused(
            "only the donor's owner may do this", code="owner-only", hint="run the command on the donor itself"
        )


def _address(scope: Scope) -> str | None:
    if scope.get("client") is not None:
        return peer_text(*scope["client"])
    return OWNER_ADDRESS if scope.get(_KEY) is OWNER else None
