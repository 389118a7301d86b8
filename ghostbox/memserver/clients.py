# SPDX-License-Identifier: MIT
"""Keep a donor's pairing tokens and the hosts that are paired with it, in one SQLite file.

Secrets are kept as their SHA-256: they are random bits, so that nobody finds them by trying. Each change is one
transaction, on disk before it is answered; a donor that is killed at any instruction has made it or not. The file is
made whole before it gets its name: a file that is empty or cut off is damage, and an error, never a donor without
clients. Methods may be called in any thread, and wait for the disk: not in the event loop.

Clocks. Only tokens expire. Since the boot in which a token was made, the time that passed is measured by a clock that
nobody sets (CLOCK_BOOTTIME), so that a clock which is set meanwhile makes no token live longer or shorter. After a
reboot the clock of the day is all there is: a token has expired when that is after its end, or before its beginning.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ghostbox.donors.models import PairingRequest
from ghostbox.errors import GhostboxError, hint_for
from ghostbox.memserver import schema
from ghostbox.memserver.refusal import RequestRefused
from ghostbox.paths import open_private
from ghostbox.system import process_table, state_files
from ghostbox.system.closing import Closing

_log = logging.getLogger(__name__)

USER = "user"
"""The role of a client unless its token says another one."""
_SEEN_EVERY_S = 60.0
_FORGET_TOKENS_S = 7 * 86400.0
_BUSY_S = 10.0
_PAIR_SQL = (
    "INSERT INTO clients (host, host_id, credential_sha256, role, max_memory, paired, seen, address, id, state)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_PAIR_AGAIN_SQL = (
    "UPDATE clients SET host = ?, host_id = ?, credential_sha256 = ?, role = ?, max_memory = ?, paired = ?, seen = ?,"
    " address = ? WHERE id = ?"
)


class Clock:
    """Tells the time; a test has one of its own."""

    def wall_s(self) -> float:
        """Return the seconds since 1970, as the machine's clock is set."""
        return time.time()

    def since_boot_s(self) -> float:
        """Return the seconds since the boot, time asleep included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def boot(self) -> str:
        """Return the id of this boot."""
        return process_table.boot_id()


class State(StrEnum):
    """Names what a client may do: `ACTIVE` all that it is allowed, the others nothing."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"


@dataclass(frozen=True)
class Client:
    """Describes a host that is, or was, paired; times are seconds since 1970, ``max_memory_bytes`` None: no limit."""

    id: str
    host: str
    host_id: str
    state: State
    role: str
    max_memory_bytes: int | None
    paired_at: float
    seen_at: float
    address: str | None


@dataclass(frozen=True)
class TokenEntry:
    """Describes a pairing token; times are seconds since 1970. ``used_by`` is the id of the client that it made."""

    id: str
    made_at: float
    expires_at: float
    expired: bool
    max_memory_bytes: int | None
    role: str
    used_by: str | None


@dataclass(frozen=True)
class NewToken:
    """Holds a token that was made, with its secret, which is kept nowhere."""

    entry: TokenEntry
    secret: bytes = field(repr=False)


