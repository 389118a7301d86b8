# SPDX-License-Identifier: MIT
"""Serve the routes by which a host asks to be paired without a token, and by which the donor's owner decides.

A host that is not paired reaches four of them: it asks, it opens its commitment, it looks how its request stands, and
it takes its request back. The last two need the nonce that it has opened, which proves whose request it is. All are
limited: tries as those with a token are (`pairing`), looks a little more generously, since a host that waits looks
every second.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import fastapi
from fastapi import Depends, FastAPI, Path

from ghostbox.donors.models import Holder
from ghostbox.donors.request_models import (
    PairingApproval,
    PairingAsk,
    PairingAsked,
    PairingOpening,
    PairingRequestFields,
    PairingState,
)
from ghostbox.memserver.access import address_of, caller_of, owner_only, shown_in
from ghostbox.memserver.audit import AuditLog, Event
from ghostbox.memserver.clients import State
from ghostbox.memserver.identity import Identity
from ghostbox.memserver.leases import LeaseBook
from ghostbox.memserver.opening import default_name
from ghostbox.memserver.pairing import Attempts, Rate, have_followed, not_secure, pairing_answer
from ghostbox.memserver.refusal import RequestRefused, errors
from ghostbox.memserver.requests import Request, RequestStore, Stage
from ghostbox.units import format_bytes

_log = logging.getLogger(__name__)

LOOKS_OF_EACH = Rate(20, 0.5)
"""How often one address may look how its requests stand."""
LOOKS_OF_ALL = Rate(200, 0.05)
"""How often all addresses together may look."""

RequestNumber = Annotated[str, Path(description="Id of the request, hexadecimal.", pattern=r"^[0-9a-f]{16}$")]


def add_requests(
    app: FastAPI, identity: Identity, book: LeaseBook, requests: RequestStore | None, audit: AuditLog
) -> None:
    """Add the routes; without ``requests``, of a donor that is not secure, they refuse."""
    _add_asking(app, identity, book, requests, audit)
    _add_deciding(app, book, requests, audit)


def _add_asking(
    app: FastAPI, identity: Identity, book: LeaseBook, requests: RequestStore | None, audit: AuditLog
) -> None:
    attempts, looks = Attempts(), Attempts(each=LOOKS_OF_EACH, of_all=LOOKS_OF_ALL)

    @contextmanager
    def limited(tries: Attempts, address: str | None, holder: Holder | None = None) -> Iterator[None]:
        """Count a try, and write refusals into the audit log."""
        try:
            tries.check(address)
            yield
        except RequestRefused as err:
            audit.note(Event.PAIRING_REFUSED, address=address, holder=holder, code=err.code, reason=err.message)
            raise

    @app.post(
        "/v1/pairing-requests",
        status_code=201,
        summary="Ask to be paired, without a token",
        responses=errors(409, 422, 429, 500),
    )
    def ask(wanted: PairingAsk, request: fastapi.Request) -> PairingAsked:
        address, caller = address_of(request), caller_of(request)
        with limited(attempts, address, Holder(wanted.host, "")):
            return _needed(requests).ask(wanted, address, None if caller is None else caller.client)

    @app.put(
        "/v1/pairing-requests/self",
        summary="Open the commitment of one's request; from then on the donor's owner sees it",
        responses=errors(403, 404, 409, 422, 429, 500),
    )
    def open_(opened: PairingOpening, request: fastapi.Request) -> PairingState:
        address, store = address_of(request), _needed(requests)
        with limited(looks, address):
            found, is_new = store.open(opened.id, opened.nonce)
        if is_new:
            _tell(found, identity, audit, trusts_network=store.trusts_network)
            _follow(found, book, store)
        return _state(identity, book, store, found.id, opened.nonce)

    @app.get(
        "/v1/pairing-requests/self",
        summary="How one's request stands; the credential is its id and the nonce that was opened",
        responses=errors(403, 404, 409, 429, 500),
    )
    def look(request: fastapi.Request) -> PairingState:
        looks.check(address_of(request))
        number, nonce = _shown(request)
        return _state(identity, book, _needed(requests), number, nonce)

    @app.delete(
        "/v1/pairing-requests/self",
        status_code=204,
        response_class=fastapi.Response,
        response_model=None,
        summary="Take one's request back, also one that was approved; the credential is as for the look",
        responses=errors(403, 404, 409, 429, 500),
    )
    def withdraw(request: fastapi.Request) -> None:
        looks.check(address_of(request))
        _withdraw(book, _needed(requests), audit, request)


def _tell(found: Request, identity: Identity, audit: AuditLog, *, trusts_network: bool) -> None:
    """Tell the owner, in the log and in the audit log, that a host asks, or was paired by itself."""
    holder = Holder(found.host, "")
    audit.note(
        Event.PAIRING_ASKED, address=found.address, holder=holder, reason=f"request {found.id}, code {found.code}"
    )
    who = f"host '{found.host}' at {found.address or 'an unknown address'}"
    if trusts_network:
        why = f"by --trust-network, code {found.code}"
        audit.note(Event.PAIRING_APPROVED, address=found.address, holder=holder, client=found.client, reason=why)
        _log.warning("%s is paired by --trust-network, and shows: %s", who, found.code)
        return
    # The id, not the host's name: a stranger has chosen that, and the command is there to be pasted.
    name = "" if identity.name == default_name() else f" --name {identity.name}"
    _log.warning(
        "%s asks to be paired. Only if its screen shows: %s\n  ghostbox memserver approve %s%s",
        who, found.code, found.id, name,
    )  # fmt: skip


def _state(identity: Identity, book: LeaseBook, store: RequestStore, number: str, nonce: str) -> PairingState:
    found, client = store.look(number, nonce)
    pairing = None if client is None else pairing_answer(identity, client, book)
    return PairingState(state=found.stage, pairing=pairing)


def _shown(request: fastapi.Request) -> tuple[str, str]:
    return shown_in(request.scope) or ("", "")


def _withdraw(book: LeaseBook, store: RequestStore, audit: AuditLog, request: fastapi.Request) -> None:
    """Take a host's request back; if it was approved, end the pairing, which is refused while leases are held."""
    number, nonce = _shown(request)
    found, client = store.look(number, nonce)
    if client is None:
        event = None if store.withdraw(number, nonce).stage is not Stage.PENDING else Event.PAIRING_WITHDRAWN
    elif client.state is State.ACTIVE:
        book.let_go(client, lambda: store.end(number, client))
        event = Event.PAIRING_ENDED
    else:
        raise RequestRefused("the donor's owner has suspended this host", code="suspended")
    if event is not None:
        audit.note(
            event,
            address=address_of(request),
            holder=Holder(found.host, ""),
            client=found.client,
            reason=f"request {number}, code {found.code}",
        )


