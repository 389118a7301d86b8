# SPDX-License-Identifier: MIT
"""Keep roles, and limits of single clients, in the file of the clients; `roles` says what they mean.

Methods may be called in any thread, and wait for the disk, as those of `clients.ClientStore`.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ghostbox.memserver.clients import Client, ClientStore, State
from ghostbox.memserver.refusal import RequestRefused
from ghostbox.memserver.roles import BUILT_IN, FIELDS, Kept, Limits, Role, limits_of_role, overlaid, own_of

_COLUMNS = ", ".join(FIELDS)


@dataclass(frozen=True)
class Standing:
    """Holds what a client is at this donor: its state and its limits. ``own`` names the limits of it alone."""

    host: str
    state: State
    role: str
    limits: Limits
    own: tuple[str, ...] = ()


class RoleStore:
    """Reads and changes the roles and limits in the file of ``store``.

    Its methods raise ``RequestRefused`` if the file cannot be read or written.
    """

    def __init__(self, store: ClientStore) -> None:
        self._store = store

    def roles(self, lent_bytes: int) -> list[Role]:
        """Return all roles, the built-in ones first, of a donor that lends so much."""
        with self._store.reading() as db:
            kept = _kept(db, "roles", "name")
        names = [*BUILT_IN, *sorted(kept.keys() - BUILT_IN.keys())]
        return [
            Role(name, name in BUILT_IN, limits_of_role(name, kept, lent_bytes), own_of(kept.get(name, {})))
            for name in names
        ]

    def check(self, name: str) -> None:
        """See that there is a role.

        Raises:
            RequestRefused: ``not-found``.
        """
        with self._store.reading() as db:
            _check(db, name)

    def set_role(self, name: str, changes: Kept) -> None:
        """Change limits of a role, which is made if there is none of this name."""
        with self._store.changing() as db:
            _change(db, "roles", "name", name, changes)

    def delete_role(self, name: str) -> None:
        """Remove a role.

        Raises:
            RequestRefused: ``not-found``; ``busy``: a client has it, or would get it by a token; ``invalid``: it is
                built in.
        """
        if name in BUILT_IN:
            raise RequestRefused(
                f"role '{name}' is built in, and stays",
                code="invalid",
                hint=f"to put a limit of it back: ghostbox memserver role set {name} --memory default",
            )
        tokens = [each.id for each in self._store.tokens() if each.role == name and not (each.used_by or each.expired)]
        with self._store.changing() as db:
            _check(db, name)
            found = db.execute(
                "SELECT host FROM clients WHERE role = ? AND state != ? ORDER BY paired", (name, State.REVOKED)
            )
            users = [f"host {row['host']}" for row in found] + [f"token {number}" for number in tokens]
            if users:
                raise RequestRefused(
                    f"role '{name}' is in use: {', '.join(users)}",
                    code="busy",
                    hint="give these hosts another role (ghostbox memserver client set HOST --role user), and revoke"
                    " these tokens (ghostbox token revoke ID)",
                )
            db.execute("DELETE FROM roles WHERE name = ?", (name,))

    def set_client(self, number: str, role: str | None, changes: Kept) -> Client:
        """Give a client another role (None: as before), or limits of its own.

        Raises:
            RequestRefused: ``not-found``: the client, or the role; ``revoked``.
        """
        client = self._store.client(number)
        if client.state is State.REVOKED:
            hint = "to pair it again: ghostbox token create"
            raise RequestRefused(f"the pairing of {client.host} was revoked for good", code="revoked", hint=hint)
        with self._store.changing() as db:
            if role is not None:
                _check(db, role)
                db.execute("UPDATE clients SET role = ? WHERE id = ?", (role, number))
            if "memory_bytes" in changes:  # what its token said is over
                db.execute("UPDATE clients SET max_memory = NULL WHERE id = ?", (number,))
            if changes:
                _change(db, "client_limits", "client", number, changes)
        return self._store.client(number)

    def standings(self, lent_bytes: int) -> dict[str, Standing]:
        """Return what each client is, by its id, at a donor that lends so much."""
        with self._store.reading() as db:
            roles, own = _kept(db, "roles", "name"), _kept(db, "client_limits", "client")
        found = {}
        for client in self._store.clients():
            kept = dict(own.get(client.id, {}))
            if kept.get("memory_bytes") is None:
                kept["memory_bytes"] = client.max_memory_bytes
            limits = overlaid(limits_of_role(client.role, roles, lent_bytes), kept)
            found[client.id] = Standing(client.host, client.state, client.role, limits, own_of(kept))
        return found


@contextlib.contextmanager
def own_limits_kept(db: sqlite3.Connection, client: str | None) -> Iterator[None]:
    """Run a block, in a transaction, that pairs a client again without its owner: it keeps the limits of its own."""
    before = _kept(db, "client_limits", "client").get(client or "")
    yield
    if client is not None and before is not None:
        _change(db, "client_limits", "client", client, before)


def _check(db: sqlite3.Connection, name: str) -> None:
    if name in BUILT_IN:
        return
    known = [row["name"] for row in db.execute("SELECT name FROM roles ORDER BY name")]
    if name not in known:
        raise RequestRefused(
            f"no role '{name}'",
            code="not-found",
            hint=f"roles are: {', '.join([*BUILT_IN, *known])}; ghostbox memserver role set {name} makes it",
        )


def _kept(db: sqlite3.Connection, table: str, key: str) -> dict[str, Kept]:
    rows: Iterable[Any] = db.execute(f"SELECT {key}, {_COLUMNS} FROM {table}").fetchall()  # noqa: S608 - our own words
    return {row[key]: {name: row[name] for name in FIELDS} for row in rows}


def _change(db: sqlite3.Connection, table: str, key: str, value: str, changes: Kept) -> None:
    unknown = changes.keys() - set(FIELDS)
    assert not unknown, f"there are no limits {unknown}"
    db.execute(f"INSERT OR IGNORE INTO {table} ({key}) VALUES (?)", (value,))  # noqa: S608 - our own words
    for name, limit in changes.items():
        db.execute(f"UPDATE {table} SET {name} = ? WHERE {key} = ?", (limit, value))  # noqa: S608 - our own words
