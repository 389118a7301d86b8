# SPDX-License-Identifier: MIT
"""Serve the routes of the donor's owner: pairing tokens and clients. Everybody else is refused."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import Depends, FastAPI, Request, Response

from ghostbox.donors.models import ClientFields, Holder, NewTokenFields, TokenFields, TokenRequest
from ghostbox.donors.token import Token
from ghostbox.memserver.access import address_of, owner_only
from ghostbox.memserver.audit import AuditLog, Event
from ghostbox.memserver.client_view import Number, View, moment
from ghostbox.memserver.clients import ClientStore, NewToken, State, TokenEntry
from ghostbox.memserver.leases import LeaseBook
from ghostbox.memserver.pairing import needed
from ghostbox.memserver.refusal import errors
from ghostbox.memserver.role_store import RoleStore
from ghostbox.units import format_bytes, format_duration

MakeText = Callable[[NewToken], str]


def add_tokens(app: FastAPI, store: ClientStore | None, make_text: MakeText, audit: AuditLog) -> None:
    """Add the routes of tokens; ``make_text`` returns the line to paste for a new token."""

    @app.post(
        "/v1/tokens",
        status_code=201,
        summary="Make a pairing token (the owner's alone)",
        dependencies=[Depends(owner_only)],
        responses=errors(403, 404, 409, 422, 500),
    )
    def create(wanted: TokenRequest, request: Request) -> NewTokenFields:
        RoleStore(needed(store)).check(wanted.role)
        made = needed(store).create_token(wanted.expires_s, max_memory_bytes=wanted.max_memory_bytes, role=wanted.role)
        limit = "" if wanted.max_memory_bytes is None else f", at most {format_bytes(wanted.max_memory_bytes)}"
        what = f"token {made.entry.id}, valid for {format_duration(wanted.expires_s)}, role {wanted.role}{limit}"
        audit.note(Event.TOKEN_MADE, address=address_of(request), reason=what)
        return NewTokenFields(**_token(made.entry).model_dump(), token=make_text(made))

    @app.get(
        "/v1/tokens",
        summary="All pairing tokens (the owner's alone)",
        dependencies=[Depends(owner_only)],
        responses=errors(403, 409, 500),
    )
    def list_tokens() -> list[TokenFields]:
        return [_token(entry) for entry in needed(store).tokens()]

    @app.delete(
        "/v1/tokens/{number}",
        status_code=204,
        response_class=Response,
        response_model=None,
        summary="Revoke a pairing token (the owner's alone)",
        dependencies=[Depends(owner_only)],
        responses=errors(403, 404, 409, 422, 500, 503),
    )
    def revoke(number: Number, request: Request) -> None:
        needed(store).revoke_token(number)
        audit.note(Event.TOKEN_REVOKED, address=address_of(request), reason=f"token {number}")


def add_clients(app: FastAPI, store: ClientStore | None, book: LeaseBook, audit: AuditLog) -> None:
    """Add the routes of clients."""

    def change(number: str, state: State, event: Event, request: Request) -> ClientFields:
        """Change a client's state: first in the file, so that whoever comes after a kill does the rest."""
        address = address_of(request)
        client = needed(store).set_state(number, state)
        ended = book.follow(client, address=address)
        reason = f"{ended} leases ended" if ended else None
        audit.note(event, address=address, holder=Holder(client.host, ""), client=client.id, reason=reason)
        return View(needed(store), book).fields(client)

    @app.get(
        "/v1/clients",
        summary="All paired hosts (the owner's alone)",
        dependencies=[Depends(owner_only)],
        responses=errors(403, 409, 500),
    )
    def list_clients() -> list[ClientFields]:
        clients = needed(store).clients()
        view = View(needed(store), book)
        return [view.fields(client) for client in clients if client.id in view.standings]

    @app.put(
        "/v1/clients/{number}/suspension",
        summary="End a host's connections, and serve it nothing until this is taken back (the owner's alone)",
        dependencies=[Depends(owner_only)],
        responses=errors(403, 404, 409, 422, 500, 503),
    )
    def suspend(number: Number, request: Request) -> ClientFields:
        return change(number, State.SUSPENDED, Event.CLIENT_SUSPENDED, request)

    @app.delete(
        "/v1/clients/{number}/suspension",
        summary="Serve a suspended host again (the owner's alone)",
        dependencies=[Depends(owner_only)],
        responses=errors(403, 404, 409, 422, 500, 503),
    )
    def resume(number: Number, request: Request) -> ClientFields:
        return change(number, State.ACTIVE, Event.CLIENT_RESUMED, request)

    @app.delete(
        "/v1/clients/{number}",
        summary="Revoke a host for good: its leases end at once, and their content is lost (the owner's alone)",
        dependencies=[Depends(owner_only)],
        responses=errors(403, 404, 409, 422, 500, 503),
    )
    def revoke_client(number: Number, request: Request) -> ClientFields:
        return change(number, State.REVOKED, Event.CLIENT_REVOKED, request)


def _token(entry: TokenEntry) -> TokenFields:
    state = "used" if entry.used_by else "expired" if entry.expired else "open"
    return TokenFields(
        id=entry.id,
        made_at=moment(entry.made_at),
        expires_at=moment(entry.expires_at),
        state=state,
        max_memory_bytes=entry.max_memory_bytes,
        role=entry.role,
        used_by=entry.used_by,
    )


def token_text(token: NewToken, fingerprint: bytes, addresses: tuple[str, ...]) -> str:
    """Return the line to paste for a new token."""
    return Token(addresses, fingerprint, bytes.fromhex(token.entry.id), token.secret).text()
