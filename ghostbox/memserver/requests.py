# SPDX-License-Identifier: MIT
"""Keep the hosts that ask a donor to be paired without a token, in a table of the clients' file (`clients`).

    asked ──opened in time──► pending ──owner: approve──► approved (the host is a client)
      │                          ├─────owner: deny──────► denied
      │                          ├─────host: withdraw───► withdrawn ──opened again──► pending
      └── a minute passed: gone  └── an hour passed: expired

Each step is one transaction, so that a donor that is killed at any instruction has made it or not, and a host repeats
the step. In the approval the client is made in the same transaction. A request that is `asked` is not shown to anybody:
it has no code yet. One that is `withdrawn` is not shown either, and keeps its place until it is a minute old, as if it
had not been opened: nobody asks more often by taking back. What is kept is bounded: strangers cause so many requests,
and their rows go by and by; what the owner has decided waits a week for its host. Of secrets the table has digests
alone. Methods may be called in any thread, and wait for the disk: not in the event loop.
"""

from __future__ import annotations

import hmac
import secrets
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ghostbox.donors import code
from ghostbox.donors.request_models import PairingAsk, PairingAsked
from ghostbox.memserver import role_store
from ghostbox.memserver.audit import origin
from ghostbox.memserver.clients import USER, Client, ClientStore, State, client_of, enrol, strike_out
from ghostbox.memserver.refusal import RequestRefused
from ghostbox.memserver.role_store import RoleStore

MOST = 16
"""How many hosts may ask at a time."""
MOST_EACH = 2
"""How many of these from one address (of IPv6, from one network of a /64)."""
OPEN_WITHIN_S = 60.0
"""How long the donor waits for the host to open its commitment: a program does that at once."""
EXPIRE_S = 3600.0
"""How long the owner has to decide."""
_EXPIRED_KEPT = 16
_DECIDED_KEPT_S = 7 * 86400.0
_ASK_AGAIN = "ask again, on the host: ghostbox donor add, with the donor's name or address"
_ASK_SQL = "INSERT INTO requests VALUES (?, ?, ?, ?, ?, '', '', ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Stage(StrEnum):
    """Names how far a request is."""

    ASKED = "asked"
    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    WITHDRAWN = "withdrawn"


_NOT_SHOWN = (Stage.ASKED, Stage.WITHDRAWN)
_WAITING = (*_NOT_SHOWN, Stage.PENDING)


@dataclass(frozen=True)
class Request:
    """Describes a request; times are seconds since 1970. ``client`` is the client that it has become or renews."""

    id: str
    stage: Stage
    host: str
    host_id: str
    code: str
    address: str | None
    asked_at: float
    expires_at: float
    client: str | None