class ClientStore(Closing):
    """Is the file of tokens and clients; one process at a time may have it open (`lock.name_lock`)."""

    def __init__(self, path: Path, connection: sqlite3.Connection, clock: Clock) -> None:
        self._path = path
        self._connection = connection
        self._clock = clock
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    # --- tokens ---

    def create_token(self, lifetime_s: float, *, max_memory_bytes: int | None = None, role: str = USER) -> NewToken:
        """Make a token that pairs one host within ``lifetime_s``.

        Raises:
            RequestRefused: the file cannot be written.
        """
        number, secret = secrets.token_hex(8), secrets.token_bytes(16)
        now, since_boot_s = self._clock.wall_s(), self._clock.since_boot_s()
        with self.changing() as db:
            db.execute("DELETE FROM tokens WHERE used_by IS NULL AND expires < ?", (now - _FORGET_TOKENS_S,))
            db.execute(
                "INSERT INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL)",
                (
                    number, _digest(secret), now, now + lifetime_s, self._clock.boot(), since_boot_s,
                    max_memory_bytes, role,
                ),
            )  # fmt: skip
        return NewToken(TokenEntry(number, now, now + lifetime_s, False, max_memory_bytes, role, None), secret)

    def tokens(self) -> list[TokenEntry]:
        """Return all tokens, the oldest first."""
        with self.reading() as db:
            rows = db.execute("SELECT * FROM tokens ORDER BY made, id").fetchall()
        return [self._entry(row) for row in rows]

    def revoke_token(self, number: str) -> None:
        """Remove a token. A host that it has paired stays paired.

        Raises:
            RequestRefused: there is no such token (``not-found``), or the file cannot be written.
        """
        with self.changing() as db:
            if not db.execute("DELETE FROM tokens WHERE id = ?", (number,)).rowcount:
                raise RequestRefused(f"no token '{number}'", code="not-found", hint="ghostbox token list")

    # --- pairing ---

    def pair(self, wanted: PairingRequest, address: str | None, paired: Client | None = None) -> Client:
        """Pair a host by its token. The same request once more has the same result, also after the token expired.

        A host that shows that it is ``paired`` already stays the same client: its leases are its own as before. It gets
        a new credential, and the role and the limit of the token.

        Raises:
            RequestRefused: ``token-unknown`` (also if the secret is wrong), ``token-used``, ``token-expired``, or the
                file cannot be written.
        """
        with self.changing() as db:
            row = db.execute("SELECT * FROM tokens WHERE id = ?", (wanted.token_id,)).fetchone()
            known = row["secret_sha256"] if row is not None else ""
            if not hmac.compare_digest(known, _digest(bytes.fromhex(wanted.secret))):
                raise _refused("token-unknown", "the donor does not know this token: it was never made, or revoked")
            if row["used_by"] is not None:
                return _paired_before(db, row["used_by"], wanted)
            if self._entry(row).expired:
                raise _refused("token-expired", "the token has expired")
            now = self._clock.wall_s()
            said = (wanted.host, wanted.host_id, wanted.credential_sha256)
            fields = (*said, row["role"], row["max_memory"], now, now, address)
            client = enrol(db, fields, None if paired is None else paired.id)
            db.execute("UPDATE tokens SET used_by = ? WHERE id = ?", (client.id, wanted.token_id))
            return client

    def authenticate(self, number: str, credential: str, address: str | None) -> Client | None:
        """Return the client that shows its credential (hexadecimal), whatever its state is; None for a wrong one.

        Raises:
            RequestRefused: the file cannot be read.
        """
        with self.reading() as db:
            row = db.execute("SELECT * FROM clients WHERE id = ?", (number,)).fetchone()
        known = row["credential_sha256"] if row is not None else ""
        if not hmac.compare_digest(known, credential_digest(credential)):
            return None
        client = _client(row)
        if not 0 <= self._clock.wall_s() - client.seen_at < _SEEN_EVERY_S:
            with contextlib.suppress(RequestRefused), self.changing() as db:
                seen = (self._clock.wall_s(), address, number)
                db.execute("UPDATE clients SET seen = ?, address = ? WHERE id = ?", seen)
        return client

    # --- clients ---

    def clients(self) -> list[Client]:
        """Return all clients, in the order in which they were paired."""
        with self.reading() as db:
            return [_client(row) for row in db.execute("SELECT * FROM clients ORDER BY paired, id").fetchall()]

    def client(self, number: str) -> Client:
        """Return one client.

        Raises:
            RequestRefused: there is no such client (``not-found``), or the file cannot be read.
        """
        with self.reading() as db:
            found = client_of(db, number)
        if found is None:
            raise _no_client(number)
        return found

    def set_state(self, number: str, state: State) -> Client:
        """Change a client's state; a client that was revoked stays so.

        Raises:
            RequestRefused: ``not-found``; ``revoked``; or the file cannot be written.
        """
        with self.changing() as db:
            row = db.execute("SELECT * FROM clients WHERE id = ?", (number,)).fetchone()
            if row is None:
                raise _no_client(number)
            if row["state"] == State.REVOKED and state is not State.REVOKED:
                raise RequestRefused(
                    f"the pairing of {row['host']} was revoked for good", code="revoked", hint=_PAIR_AGAIN
                )
            db.execute("UPDATE clients SET state = ? WHERE id = ?", (state, number))
            return _client({**row, "state": state})

    def remove(self, number: str) -> None:
        """Strike out a client that ended its pairing itself.

        Raises:
            RequestRefused: the file cannot be written.
        """
        with self.changing() as db:
            strike_out(db, number)

    # --- the file ---

    @property
    def clock(self) -> Clock:
        """Return the clock by which times are kept."""
        return self._clock

    def _entry(self, row: Any) -> TokenEntry:
        return TokenEntry(
            row["id"],
            row["made"],
            row["expires"],
            self.has_expired(row),
            row["max_memory"],
            row["role"],
            row["used_by"],
        )

    def has_expired(self, row: Any) -> bool:
        """Tell whether the time of a row is over that has the columns of a token: made, expires, boot, since_boot_s."""
        if row["boot"] == self._clock.boot():
            return bool(self._clock.since_boot_s() - row["since_boot_s"] >= row["expires"] - row["made"])
        return not row["made"] <= self._clock.wall_s() < row["expires"]

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Run a block that reads, with the lock of the file held; other modules (`requests`) have tables in it."""
        with self._lock:
            try:
                yield self._connection
            except sqlite3.Error as err:
                raise self._failed(err) from err

    @contextlib.contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Run a block as one transaction, which an error takes back; tables of other modules may be changed in it."""
        with self.reading() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    def _failed(self, err: sqlite3.Error) -> RequestRefused:
        _log.error("cannot use %s: %s", self._path, err)
        return RequestRefused(f"cannot use {self._path}: {err}", code="internal", hint=_advice(err, self._path))


