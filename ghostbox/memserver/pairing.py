# SPDX-License-Identifier: MIT
"""Serve the routes by which a host is paired by a token and ends its pairing, and the version.

`request_api` has the routes for a host without a token; an unpaired host reaches no others.

A pairing that is tried too often is refused without a look at the token: some tries are free for each address (of IPv6,
for each network of a /64) and for all together, and more come back with the time. Nobody guesses a secret of 128 bits;
the limit keeps whoever tries from keeping the donor busy.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI, Request, Response

import ghostbox
from ghostbox.donors.models import Holder, PairingAnswer, PairingRequest, VersionAnswer
from ghostbox.memserver.access import address_of, caller_of
from ghostbox.memserver.audit import AuditLog, Event, origin
from ghostbox.memserver.clients import Client, ClientStore
from ghostbox.memserver.identity import Identity
from ghostbox.memserver.leases import LeaseBook
from ghostbox.memserver.refusal import RequestRefused, errors
from ghostbox.system.processes import ControlError

_REMEMBERED = 1024


@dataclass(frozen=True)
class Rate:
    """Allows ``burst`` tries at once, and one more every ``every_s`` seconds."""

    burst: int
    every_s: float


EACH = Rate(10, 6.0)
"""What one address may try."""
ALL = Rate(100, 0.2)
"""What all addresses together may try."""


class Attempts:
    """Counts tries; any thread may use it. ``each`` is for one address, ``of_all`` for all together."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, each: Rate = EACH, of_all: Rate = ALL) -> None:
        self._clock = clock
        self._each, self._all = each, of_all
        self._lock = threading.Lock()
        self._of_each: OrderedDict[str, _Left] = OrderedDict()
        self._of_all = _Left(of_all.burst, clock())

    def allows(self, address: str | None) -> bool:
        """Count a try from an address (``host:port``); return whether it is within the limits."""
        now, network = self._clock(), origin(address)
        with self._lock:
            own = self._of_each.pop(network, None) or _Left(self._each.burst, now)
            self._of_each[network] = own
            if len(self._of_each) > _REMEMBERED:
                self._of_each.popitem(last=False)
            return own.take(self._each, now) and self._of_all.take(self._all, now)

    def check(self, address: str | None) -> None:
        """Count a try from an address.

        Raises:
            RequestRefused: ``too-many``.
        """
        if not self.allows(address):
            raise RequestRefused(
                "too many hosts try to pair at this moment", code="too-many", hint="try again in a minute"
            )


@dataclass
class _Left:
    """Holds how many tries are left, a fraction for one that comes back, as of a time."""

    tries: float
    counted_at: float

    def take(self, rate: Rate, now: float) -> bool:
        """Take a try; return False if none is left."""
        self.tries = min(rate.burst, self.tries + (now - self.counted_at) / rate.every_s)
        self.counted_at = now
        if self.tries < 1:
            return False
        self.tries -= 1
        return True


def add_version(app: FastAPI) -> None:
    """Add the route that tells the version."""

    @app.get("/v1/version", summary="GhostBox's version, all that a host learns which is not paired")
    def version() -> VersionAnswer:
        return VersionAnswer(version=ghostbox.__version__)


def add_pairing(app: FastAPI, identity: Identity, book: LeaseBook, store: ClientStore | None, audit: AuditLog) -> None:
    """Add the routes of pairing; without a ``store``, of a donor that is not secure, they refuse."""
    attempts = Attempts()

    def refused(wanted: PairingRequest, address: str | None, err: RequestRefused) -> None:
        audit.note(
            Event.PAIRING_REFUSED, address=address, holder=Holder(wanted.host, ""), code=err.code, reason=err.message
        )

    @app.post(
        "/v1/pairings",
        status_code=201,
        summary="Pair a host by a token of the donor's owner",
        responses=errors(403, 409, 422, 429, 500),
    )
    def pair(wanted: PairingRequest, request: Request) -> PairingAnswer:
        address = address_of(request)
        try:
            clients = needed(store)
            attempts.check(address)
            caller = caller_of(request)
            client = clients.pair(wanted, address, None if caller is None else caller.client)
        except RequestRefused as err:
            refused(wanted, address, err)
            raise
        audit.note(
            Event.PAIRED,
            address=address,
            holder=Holder(client.host, ""),
            client=client.id,
            reason=f"role {client.role}",
        )
        if caller is not None and caller.client is not None:  # its leases are there already
            have_followed(book, client)
        return pairing_answer(identity, client, book)

    @app.delete(
        "/v1/pairings/self",
        status_code=204,
        response_class=Response,
        response_model=None,
        summary="End the pairing of the host that asks",
        responses=errors(404, 409, 500),
    )
    def unpair(request: Request) -> None:
        clients, caller = needed(store), caller_of(request)
        if caller is None or caller.client is None:
            raise RequestRefused("the owner of a donor is not paired with it", code="not-found")
        client = caller.client
        book.let_go(client, lambda: clients.remove(client.id))
        audit.note(Event.PAIRING_ENDED, address=address_of(request), holder=Holder(client.host, ""), client=client.id)


def needed(store: ClientStore | None) -> ClientStore:
    """Return the store.

    Raises:
        RequestRefused: ``not-secure``: this donor has none.
    """
    if store is None:
        raise not_secure()
    return store


def not_secure() -> RequestRefused:
    """Return the error of a donor that pairs with nobody."""
    return RequestRefused(
        "this memserver lends without pairing: there are no clients and no tokens",
        code="not-secure",
        hint="start it with --secure, or with --bind on an address of the network and without --insecure",
    )


def have_followed(book: LeaseBook, client: Client) -> None:
    """Have the data plane follow the limits of a client that is paired again, and may hold leases."""
    with contextlib.suppress(ControlError):  # the data plane is being started again, and will follow
        book.follow(client)


def pairing_answer(identity: Identity, client: Client, book: LeaseBook) -> PairingAnswer:
    """Return what a host learns of its pairing."""
    standing = book.standings().get(client.id)
    return PairingAnswer(
        client=client.id,
        donor=identity.id,
        name=identity.name,
        machine=identity.machine,
        version=ghostbox.__version__,
        role=client.role,
        max_memory_bytes=client.max_memory_bytes if standing is None else standing.limits.memory_bytes,
    )
