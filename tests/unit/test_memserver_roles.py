# SPDX-License-Identifier: MIT
"""Roles and limits: what each means, how they are kept, what a lease over them is told, which hits are written down."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from ghostbox.donors.models import ClientLimitsRequest, LimitsRequest, PairingRequest
from ghostbox.memserver import audit, limits
from ghostbox.memserver.audit import AuditLog
from ghostbox.memserver.clients import Client, ClientStore, State, open_store
from ghostbox.memserver.limit_hits import LINE_EVERY_S, LimitHits
from ghostbox.memserver.limits import Held
from ghostbox.memserver.model import ClientCounters, PlaneClient
from ghostbox.memserver.refusal import RequestRefused
from ghostbox.memserver.role_api import changes_of
from ghostbox.memserver.role_store import RoleStore, Standing
from ghostbox.memserver.roles import NO_LIMIT, Limits
from ghostbox.units import GIB, MIB
from helpers import clients_file

DONOR = clients_file.DONOR
clock, file, store = clients_file.clock, clients_file.file, clients_file.store
LENT = 64 * GIB


@pytest.fixture
def roles(store: ClientStore) -> RoleStore:
    return RoleStore(store)


def paired(store: ClientStore, role: str = "user", again: Client | None = None, *, memory: int | None = None) -> Client:
    token = store.create_token(600, role=role, max_memory_bytes=memory)
    digest = hashlib.sha256(token.secret).hexdigest()
    wanted = PairingRequest(
        token_id=token.entry.id, secret=token.secret.hex(), credential_sha256=digest, host="tower", host_id="11" * 8,
        version="1",
    )  # fmt: skip
    return store.pair(wanted, None, again)


def limits_of(roles: RoleStore, client: Client) -> Limits:
    return roles.standings(LENT)[client.id].limits


# --- what roles mean ---


def test_built_in_roles_go_from_no_limits_to_a_quarter_for_one_vm(roles: RoleStore) -> None:
    assert [(role.name, role.built_in, role.limits, role.own) for role in roles.roles(LENT)] == [
        ("admin", True, Limits(), ()),
        ("user", True, Limits(leases=64, connections=256), ()),
        ("guest", True, Limits(16 * GIB, 2, 16, 32 * MIB), ()),
    ]


def test_a_limit_of_a_role_is_set_taken_away_and_put_back(roles: RoleStore) -> None:
    roles.set_role("guest", {"memory_bytes": GIB, "bytes_per_s": NO_LIMIT})
    roles.set_role("guest", {"leases": 7})
    roles.set_role("lab", {"memory_bytes": 2 * GIB})
    found = {role.name: role for role in roles.roles(LENT)}
    assert found["guest"].limits == Limits(GIB, 7, 16, None)
    assert found["guest"].own == ("memory_bytes", "leases", "bytes_per_s")
    assert (found["lab"].limits, found["lab"].built_in) == (Limits(memory_bytes=2 * GIB), False)
    roles.set_role("guest", {"memory_bytes": None, "leases": None, "bytes_per_s": None})
    assert roles.roles(LENT)[2].limits == Limits(16 * GIB, 2, 16, 32 * MIB)


def test_a_client_has_its_roles_limits_but_for_its_own(store: ClientStore, roles: RoleStore) -> None:
    client = paired(store, memory=8 * GIB)
    assert limits_of(roles, client) == Limits(8 * GIB, 64, 256)  # the token's limit is its own
    roles.set_client(client.id, "guest", {})
    assert limits_of(roles, client) == Limits(8 * GIB, 2, 16, 32 * MIB)
    roles.set_client(client.id, None, {"connections": NO_LIMIT, "memory_bytes": None})
    assert limits_of(roles, client) == Limits(16 * GIB, 2, None, 32 * MIB)
    roles.set_client(client.id, None, {"memory_bytes": NO_LIMIT})
    standing = roles.standings(LENT)[client.id]
    assert (standing.limits.memory_bytes, standing.own) == (None, ("memory_bytes", "connections"))
    assert (standing.role, standing.state, standing.host) == ("guest", State.ACTIVE, "tower")


def test_a_new_pairing_begins_with_what_its_token_says(store: ClientStore, roles: RoleStore) -> None:
    client = paired(store)
    roles.set_client(client.id, None, {"leases": 1, "memory_bytes": GIB})
    again = paired(store, "guest", client)
    assert again.id == client.id
    assert limits_of(roles, again) == Limits(16 * GIB, 2, 16, 32 * MIB)
    roles.set_client(client.id, None, {"leases": 1})
    store.remove(client.id)
    with store.reading() as db:
        assert db.execute("SELECT count(*) FROM client_limits").fetchone()[0] == 0


def test_a_role_that_is_not_known_counts_as_the_least(store: ClientStore, roles: RoleStore) -> None:
    assert limits_of(roles, paired(store, "gone")) == Limits(16 * GIB, 2, 16, 32 * MIB)


def test_they_are_kept_and_a_file_of_before_has_none(store: ClientStore, roles: RoleStore, file: Path) -> None:
    client = paired(store)
    roles.set_role("lab", {"leases": 3})
    roles.set_client(client.id, "lab", {"connections": 5})
    store.close()
    with open_store(file, DONOR) as again:
        assert limits_of(RoleStore(again), client) == Limits(leases=3, connections=5)
        with again.changing() as db:
            for name in ("roles", "client_limits"):
                db.execute(f"DROP TABLE {name}")
            for name in ("paired_again", "struck_out"):
                db.execute(f"DROP TRIGGER IF EXISTS {name}")
    with open_store(file, DONOR) as before:
        assert limits_of(RoleStore(before), client) == Limits(16 * GIB, 2, 16, 32 * MIB)


# --- refusals ---


def test_unknown_built_in_and_used_roles_are_refused_with_what_to_do(store: ClientStore, roles: RoleStore) -> None:
    roles.set_role("lab", {})
    client, token = paired(store, "lab"), store.create_token(600, role="lab")
    with pytest.raises(RequestRefused, match="no role 'x'") as unknown:
        roles.check("x")
    assert unknown.value.hint == ("roles are: admin, user, guest, lab; ghostbox memserver role set x makes it")
    with pytest.raises(RequestRefused, match="no role 'x'"):
        roles.set_client(client.id, "x", {})
    with pytest.raises(RequestRefused, match="role 'guest' is built in, and stays"):
        roles.delete_role("guest")
    with pytest.raises(RequestRefused, match=f"role 'lab' is in use: host tower, token {token.entry.id}"):
        roles.delete_role("lab")
    roles.set_client(client.id, "user", {})
    store.revoke_token(token.entry.id)
    roles.delete_role("lab")
    with pytest.raises(RequestRefused, match="no role 'lab'"):
        roles.delete_role("lab")
    store.set_state(client.id, State.REVOKED)
    with pytest.raises(RequestRefused, match="the pairing of tower was revoked for good"):
        roles.set_client(client.id, "guest", {})


def test_a_request_changes_what_it_names() -> None:
    wanted = LimitsRequest.model_validate({"memory_bytes": None, "leases": "default", "connections": 3})
    assert changes_of(wanted) == {"memory_bytes": NO_LIMIT, "leases": None, "connections": 3}
    assert changes_of(ClientLimitsRequest.model_validate({"role": "guest"})) == {}


# --- leases ---


STANDING = Standing("tower", State.ACTIVE, "guest", Limits(8 * MIB, 2))


def test_a_lease_over_a_limit_is_told_which_one_what_is_held_and_who_can_change_it() -> None:
    assert limits.exceeded("one", 3 * MIB, STANDING, Held(1, 5 * MIB)) is None
    over = limits.exceeded("two", 4 * MIB, STANDING, Held(1, 5 * MIB))
    assert over is not None
    assert over.message == "lease 'two': 4 MiB asked; this host may lease 8 MiB here, 5 MiB of that is leased"
    assert over.hint.endswith("the donor's owner can raise the limit: ghostbox memserver client set tower --memory")
    many = limits.exceeded("two", 1, STANDING, Held(2, 2))
    assert many is not None
    assert many.message == "lease 'two': this host may have 2 leases here, and has 2"
    assert many.hint.endswith("ghostbox memserver client set tower --leases")


def test_what_may_still_be_leased_is_the_least_of_all_limits() -> None:
    assert limits.room_bytes(64 * MIB, STANDING.limits, Held(1, 5 * MIB)) == 3 * MIB
    assert limits.room_bytes(MIB, STANDING.limits, Held(1, 5 * MIB)) == MIB
    assert limits.room_bytes(64 * MIB, STANDING.limits, Held(2, MIB)) == 0
    assert limits.room_bytes(64 * MIB, STANDING.limits, Held(1, 9 * MIB)) == 0
    assert limits.room_bytes(64 * MIB, Limits(), Held(9, 9 * MIB)) == 64 * MIB


def used(*, writes: int = 0, connections: int = 0, number: str = "c1") -> PlaneClient:
    counters = ClientCounters(writes_refused=writes, connections_refused=connections, delays=9)
    return PlaneClient(client=number, resident_bytes=6 * MIB, connections=4, counters=counters)


def test_limits_below_what_is_held_are_said_with_what_they_do() -> None:
    tight = replace(STANDING, limits=Limits(4 * MIB, 1, 3))
    memory, leases, connections = limits.notes(tight, Held(2, 8 * MIB, used()))
    assert memory == (
        "tower has leased 8 MiB, more than 4 MiB: its leases stay, and what is in them (6 MiB) can be read and"
        " written; a page that would be more than 4 MiB gets ENOSPC, and its VMs keep it with them until there is room"
    )
    assert leases == "tower has 2 leases, more than 1: they stay, and it gets no other one"
    assert connections == "tower has 4 connections, more than 3: they stay open, and no other one comes in"
    assert limits.notes(STANDING, Held(2, 8 * MIB, used())) == []
    assert limits.said(tight.limits) == "memory 4 MiB, leases 1, connections 3"
    assert limits.said(Limits(bytes_per_s=MIB)) == "bandwidth 1 MiB/s"
    assert limits.said(Limits()) == "no limits"


# --- hits ---


def test_a_limit_that_is_hit_again_and_again_has_a_line_a_minute(tmp_path: Path) -> None:
    file, now = audit.path(tmp_path), [100.0]
    hits = LimitHits(AuditLog(file), lambda: now[0])
    standings = {"c1": replace(STANDING, limits=Limits(8 * MIB, connections=4))}

    def lines() -> list[tuple[str | None, str | None]]:
        return [(entry.client, entry.reason) for entry in audit.read(file) if entry.event == "limit-hit"]

    hits.look([used(writes=5)], standings)  # these are older than this control plane
    hits.look([used(writes=5)], standings)
    assert lines() == []
    hits.look([used(writes=7), used(writes=1, number="c2")], standings)
    hits.look([used(writes=9, connections=1)], standings)
    first = [
        ("c1", "2 writes got ENOSPC: its leases have 6 MiB of 8 MiB"),
        ("c2", "1 writes got ENOSPC: its leases have 6 MiB"),
    ]
    assert lines() == [*first, ("c1", "1 connections were refused: 4 of 4 are open")]
    now[0] += LINE_EVERY_S
    hits.look([used(writes=9, connections=1)], standings)  # the audit log itself has one line in ten seconds
    hits.look([used(writes=9, connections=1)], standings)
    assert len(lines()) == 3


def test_a_data_plane_that_counts_anew_is_followed(tmp_path: Path) -> None:
    file, now = audit.path(tmp_path), [100.0]
    hits = LimitHits(AuditLog(file), lambda: now[0])
    hits.look([used(writes=5)], {})
    hits.look([used(writes=1)], {})
    assert [entry.reason for entry in audit.read(file)] == ["1 writes got ENOSPC: its leases have 6 MiB"]