def open_store(path: Path, donor_id: str, clock: Clock | None = None) -> ClientStore:
    """Open the file of the memserver ``donor_id``; make it if there is none.

    A file of another memserver (its state directory was copied) is put aside.

    Raises:
        GhostboxError: the file is damaged, is of a later version, or cannot be read or written.
    """
    try:
        found = _connect(path, donor_id) if path.exists() else None
        if found is None:
            _make(path, donor_id)
            found = _connect(path, donor_id)
    except sqlite3.Error as err:
        raise GhostboxError(f"cannot use {path}: {err}", hint=_advice(err, path)) from err
    except OSError as err:
        hint = hint_for(err, "see that it can be written")
        raise GhostboxError(f"cannot use {path}: {err.strerror}", hint=hint) from err
    assert found is not None, "the file was just made for this memserver"
    return ClientStore(path, found, clock or Clock())


def owner_of(path: Path) -> str | None:
    """Return the id of the memserver whose file this is; None if there is none, or if it cannot be read."""
    try:
        # The file is not made by this. It is opened for writing: SQLite may have to take back what a kill cut off.
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as connection:
            (owner,) = connection.execute("SELECT id FROM donor").fetchone()
    except (sqlite3.Error, TypeError):  # TypeError: the table is empty
        return None
    return str(owner)


def credential_digest(credential: str) -> str:
    """Return the form in which a credential (hexadecimal) is kept: SHA-256 of its bytes, hexadecimal."""
    return _digest(bytes.fromhex(credential))


