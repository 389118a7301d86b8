# SPDX-License-Identifier: MIT
"""Describe the clients of a secure donor: what each is, may have, holds and uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Path

from ghostbox.donors.models import ClientFields, LimitFields, UseFields
from ghostbox.memserver import limits
from ghostbox.memserver.clients import Client, ClientStore
from ghostbox.memserver.leases import LeaseBook
from ghostbox.memserver.limits import Held
from ghostbox.memserver.model import PlaneClient
from ghostbox.memserver.role_store import RoleStore, Standing
from ghostbox.memserver.roles import Limits
from ghostbox.system.processes import ControlError

Number = Annotated[str, Path(description="Id, hexadecimal.", pattern=r"^[0-9a-f]{16}$")]


class View:
    """Is what is known of all clients at one moment."""

    def __init__(self, store: ClientStore, book: LeaseBook) -> None:
        self.standings: Mapping[str, Standing] = RoleStore(store).standings(book.lent_bytes)
        self._book = book
        try:
            self._use = book.use()
        except ControlError:  # the data plane is being started again
            self._use = {}

    def fields(self, client: Client) -> ClientFields:
        """Describe a client."""
        standing, held = self.standings[client.id], self._held(client.id)
        return ClientFields(
            id=client.id,
            host=client.host,
            host_id=client.host_id,
            state=client.state,
            role=client.role,
            max_memory_bytes=standing.limits.memory_bytes,
            limits=limit_fields(standing.limits),
            own=list(standing.own),
            leases=held.leases,
            leased_bytes=held.leased_bytes,
            use=None if held.use is None else _use(held.use),
            paired_at=moment(client.paired_at),
            seen_at=moment(client.seen_at),
            address=client.address,
        )

    def notes_on(self, number: str) -> list[str]:
        """Say what the client holds more of than it may."""
        return limits.notes(self.standings[number], self._held(number))

    def _held(self, number: str) -> Held:
        return self._book.held(number, self._use.get(number))


def limit_fields(found: Limits) -> LimitFields:
    """Return limits in the form of the API."""
    return LimitFields(**asdict(found))


def _use(found: PlaneClient) -> UseFields:
    return UseFields(resident_bytes=found.resident_bytes, connections=found.connections, **found.counters.model_dump())


def moment(seconds: float) -> datetime:
    """Return seconds since 1970 as a time."""
    return datetime.fromtimestamp(seconds, UTC)