class RequestStore:
    """Is the table of requests.

    Args:
        store: the file that has the table.
        fingerprint: SHA-256 of the donor's certificate, which is part of each code.
        trusts_network: approve by itself what is asked.
    """

    def __init__(self, store: ClientStore, fingerprint: bytes, *, trusts_network: bool = False) -> None:
        self._store = store
        self._fingerprint = fingerprint.hex()
        self.trusts_network = trusts_network
        self.roles = RoleStore(store)

    # --- what hosts do ---

    def ask(self, wanted: PairingAsk, address: str | None, paired: Client | None = None) -> PairingAsked:
        """Take a host's commitment, and return the donor's nonce. The same commitment again has the same answer.

        A host that shows that it is ``paired`` already stays the same client when it is approved.

        Raises:
            RequestRefused: ``request-limit``: too many hosts ask; or the file cannot be written.
        """
        with self._store.changing() as db:
            rows = self._clean(db)
            for row in rows:
                if (row["commitment"], row["credential_sha256"]) == (wanted.commitment, wanted.credential_sha256):
                    return PairingAsked(id=row["id"], nonce=row["donor_nonce"])
            network = origin(address)
            self._check_room([row for row in rows if self._waits(row)], network)
            made = PairingAsked(id=secrets.token_hex(8), nonce=secrets.token_hex(code.NONCE_BYTES))
            clock = self._store.clock
            now = clock.wall_s()
            db.execute(
                _ASK_SQL,
                (
                    made.id, Stage.ASKED, wanted.commitment, wanted.credential_sha256, made.nonce, wanted.host,
                    wanted.host_id, address, network, None if paired is None else paired.id, now, now + OPEN_WITHIN_S,
                    clock.boot(), clock.since_boot_s(),
                ),
            )  # fmt: skip
        return made

    def open(self, number: str, nonce: str) -> tuple[Request, bool]:
        """Check a host's opening of its commitment; from then on the owner sees the request, with its code.

        Returns:
            The request, and whether this opening is the first one.

        Raises:
            RequestRefused: ``request-unknown``, ``request-expired``; ``request-opening``: the nonce is not the one that
                the host has committed to; or the file cannot be written.
        """
        with self._store.changing() as db:
            row = self._needed(db, number)
            sent = code.commitment(nonce, row["credential_sha256"], row["host_id"])
            if not hmac.compare_digest(sent, row["commitment"]):
                raise RequestRefused(
                    "the host opens its commitment with another nonce than it has committed to",
                    code="request-opening",
                    hint="somebody may be between host and donor; or " + _ASK_AGAIN,
                )
            if row["state"] not in (Stage.ASKED, Stage.WITHDRAWN):
                return _request(row), False
            words = code.words(self._fingerprint, row["credential_sha256"], nonce, row["donor_nonce"])
            db.execute(
                "UPDATE requests SET state = ?, code = ?, nonce_sha256 = ?, expires = ? WHERE id = ?",
                (Stage.PENDING, words, code.digest(nonce), row["made"] + EXPIRE_S, number),
            )
            if self.trusts_network:
                known = None if row["client"] is None else client_of(db, row["client"])
                given = (USER, None) if known is None else (known.role, known.max_memory_bytes)
                with role_store.own_limits_kept(db, row["client"]):  # asking again must not shake them off
                    self._approve(db, self._needed(db, number), *given)
            return _request(self._needed(db, number)), row["state"] == Stage.ASKED

    def look(self, number: str, nonce: str) -> tuple[Request, Client | None]:
        """Tell a host that shows its nonce how its request stands; with the client, once it is approved.

        Raises:
            RequestRefused: ``request-unknown`` (also if the nonce is wrong), ``request-expired``, ``revoked``; or the
                file cannot be read.
        """
        with self._store.reading() as db:
            row = self._needed(db, number, nonce)
            if row["state"] == Stage.WITHDRAWN:
                raise _unknown()
            if row["state"] != Stage.APPROVED:
                return _request(row), None
            client = client_of(db, row["client"])
        if client is None:  # the host has ended the pairing since
            raise _unknown()
        if client.state is State.REVOKED:
            raise RequestRefused("the donor's owner has revoked the pairing of this host", code="revoked")
        return _request(row), client

    def withdraw(self, number: str, nonce: str) -> Request:
        """Take a request back for the host that shows its nonce; one that was denied stays so.

        Raises:
            RequestRefused: ``request-unknown``, ``request-expired``; ``request-decided``: it is approved (`end`); or
                the file cannot be written.
        """
        with self._store.changing() as db:
            row = self._needed(db, number, nonce)
            if row["state"] == Stage.APPROVED:
                raise _decided(row)
            if row["state"] == Stage.PENDING:
                ends = (Stage.WITHDRAWN, row["made"] + OPEN_WITHIN_S, number)
                db.execute("UPDATE requests SET state = ?, expires = ? WHERE id = ?", ends)
            return _request(row)

    def end(self, number: str, client: Client) -> None:
        """Strike out a request that was approved, and the client that it has become.

        Raises:
            RequestRefused: the file cannot be written.
        """
        with self._store.changing() as db:
            strike_out(db, client.id)
            db.execute("DELETE FROM requests WHERE id = ?", (number,))

    def client_of(self, request: Request) -> Client | None:
        """Return the client that a request has become, or renews; None if there is none.

        Raises:
            RequestRefused: the file cannot be read.
        """
        with self._store.reading() as db:
            return None if request.client is None else client_of(db, request.client)

    # --- what the owner does ---

    def shown(self) -> list[Request]:
        """Return the requests that the owner may approve or has denied, the oldest first."""
        with self._store.reading() as db:
            rows = _rows(db)
        return [_request(row) for row in rows if row["state"] == Stage.DENIED or self._is_pending(row)]

    def approve(self, number: str, role: str = USER, max_memory_bytes: int | None = None) -> Request:
        """Make a client of the host that asks. Once more changes nothing.

        Raises:
            RequestRefused: ``not-found``, ``request-expired``, ``request-decided``: it was denied; or the file cannot
                be written.
        """
        with self._store.changing() as db:
            row = self._decidable(db, number, Stage.APPROVED)
            if row["state"] == Stage.PENDING:
                self._approve(db, row, role, max_memory_bytes)
            return _request(self._needed(db, number))

    def deny(self, number: str) -> Request:
        """Refuse a host. Once more changes nothing.

        Raises:
            RequestRefused: ``not-found``, ``request-expired``, ``request-decided``: it was approved; or the file cannot
                be written.
        """
        with self._store.changing() as db:
            self._decidable(db, number, Stage.DENIED)
            db.execute("UPDATE requests SET state = ? WHERE id = ?", (Stage.DENIED, number))
            return _request(self._needed(db, number))

    # --- rows ---

    def _approve(self, db: sqlite3.Connection, row: Any, role: str, max_memory_bytes: int | None) -> None:
        now = self._store.clock.wall_s()
        # A client that was revoked since stays out: the host becomes a new one.
        former = None if row["client"] is None else client_of(db, row["client"])
        number = None if former is None or former.state is State.REVOKED else former.id
        said = (row["host"], row["host_id"], row["credential_sha256"])
        fields = (*said, role, max_memory_bytes, now, now, row["address"])
        client = enrol(db, fields, number)
        db.execute("UPDATE requests SET state = ?, client = ? WHERE id = ?", (Stage.APPROVED, client.id, row["id"]))

    def _decidable(self, db: sqlite3.Connection, number: str, wanted: Stage) -> Any:
        row = db.execute("SELECT * FROM requests WHERE id = ?", (number,)).fetchone()
        if row is None or row["state"] in _NOT_SHOWN:
            raise RequestRefused(f"no request '{number}'", code="not-found", hint="ghostbox memserver clients")
        if row["state"] not in (Stage.PENDING, wanted):
            raise _decided(row)
        return self._unexpired(row)

    def _needed(self, db: sqlite3.Connection, number: str, nonce: str | None = None) -> Any:
        """Return the row of a request that has not expired, to its host if that shows its nonce."""
        row = db.execute("SELECT * FROM requests WHERE id = ?", (number,)).fetchone()
        known = "" if row is None else row["nonce_sha256"]
        if row is None or (nonce is not None and not hmac.compare_digest(known, code.digest(nonce))):
            raise _unknown()
        return self._unexpired(row)

    def _unexpired(self, row: Any) -> Any:
        if row["state"] in _WAITING and self._store.has_expired(row):
            raise RequestRefused(
                f"the request of {row['host']} has expired: nobody approved it in time",
                code="request-expired",
                hint=_ASK_AGAIN,
            )
        return row

    def _is_pending(self, row: Any) -> bool:
        return row["state"] == Stage.PENDING and not self._store.has_expired(row)

    def _waits(self, row: Any) -> bool:
        """Tell whether a request takes one of the places for those that wait."""
        return row["state"] in _WAITING and not self._store.has_expired(row)

    def _check_room(self, waiting: list[Any], network: str) -> None:
        of_network = sum(row["network"] == network for row in waiting)
        if of_network >= MOST_EACH or len(waiting) >= MOST:
            who = "this address" if of_network >= MOST_EACH else "all addresses"
            n_waiting = of_network if of_network >= MOST_EACH else len(waiting)
            raise RequestRefused(
                f"too many hosts ask to be paired: {n_waiting} requests from {who} wait for the donor's owner",
                code="request-limit",
                hint="have the owner approve or deny them, on the donor: ghostbox memserver clients; or pair by a"
                " token: ghostbox token create",
            )

    def _clean(self, db: sqlite3.Connection) -> list[Any]:
        """Remove what nobody needs any more, and return the rest."""
        rows, now = _rows(db), self._store.clock.wall_s()
        expired = [row for row in rows if row["state"] == Stage.PENDING and self._store.has_expired(row)]
        gone = [row["id"] for row in expired[:-_EXPIRED_KEPT]]
        gone += [row["id"] for row in rows if row["state"] in _NOT_SHOWN and self._store.has_expired(row)]
        decided = (Stage.APPROVED, Stage.DENIED)
        gone += [row["id"] for row in rows if row["state"] in decided and now - row["made"] >= _DECIDED_KEPT_S]
        db.executemany("DELETE FROM requests WHERE id = ?", [(number,) for number in gone])
        return [row for row in rows if row["id"] not in gone]


