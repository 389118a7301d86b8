# SPDX-License-Identifier: MIT
"""Write the lines that are missing in the audit log when a donor starts; `audit` says why there may be some.

A line that is written late says so. A line may be written twice, if the donor was killed after a late line and before
the records that it is about; none is left out, as far as the log reaches back.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from ghostbox.donors.models import Holder
from ghostbox.memserver.audit import ASKED, AuditLog, Entry, Event, LastWords
from ghostbox.memserver.clients import Client, ClientStore, State
from ghostbox.memserver.records import UNKNOWN_HOLDER, LeaseRecord, Records

_LATE = "found at this start; when it happened, the donor was killed, or the log could not be written"


def fill(log: AuditLog, kept: Records) -> None:
    """Compare the records with the log, and write what the log does not say."""
    words = log.last_words()
    for lease in kept.leases.values():
        if lease.incarnation is not None and _is_unsaid(lease, words):
            _note(log, Event.LEASE_MADE, lease.name, lease.holder, lease.size_bytes, lease.client)
    for name, last in words.leases.items():
        if last.event == Event.LEASE_MADE and name not in kept.leases:
            event = Event.LEASE_LOST if name in kept.lost else Event.LEASE_ENDED
            holder = None if last.host is None else Holder(last.host, last.vm or "")
            _note(log, event, name, holder, last.size_bytes, last.client)
    drained = words.drain is not None and words.drain.event == Event.DRAIN_BEGUN
    if drained != kept.drain_asked:
        log.note(Event.DRAIN_BEGUN if kept.drain_asked else Event.DRAIN_ENDED, reason=ASKED)


def _is_unsaid(lease: LeaseRecord, words: LastWords) -> bool:
    """Tell whether the log lacks the line of a lease that is held.

    A lease whose line would be older than the log is not missed. A lease that was lost and made again under its name
    keeps the time at which it was made first; one whose record was damaged has the time of the new record.
    """
    last: Entry | None = words.leases.get(lease.name)
    made_at = datetime.fromisoformat(lease.created_at)
    if last is None:
        return made_at >= datetime.fromisoformat(words.begin).replace(microsecond=0)
    if last.event == Event.LEASE_ENDED:
        return True
    return lease.holder != UNKNOWN_HOLDER and made_at > datetime.fromisoformat(last.time)


def _note(
    log: AuditLog, event: Event, name: str, holder: Holder | None, size_bytes: int | None, client: str | None
) -> None:
    log.note(event, holder=holder, client=client, lease=name, size_bytes=size_bytes, reason=_LATE)


def fill_clients(log: AuditLog, store: ClientStore) -> None:
    """Compare the clients of a secure donor with the log, and write what the log does not say."""
    words, clients = log.last_words(), store.clients()
    for client in clients:
        last = words.clients.get(client.id)
        if last is None and client.paired_at < datetime.fromisoformat(words.begin).timestamp():
            continue
        for event in _unsaid_of(client, last):
            log.note(event, address=client.address, holder=Holder(client.host, ""), client=client.id, reason=_LATE)
    for number in words.clients.keys() - {client.id for client in clients}:
        last = words.clients[number]
        if last.event != Event.PAIRING_ENDED:
            holder = None if last.host is None else Holder(last.host, "")
            log.note(Event.PAIRING_ENDED, holder=holder, client=number, reason=_LATE)


def _unsaid_of(client: Client, last: Entry | None) -> Iterator[Event]:
    """Yield the events that made a client what it is, from the last one in the log on."""
    if last is None:
        yield Event.PAIRED
    match client.state:
        case State.SUSPENDED if last is None or last.event != Event.CLIENT_SUSPENDED:
            yield Event.CLIENT_SUSPENDED
        case State.REVOKED if last is None or last.event != Event.CLIENT_REVOKED:
            yield Event.CLIENT_REVOKED
        case State.ACTIVE if last is not None and last.event == Event.CLIENT_SUSPENDED:
            yield Event.CLIENT_RESUMED