def _follow(found: Request, book: LeaseBook, store: RequestStore) -> None:
    client = store.client_of(found)
    if client is not None:
        have_followed(book, client)


def _add_deciding(app: FastAPI, book: LeaseBook, requests: RequestStore | None, audit: AuditLog) -> None:
    @app.get(
        "/v1/pairing-requests",
        summary="The hosts that ask to be paired, and those that were denied (the owner's alone)",
        dependencies=[Depends(owner_only)],
        responses=errors(403, 409, 500),
    )
    def list_requests() -> list[PairingRequestFields]:
        return [_fields(each) for each in _needed(requests).shown()]

    @app.put(
        "/v1/pairing-requests/{number}/approval",
        summary="Pair with a host that asks (the owner's alone)",
        dependencies=[Depends(owner_only)],
        responses=errors(403, 404, 409, 422, 500),
    )
    def approve(number: RequestNumber, given: PairingApproval, request: fastapi.Request) -> PairingRequestFields:
        store = _needed(requests)
        store.roles.check(given.role)
        found = store.approve(number, given.role, given.max_memory_bytes)
        _follow(found, book, store)
        limit = "" if given.max_memory_bytes is None else f", at most {format_bytes(given.max_memory_bytes)}"
        audit.note(
            Event.PAIRING_APPROVED,
            address=address_of(request),
            holder=Holder(found.host, ""),
            client=found.client,
            reason=f"request {number}, code {found.code}, role {given.role}{limit}",
        )
        return _fields(found)

    @app.delete(
        "/v1/pairing-requests/{number}",
        summary="Refuse a host that asks to be paired (the owner's alone)",
        dependencies=[Depends(owner_only)],
        responses=errors(403, 404, 409, 422, 500),
    )
    def deny(number: RequestNumber, request: fastapi.Request) -> PairingRequestFields:
        found = _needed(requests).deny(number)
        why = f"request {number}, code {found.code}"
        audit.note(Event.PAIRING_DENIED, address=address_of(request), holder=Holder(found.host, ""), reason=why)
        return _fields(found)


def _needed(requests: RequestStore | None) -> RequestStore:
    if requests is None:
        raise not_secure()
    return requests


def _fields(found: Request) -> PairingRequestFields:
    return PairingRequestFields(
        id=found.id,
        host=found.host,
        host_id=found.host_id,
        state=found.stage,
        code=found.code,
        address=found.address,
        asked_at=datetime.fromtimestamp(found.asked_at, UTC),
        expires_at=datetime.fromtimestamp(found.expires_at, UTC),
        client=found.client if found.stage is Stage.APPROVED else None,
    )