def _unknown() -> RequestRefused:
    return RequestRefused("the donor does not know this request", code="request-unknown", hint=_ASK_AGAIN)


def _decided(row: Any) -> RequestRefused:
    return RequestRefused(
        f"the request of {row['host']} is {row['state']} already",
        code="request-decided",
        hint="to end a pairing: ghostbox memserver revoke"
        if row["state"] == Stage.APPROVED
        else f"to let it in after all, {_ASK_AGAIN}",
    )


def hosts_in(path: Path) -> tuple[set[str], set[str]]:
    """Return the names of hosts that ask a donor to be paired, and of its clients, for a shell that completes words.

    Raises:
        OSError: the file of clients cannot be read, or has no such tables.
    """
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=0.2)) as db:
            pending = {str(name) for (name,) in db.execute("SELECT host FROM requests WHERE state = 'pending'")}
            return pending, {str(name) for (name,) in db.execute("SELECT host FROM clients WHERE state != 'revoked'")}
    except sqlite3.Error as err:
        raise OSError(str(err)) from err


def _rows(db: sqlite3.Connection) -> list[Any]:
    return db.execute("SELECT * FROM requests ORDER BY made, id").fetchall()


def _request(row: Any) -> Request:
    return Request(
        row["id"],
        Stage(row["state"]),
        row["host"],
        row["host_id"],
        row["code"],
        row["address"],
        row["made"],
        row["expires"],
        row["client"],
    )
