# SPDX-License-Identifier: MIT
"""Serve the routes of roles and limits, which are the owner's alone. What is changed holds at once for what is open."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, FastAPI, Path, Request, Response

from ghostbox.donors.models import (
    ROLE_NAME,
    ClientFields,
    ClientLimitsRequest,
    Holder,
    LimitsRequest,
    RoleFields,
)
from ghostbox.memserver import limits
from ghostbox.memserver.access import address_of, owner_only
from ghostbox.memserver.audit import AuditLog, Event
from ghostbox.memserver.client_view import Number, View, limit_fields
from ghostbox.memserver.clients import ClientStore, State
from ghostbox.memserver.leases import LeaseBook
from ghostbox.memserver.pairing import needed
from ghostbox.memserver.refusal import errors
from ghostbox.memserver.role_store import RoleStore
from ghostbox.memserver.roles import FIELDS, NO_LIMIT, Kept, Role

RoleNamed = Annotated[str, Path(description="Name of the role.", pattern=ROLE_NAME)]
DEFAULT = "default"


def add_roles(app: FastAPI, store: ClientStore | None, book: LeaseBook, audit: AuditLog) -> None:
    """Add the routes of roles."""

    @app.get(
        "/v1/roles",
        summary="All roles (the owner's alone)",
        dependencies=[Depends(owner_only)],
        responses=errors(403, 409, 500),
    )
    def list_roles() -> list[RoleFields]:
        view = View(needed(store), book)
        return [_fields(role, view) for role in RoleStore(needed(store)).roles(book.lent_bytes)]

    @app.put(
        "/v1/roles/{name}",
        summary="Change limits of a role, or make it; all hosts that have it follow at once (the owner's alone)",
        dependencies=[Depends(owner_only)],
        responses=errors(403, 409, 422, 500, 503),
    )
    def set_role(name: RoleNamed, wanted: LimitsRequest, request: Request) -> RoleFields:
        kept = RoleStore(needed(store))
        kept.set_role(name, changes_of(wanted))
        (role,) = (each for each in kept.roles(book.lent_bytes) if each.name == name)
        audit.note(Event.ROLE_SET, address=address_of(request), reason=f"role {name}: {limits.said(role.limits)}")
        book.follow_limits()
        view = View(needed(store), book)
        notes = [note for number, each in view.standings.items() if each.role == name for note in view.notes_on(number)]
        return _fields(role, view).model_copy(update={"notes": notes})

    @app.delete(
        "/v1/roles/{name}",
        status_code=204,
        response_class=Response,
        response_model=None,
        summary="Remove a role that nobody has (the owner's alone)",
        dependencies=[Depends(owner_only)],
        responses=errors(403, 404, 409, 422, 500),
    )
    def delete_role(name: RoleNamed, request: Request) -> None:
        RoleStore(needed(store)).delete_role(name)
        audit.note(Event.ROLE_DELETED, address=address_of(request), reason=f"role {name}")


def add_client_limits(app: FastAPI, store: ClientStore | None, book: LeaseBook, audit: AuditLog) -> None:
    """Add the route of a client's role and its own limits."""

    @app.put(
        "/v1/clients/{number}/limits",
        summary="Give a host another role, or limits of its own, at once (the owner's alone)",
        dependencies=[Depends(owner_only)],
        responses=errors(403, 404, 409, 422, 500, 503),
    )
    def set_client(number: Number, wanted: ClientLimitsRequest, request: Request) -> ClientFields:
        client = RoleStore(needed(store)).set_client(number, wanted.role, changes_of(wanted))
        what = f"role {client.role}: {limits.said(book.standings()[client.id].limits)}"
        holder = Holder(client.host, "")
        audit.note(Event.CLIENT_SET, address=address_of(request), holder=holder, client=client.id, reason=what)
        book.follow(client)
        view = View(needed(store), book)
        return view.fields(client).model_copy(update={"notes": view.notes_on(client.id)})


def changes_of(wanted: LimitsRequest) -> Kept:
    """Return the limits that a request names, as the file has them."""
    found: dict[str, int | None] = {}
    for name in FIELDS:
        if name in wanted.model_fields_set:
            value = getattr(wanted, name)
            found[name] = None if value == DEFAULT else NO_LIMIT if value is None else value
    return found


def _fields(role: Role, view: View) -> RoleFields:
    hosts = sum(each.role == role.name and each.state is not State.REVOKED for each in view.standings.values())
    return RoleFields(
        name=role.name, built_in=role.built_in, limits=limit_fields(role.limits), own=list(role.own), hosts=hosts
    )