def _connect(path: Path, donor_id: str) -> sqlite3.Connection | None:
    """Return a connection to a file that is whole; None after a file of another memserver was put aside."""
    if path.stat().st_size == 0:
        raise sqlite3.DatabaseError("the file is empty")
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        # The journal is a file beside it; a change is on disk before it is answered.
        connection.executescript("PRAGMA journal_mode = DELETE; PRAGMA synchronous = EXTRA; PRAGMA foreign_keys = ON;")
        (application,), (version,) = (
            connection.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version")
        )
        if application != schema.APPLICATION_ID:
            raise sqlite3.DatabaseError("it is no list of clients of a memserver")
        if version != schema.VERSION:
            raise sqlite3.DatabaseError(f"it is of version {version}, and this GhostBox reads version {schema.VERSION}")
        (problem,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if problem != "ok":
            raise sqlite3.DatabaseError(str(problem))
        (owner,) = connection.execute("SELECT id FROM donor").fetchone()
        connection.executescript(schema.ADDED)
    except BaseException:
        connection.close()
        raise
    if owner == donor_id:
        return connection
    connection.close()
    aside = path.with_suffix(f".of-{owner}")
    _log.warning("%s is of another memserver: put aside as %s; no host is paired with this one", path, aside)
    path.replace(aside)
    return None


def _make(path: Path, donor_id: str) -> None:
    """Make an empty file: whole, and only then under its name."""
    draft = path.with_name(f"{path.name}.new")
    for left in (draft, draft.with_name(f"{draft.name}-journal")):
        left.unlink(missing_ok=True)
    open_private(draft).close()
    try:
        with contextlib.closing(sqlite3.connect(draft, isolation_level=None)) as connection:
            connection.executescript(f"BEGIN; {schema.FIRST}")
            connection.execute("INSERT INTO donor VALUES (?)", (donor_id,))
            connection.execute("COMMIT")
        state_files.publish(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


_PAIR_AGAIN = "to pair it again: ghostbox token create"


def _paired_before(db: sqlite3.Connection, number: str, wanted: PairingRequest) -> Client:
    """Return the client that a used token has made, if it is the one that asks."""
    row = db.execute("SELECT * FROM clients WHERE id = ?", (number,)).fetchone()
    known = row["credential_sha256"] if row is not None and row["state"] != State.REVOKED else ""
    if not hmac.compare_digest(known, wanted.credential_sha256):
        raise _refused("token-used", "the token was used already: it pairs one host, once")
    return _client(row)


def enrol(db: sqlite3.Connection, fields: tuple[object, ...], former: str | None) -> Client:
    """Write a client down in a transaction; return it.

    Args:
        db: the connection of the transaction.
        fields: host, host_id, credential_sha256, role, max_memory, paired, seen, address.
        former: the id of the client that this host is already; it stays the same one, in its state.
    """
    number = former or secrets.token_hex(8)
    if not db.execute(_PAIR_AGAIN_SQL, (*fields, number)).rowcount:
        db.execute(_PAIR_SQL, (*fields, number, State.ACTIVE))
    made = client_of(db, number)
    assert made is not None, "it was just written"
    return made


def strike_out(db: sqlite3.Connection, number: str) -> None:
    """Remove a client, in a transaction."""
    db.execute("DELETE FROM clients WHERE id = ?", (number,))
    db.execute("DELETE FROM tokens WHERE used_by = ?", (number,))


def client_of(db: sqlite3.Connection, number: str) -> Client | None:
    """Return a client by its id, in a block of `ClientStore.reading` or `ClientStore.changing`."""
    row = db.execute("SELECT * FROM clients WHERE id = ?", (number,)).fetchone()
    return None if row is None else _client(row)


def _refused(code: str, message: str) -> RequestRefused:
    return RequestRefused(message, code=code, hint="have the donor print a new one there: ghostbox token create")


def _no_client(number: str) -> RequestRefused:
    return RequestRefused(f"no client '{number}'", code="not-found", hint="ghostbox memserver clients")


def _client(row: Any) -> Client:
    return Client(
        row["id"],
        row["host"],
        row["host_id"],
        State(row["state"]),
        row["role"],
        row["max_memory"],
        row["paired"],
        row["seen"],
        row["address"],
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _advice(err: sqlite3.Error, path: Path) -> str:
    """Return what to do: a full disk is the usual reason why a file that is whole cannot be written."""
    if isinstance(err, sqlite3.OperationalError):
        return f"see that {path.parent} can be written and has space: df -h and df -i show which file system is full"
    return (
        f"bring it back from a copy; without one: move {path} away, and pair each host again (ghostbox token create)."
        " Leases that are held stay"
    )
