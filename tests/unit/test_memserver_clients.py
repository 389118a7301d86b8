# SPDX-License-Identifier: MIT
"""The store of tokens and clients: who is paired by what, when tokens expire, and what damage and kills leave."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ghostbox.donors.models import PairingRequest
from ghostbox.errors import GhostboxError
from ghostbox.memserver import clients
from ghostbox.memserver.clients import ClientStore, NewToken, State, open_store, owner_of
from ghostbox.memserver.refusal import RequestRefused
from ghostbox.units import GIB
from helpers import clients_file
from helpers.clocks import SetClock

DONOR = clients_file.DONOR
clock, file, store = clients_file.clock, clients_file.file, clients_file.store
CREDENTIAL = "c1" * 32
DAY_S = 86400.0


def request(token: NewToken, credential: str = CREDENTIAL, **changed: str) -> PairingRequest:
    digest = hashlib.sha256(bytes.fromhex(credential)).hexdigest()
    said = {"token_id": token.entry.id, "secret": token.secret.hex(), "credential_sha256": digest}
    return PairingRequest(**{**said, "host": "tower", "host_id": "11" * 8, "version": "0.1", **changed})


def refusal(store: ClientStore, wanted: PairingRequest) -> str:
    with pytest.raises(RequestRefused) as caught:
        store.pair(wanted, None)
    return caught.value.code


# --- pairing ---


def test_a_token_pairs_one_host_with_its_limit_and_role(store: ClientStore) -> None:
    token = store.create_token(600, max_memory_bytes=8 * GIB, role="guest")
    made = store.pair(request(token), "192.0.2.7:5000")
    assert (made.host, made.state, made.role, made.max_memory_bytes) == ("tower", State.ACTIVE, "guest", 8 * GIB)
    assert store.clients() == [made]
    assert store.authenticate(made.id, CREDENTIAL, None) == made
    assert [(entry.id, entry.used_by) for entry in store.tokens()] == [(token.entry.id, made.id)]


def test_a_used_token_is_refused_to_everybody_but_the_host_that_used_it(store: ClientStore, clock: SetClock) -> None:
    token = store.create_token(600)
    made = store.pair(request(token), None)
    assert refusal(store, request(token, "c2" * 32)) == "token-used"
    clock.pass_s(DAY_S)  # the answer was lost, and the host asks again later
    assert store.pair(request(token), None) == made
    assert len(store.clients()) == 1
    store.set_state(made.id, State.REVOKED)
    assert refusal(store, request(token)) == "token-used"


def test_a_host_that_is_paired_already_stays_the_same_client_with_a_new_credential(store: ClientStore) -> None:
    made = store.pair(request(store.create_token(600)), None)
    token = store.create_token(600, max_memory_bytes=GIB)
    again = store.pair(request(token, "c2" * 32), None, made)
    assert (again.id, again.max_memory_bytes) == (made.id, GIB)
    assert store.clients() == [again]
    assert store.authenticate(made.id, CREDENTIAL, None) is None
    assert store.authenticate(made.id, "c2" * 32, None) == again
    assert store.pair(request(token, "c2" * 32), None) == again, "the answer was lost"
    store.set_state(made.id, State.SUSPENDED)  # since the host has shown its credential
    assert store.pair(request(store.create_token(600), "c3" * 32), None, again).state is State.SUSPENDED
    store.remove(made.id)
    assert store.pair(request(store.create_token(600)), None, again).state is State.ACTIVE


def test_forged_and_revoked_tokens_are_unknown_alike(store: ClientStore) -> None:
    token = store.create_token(600)
    assert refusal(store, request(token, secret="00" * 16)) == "token-unknown"
    assert refusal(store, request(token, token_id="00" * 8)) == "token-unknown"
    store.revoke_token(token.entry.id)
    assert refusal(store, request(token)) == "token-unknown"
    with pytest.raises(RequestRefused, match=f"no token '{token.entry.id}'"):
        store.revoke_token(token.entry.id)


def test_a_wrong_credential_and_an_unknown_client_are_nobody(store: ClientStore) -> None:
    made = store.pair(request(store.create_token(600)), None)
    assert store.authenticate(made.id, "00" * 32, None) is None
    assert store.authenticate("00" * 8, CREDENTIAL, None) is None


def test_no_secret_is_in_the_file(store: ClientStore, file: Path) -> None:
    token = store.create_token(600)
    store.pair(request(token), None)
    kept = file.read_bytes()
    for secret in (token.secret.hex(), CREDENTIAL):
        assert secret.encode() not in kept
        assert bytes.fromhex(secret) not in kept
    assert token.secret.hex() not in repr(token)
    assert str(token.secret) not in repr(token)


def test_a_host_that_comes_back_is_seen_where_it_is(store: ClientStore, clock: SetClock) -> None:
    made = store.pair(request(store.create_token(600)), "192.0.2.7:5000")
    clock.pass_s(10)
    store.authenticate(made.id, CREDENTIAL, "192.0.2.8:1")
    assert store.client(made.id).address == "192.0.2.7:5000"  # each minute is enough
    clock.pass_s(60)
    store.authenticate(made.id, CREDENTIAL, "192.0.2.8:1")
    now = store.client(made.id)
    assert (now.address, now.seen_at, now.paired_at) == ("192.0.2.8:1", clock.wall, made.paired_at)


def test_who_was_revoked_stays_so_and_who_was_suspended_comes_back(store: ClientStore) -> None:
    made = store.pair(request(store.create_token(600)), None)
    assert store.set_state(made.id, State.SUSPENDED).state is State.SUSPENDED
    assert store.set_state(made.id, State.ACTIVE).state is State.ACTIVE
    store.set_state(made.id, State.REVOKED)
    with pytest.raises(RequestRefused, match="the pairing of tower was revoked for good"):
        store.set_state(made.id, State.ACTIVE)
    with pytest.raises(RequestRefused, match="no client '0000000000000000'"):
        store.set_state("00" * 8, State.SUSPENDED)
    found = store.authenticate(made.id, CREDENTIAL, None)
    assert found is not None
    assert found.state is State.REVOKED


def test_a_host_that_ended_its_pairing_is_gone_and_so_is_its_token(store: ClientStore) -> None:
    token = store.create_token(600)
    made = store.pair(request(token), None)
    store.remove(made.id)
    assert (store.clients(), store.tokens()) == ([], [])
    assert refusal(store, request(token)) == "token-unknown"


# --- clocks ---


def test_a_token_expires(store: ClientStore, clock: SetClock) -> None:
    token = store.create_token(600)
    clock.pass_s(599)
    assert not store.tokens()[0].expired
    clock.pass_s(1)
    assert store.tokens()[0].expired
    assert refusal(store, request(token)) == "token-expired"


@pytest.mark.parametrize("jump_s", [-DAY_S, DAY_S])
def test_a_clock_that_is_set_by_a_day_makes_no_token_live_longer_or_shorter(
    store: ClientStore, clock: SetClock, jump_s: float
) -> None:
    token = store.create_token(600)
    clock.wall += jump_s
    clock.pass_s(599)
    assert not store.tokens()[0].expired
    clock.pass_s(1)
    assert refusal(store, request(token)) == "token-expired"


def test_after_a_reboot_the_clock_of_the_day_decides_and_one_before_the_token_counts_as_expired(
    store: ClientStore, clock: SetClock
) -> None:
    store.create_token(600)
    clock.reboot()
    clock.wall += 30
    assert not store.tokens()[0].expired
    clock.wall -= DAY_S
    assert store.tokens()[0].expired
    clock.wall += DAY_S + 600
    assert store.tokens()[0].expired


def test_old_tokens_that_nobody_used_are_forgotten(store: ClientStore, clock: SetClock) -> None:
    store.create_token(600)
    clock.pass_s(8 * DAY_S)
    newer = store.create_token(600)
    assert [entry.id for entry in store.tokens()] == [newer.entry.id]


# --- the file ---


def test_it_is_its_owners_alone_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        open_store(tmp_path / "x", DONOR).close()
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600


def test_it_is_the_same_after_it_was_closed(store: ClientStore, file: Path) -> None:
    made = store.pair(request(store.create_token(600)), None)
    store.close()
    with open_store(file, DONOR) as again:
        assert again.clients() == [made]


@pytest.mark.parametrize("left", [0, 50, 2000, 5000, "one page less"])
def test_a_file_that_was_cut_off_is_an_error_and_no_empty_list(store: ClientStore, file: Path, left: int | str) -> None:
    store.pair(request(store.create_token(600)), None)
    store.close()
    size_bytes = file.stat().st_size
    os.truncate(file, size_bytes - 4096 if isinstance(left, str) else left)
    kept = file.read_bytes()
    with pytest.raises(GhostboxError, match=f"cannot use {file}: ") as caught:
        open_store(file, DONOR)
    assert "bring it back from a copy; without one: move " in str(caught.value.hint)
    assert file.read_bytes() == kept


def test_other_files_are_refused_with_what_they_are(file: Path) -> None:
    for content, why in ((b"x" * 9000, "file is not a database"), (b"", "the file is empty")):
        file.write_bytes(content)
        with pytest.raises(GhostboxError, match=f"cannot use {file}: {why}"):
            open_store(file, DONOR)
    file.unlink()
    sqlite3.connect(file).execute("CREATE TABLE other (x)").connection.close()
    with pytest.raises(GhostboxError, match="it is no list of clients of a memserver"):
        open_store(file, DONOR)


def test_a_file_of_a_later_version_is_refused(store: ClientStore, file: Path) -> None:
    store.close()
    db = sqlite3.connect(file)
    db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(GhostboxError, match="it is of version 2, and this GhostBox reads version 1"):
        open_store(file, DONOR)


def test_a_file_of_another_memserver_is_put_aside(
    store: ClientStore, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store.pair(request(store.create_token(600)), None)
    store.close()
    with caplog.at_level(logging.WARNING), open_store(file, "e0" * 8) as other:
        assert other.clients() == []
    assert f"{file} is of another memserver: put aside as {file.with_suffix(f'.of-{DONOR}')}" in caplog.text
    with open_store(file.with_suffix(f".of-{DONOR}"), DONOR) as kept:
        assert len(kept.clients()) == 1


def test_a_directory_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GhostboxError, match=f"cannot use {tmp_path}/file/clients: Not a directory"):
        open_store(tmp_path / "file" / "clients", DONOR)


def test_a_kill_between_any_two_statements_of_the_first_start_leaves_a_donor_that_starts(file: Path) -> None:
    connect = sqlite3.connect

    def opens(count: Callable[[str], None]) -> None:
        def traced(*args: Any, **words: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*args, **words)
            connection.set_trace_callback(count)
            return connection

        sqlite3.connect = traced  # type: ignore[assignment]
        open_store(file, DONOR)

    after, status = 0, -9
    while status == -9:
        file.unlink(missing_ok=True)
        status = clients_file.killed(opens, after)
        with open_store(file, DONOR) as store:
            assert store.clients() == []
        after += 3
    assert after > 6


def test_a_kill_between_any_two_statements_of_a_pairing_has_paired_wholly_or_not_and_can_be_repeated(
    file: Path,
) -> None:
    paired, after, status = set(), 0, -9
    while status == -9:
        file.unlink(missing_ok=True)
        with open_store(file, DONOR) as store:
            wanted = request(store.create_token(600))

        def pairs(count: Callable[[str], None], wanted: PairingRequest = wanted) -> None:
            with open_store(file, DONOR) as store:
                store._connection.set_trace_callback(count)
                store.pair(wanted, None)

        status = clients_file.killed(pairs, after)
        with open_store(file, DONOR) as store:
            before = store.clients()
            assert [entry.used_by for entry in store.tokens()] == [next((each.id for each in before), None)]
            paired.add(len(before))
            store.pair(wanted, None)
            assert len(store.clients()) == 1
        after += 1
    assert paired == {0, 1}


def test_the_digest_is_of_the_credentials_bytes() -> None:
    assert clients.credential_digest("00" * 32) == hashlib.sha256(bytes(32)).hexdigest()


def test_the_owner_of_a_file_is_known_and_no_file_is_made_by_asking(file: Path, store: ClientStore) -> None:
    assert owner_of(file) == DONOR
    assert owner_of(file.with_name("none")) is None
    assert not file.with_name("none").exists()
    file.with_name("other").write_bytes(b"nonsense" * 100)
    assert owner_of(file.with_name("other")) is None
