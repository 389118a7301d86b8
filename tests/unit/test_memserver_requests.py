# SPDX-License-Identifier: MIT
"""A donor's table of hosts that ask to be paired: what each step needs, what is bounded, what clocks and kills do."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ghostbox.donors import code
from ghostbox.donors.request_models import PairingAsk, PairingAsked
from ghostbox.memserver.clients import Client, ClientStore, State, open_store
from ghostbox.memserver.refusal import RequestRefused
from ghostbox.memserver.requests import EXPIRE_S, MOST, MOST_EACH, OPEN_WITHIN_S, RequestStore, Stage, hosts_in
from ghostbox.memserver.role_store import RoleStore
from ghostbox.units import GIB
from helpers import clients_file
from helpers.clocks import SetClock

DONOR = clients_file.DONOR
clock, file, store = clients_file.clock, clients_file.file, clients_file.store
FINGERPRINT = b"\xf1" * 32
HOME = "192.0.2.7:5000"
DAY_S = 86400.0


@pytest.fixture
def requests(store: ClientStore) -> RequestStore:
    return RequestStore(store, FINGERPRINT)


@dataclass(frozen=True)
class Asker:
    """Is a host with what it has drawn."""

    host: str = "tower"
    nonce: str = "0a" * 32
    credential: str = "c1" * 32

    @property
    def credential_sha256(self) -> str:
        return code.digest(self.credential)

    def word(self, **changed: str) -> PairingAsk:
        committed = code.commitment(self.nonce, self.credential_sha256, "11" * 8)
        said = {"commitment": committed, "credential_sha256": self.credential_sha256}
        return PairingAsk(**{**said, "host": self.host, "host_id": "11" * 8, "version": "0.1", **changed})

    def words(self, answer: PairingAsked) -> str:
        return code.words(FINGERPRINT.hex(), self.credential_sha256, self.nonce, answer.nonce)


def another(host: str = "attic") -> Asker:
    return Asker(host, secrets.token_hex(32), secrets.token_hex(32))


def asks(requests: RequestStore, asker: Asker, address: str | None = HOME, paired: Client | None = None) -> str:
    """Ask, and open; return the request's id."""
    answer = requests.ask(asker.word(), address, paired)
    requests.open(answer.id, asker.nonce)
    return answer.id


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(RequestRefused) as caught:
        work()
    return caught.value.code


# --- the steps ---


def test_host_and_donor_show_the_same_words_and_the_approved_host_is_a_client(
    requests: RequestStore, store: ClientStore
) -> None:
    asker = Asker()
    answer = requests.ask(asker.word(), HOME)
    assert requests.shown() == []  # it has no code yet
    found, is_new = requests.open(answer.id, asker.nonce)
    assert (found.code, is_new) == (asker.words(answer), True)
    assert (requests.look(answer.id, asker.nonce)[0].stage, store.clients()) == (Stage.PENDING, [])
    assert [(each.host, each.code, each.address) for each in requests.shown()] == [("tower", found.code, HOME)]
    made = requests.approve(answer.id, "guest", 8 * GIB)
    [client] = store.clients()
    assert (made.stage, made.client) == (Stage.APPROVED, client.id)
    assert (client.host, client.role, client.max_memory_bytes, client.state) == (
        "tower",
        "guest",
        8 * GIB,
        State.ACTIVE,
    )
    assert store.authenticate(client.id, asker.credential, None) == client
    assert requests.look(answer.id, asker.nonce)[1] == client
    assert requests.shown() == []


def test_each_step_may_be_repeated_after_a_lost_answer(requests: RequestStore, store: ClientStore) -> None:
    asker = Asker()
    answer = requests.ask(asker.word(), HOME)
    assert requests.ask(asker.word(), HOME) == answer
    first, _ = requests.open(answer.id, asker.nonce)
    assert requests.open(answer.id, asker.nonce) == (first, False)
    assert requests.ask(asker.word(), HOME) == answer
    made = requests.approve(answer.id)
    assert requests.approve(answer.id, "other") == made
    assert len(store.clients()) == 1
    assert requests.open(answer.id, asker.nonce) == (made, False)


def test_a_nonce_that_was_not_committed_to_is_refused(requests: RequestStore) -> None:
    asker = Asker()
    answer = requests.ask(asker.word(), HOME)
    with pytest.raises(RequestRefused, match="the host opens its commitment with another nonce") as caught:
        requests.open(answer.id, "0b" * 32)
    assert caught.value.code == "request-opening"
    assert requests.shown() == []
    for changed in ({"host_id": "12" * 8}, {"credential_sha256": "00" * 32}):
        lied = requests.ask(another().word(**changed), "198.51.100.1:1")
        assert refusal(lambda number=lied.id: requests.open(number, asker.nonce)) == "request-opening"  # type: ignore[misc]
    requests.open(answer.id, asker.nonce)


def test_nobody_looks_at_a_request_but_who_knows_its_nonce(requests: RequestStore) -> None:
    asker = Asker()
    answer = requests.ask(asker.word(), HOME)
    assert refusal(lambda: requests.look(answer.id, asker.nonce)) == "request-unknown"  # it is not opened
    requests.open(answer.id, asker.nonce)
    for number, nonce in ((answer.id, "00" * 32), ("00" * 8, asker.nonce), ("", "")):
        assert refusal(lambda: requests.look(number, nonce)) == "request-unknown"  # noqa: B023 - is called at once


def test_a_denied_host_is_told_so_and_may_ask_again(requests: RequestStore, store: ClientStore) -> None:
    asker = Asker()
    number = asks(requests, asker)
    assert requests.deny(number) == requests.deny(number)
    assert requests.look(number, asker.nonce)[0].stage is Stage.DENIED
    assert [each.stage for each in requests.shown()] == [Stage.DENIED]
    with pytest.raises(RequestRefused, match="the request of tower is denied already"):
        requests.approve(number)
    assert store.clients() == []
    assert requests.approve(asks(requests, another())).stage is Stage.APPROVED


def test_a_request_that_is_taken_back_is_not_shown_and_nobody_can_approve_it(requests: RequestStore) -> None:
    asker = Asker()
    number = asks(requests, asker)
    for wrong in ((number, "00" * 32), ("00" * 8, asker.nonce), ("", "")):
        assert refusal(lambda: requests.withdraw(*wrong)) == "request-unknown"  # noqa: B023 - is called at once
    assert len(requests.shown()) == 1
    assert requests.withdraw(number, asker.nonce).stage is Stage.PENDING
    assert requests.shown() == []
    assert refusal(lambda: requests.look(number, asker.nonce)) == "request-unknown"
    for decide in (requests.approve, requests.deny):
        assert refusal(lambda: decide(number)) == "not-found"  # noqa: B023 - is called at once


def test_a_host_that_asks_on_within_the_minute_has_its_request_again_and_later_a_new_one(
    requests: RequestStore, clock: SetClock
) -> None:
    asker = Asker()
    answer = requests.ask(asker.word(), HOME)
    before, _ = requests.open(answer.id, asker.nonce)
    requests.withdraw(answer.id, asker.nonce)
    again, is_new = requests.open(answer.id, asker.nonce)
    assert (again.code, again.stage, again.expires_at, is_new) == (before.code, Stage.PENDING, before.expires_at, False)
    assert requests.shown() == [again]
    requests.withdraw(answer.id, asker.nonce)
    clock.pass_s(OPEN_WITHIN_S)
    assert refusal(lambda: requests.open(answer.id, asker.nonce)) == "request-expired"
    assert requests.ask(asker.word(), HOME).id != answer.id


def test_taking_back_makes_no_room_for_more_requests_in_a_minute(requests: RequestStore, clock: SetClock) -> None:
    askers = [another() for _ in range(MOST_EACH)]
    for asker in askers:
        requests.withdraw(asks(requests, asker), asker.nonce)
    assert refusal(lambda: requests.ask(another().word(), HOME)) == "request-limit"
    clock.pass_s(OPEN_WITHIN_S)
    old = another()
    number = asks(requests, old)
    clock.pass_s(OPEN_WITHIN_S)
    requests.withdraw(number, old.nonce)
    for _ in range(MOST_EACH):
        requests.ask(another().word(), HOME)


def test_a_decision_is_not_taken_back_by_the_host_but_ended(requests: RequestStore, store: ClientStore) -> None:
    denied, paired = another(), another()
    numbers = [asks(requests, each) for each in (denied, paired)]
    requests.deny(numbers[0])
    assert requests.withdraw(numbers[0], denied.nonce).stage is Stage.DENIED
    assert {each.stage for each in requests.shown()} == {Stage.DENIED, Stage.PENDING}
    requests.approve(numbers[1])
    with pytest.raises(RequestRefused, match="the request of attic is approved already"):
        requests.withdraw(numbers[1], paired.nonce)
    [client] = store.clients()
    requests.end(numbers[1], client)
    assert store.clients() == []
    assert refusal(lambda: requests.look(numbers[1], paired.nonce)) == "request-unknown"


def test_what_cannot_be_decided_is_said(requests: RequestStore) -> None:
    number = asks(requests, Asker())
    requests.approve(number)
    with pytest.raises(RequestRefused, match="the request of tower is approved already"):
        requests.deny(number)
    unopened = requests.ask(another().word(), HOME).id
    for unknown in ("00" * 8, unopened):
        with pytest.raises(RequestRefused, match=f"no request '{unknown}'"):
            requests.approve(unknown)


def test_a_host_that_is_paired_already_stays_the_same_client(requests: RequestStore, store: ClientStore) -> None:
    first = requests.approve(asks(requests, Asker()), "user", 8 * GIB)
    [before] = store.clients()
    again = another("tower")
    number = asks(requests, again, paired=before)
    assert store.authenticate(before.id, Asker().credential, None) == before  # until it is approved
    assert requests.approve(number, "user", GIB).client == first.client
    [now] = store.clients()
    assert (now.id, now.max_memory_bytes) == (before.id, GIB)
    assert store.authenticate(now.id, Asker().credential, None) is None
    assert store.authenticate(now.id, again.credential, None) == now


def test_a_client_that_was_revoked_while_it_asked_becomes_a_new_one(requests: RequestStore, store: ClientStore) -> None:
    requests.approve(asks(requests, Asker()))
    [before] = store.clients()
    number = asks(requests, another("tower"), paired=before)
    store.set_state(before.id, State.REVOKED)
    assert requests.approve(number).client != before.id
    assert {each.state for each in store.clients()} == {State.REVOKED, State.ACTIVE}


def test_a_host_whose_pairing_was_ended_meanwhile_is_told_so(requests: RequestStore, store: ClientStore) -> None:
    asker = Asker()
    number = asks(requests, asker)
    client = requests.approve(number).client
    assert client is not None
    store.set_state(client, State.REVOKED)
    assert refusal(lambda: requests.look(number, asker.nonce)) == "revoked"
    store.remove(client)
    assert refusal(lambda: requests.look(number, asker.nonce)) == "request-unknown"


def test_a_donor_that_trusts_its_network_approves_by_itself_and_raises_no_limit(store: ClientStore) -> None:
    asker = Asker()
    trusting = RequestStore(store, FINGERPRINT, trusts_network=True)
    found, _ = trusting.open(trusting.ask(asker.word(), HOME).id, asker.nonce)
    assert found.stage is Stage.APPROVED
    [client] = store.clients()
    assert (client.id, client.role, client.max_memory_bytes) == (found.client, "user", None)
    limited = RequestStore(store, FINGERPRINT).approve(
        asks(RequestStore(store, FINGERPRINT), another(), paired=client), "guest", GIB
    )
    assert limited.client == client.id
    RoleStore(store).set_client(client.id, None, {"leases": 3})
    asks(trusting, another(), "198.51.100.1:1", store.client(client.id))
    assert [(each.role, each.max_memory_bytes) for each in store.clients()] == [("guest", GIB)]
    assert RoleStore(store).standings(GIB)[client.id].limits.leases == 3


# --- bounds and clocks ---


def test_an_address_has_two_requests_at_a_time_and_all_have_sixteen(requests: RequestStore) -> None:
    for port in range(MOST_EACH):
        requests.ask(another().word(), f"192.0.2.7:{port + 1}")
    with pytest.raises(RequestRefused, match="2 requests from this address wait for the donor's owner") as caught:
        requests.ask(another().word(), HOME)
    assert caught.value.code == "request-limit"
    for number in range(MOST - MOST_EACH):
        requests.ask(another().word(), f"[2001:db8:0:{number:x}::1]:1")
    with pytest.raises(RequestRefused, match="16 requests from all addresses wait for the donor's owner"):
        requests.ask(another().word(), "198.51.100.1:1")


def test_a_decision_makes_room(requests: RequestStore) -> None:
    numbers = [asks(requests, another()) for _ in range(MOST_EACH)]
    assert refusal(lambda: requests.ask(another().word(), HOME)) == "request-limit"
    requests.deny(numbers[0])
    requests.ask(another().word(), HOME)


def test_a_request_that_is_not_opened_in_time_is_gone(requests: RequestStore, clock: SetClock) -> None:
    asker = Asker()
    answer = requests.ask(asker.word(), HOME)
    clock.pass_s(OPEN_WITHIN_S)
    assert refusal(lambda: requests.open(answer.id, asker.nonce)) == "request-expired"
    assert requests.ask(asker.word(), HOME).id != answer.id
    assert refusal(lambda: requests.open(answer.id, asker.nonce)) == "request-unknown"


@pytest.mark.parametrize("jump_s", [-DAY_S, 0.0, DAY_S])
def test_a_request_expires_after_an_hour_whatever_the_clock_is_set_to(
    requests: RequestStore, clock: SetClock, jump_s: float
) -> None:
    asker = Asker()
    number = asks(requests, asker)
    clock.wall += jump_s
    clock.pass_s(EXPIRE_S - 1)
    assert len(requests.shown()) == 1
    clock.pass_s(1)
    assert requests.shown() == []
    with pytest.raises(RequestRefused, match="the request of tower has expired: nobody approved it in time"):
        requests.look(number, asker.nonce)
    for decide in (requests.approve, requests.deny):
        assert refusal(lambda: decide(number)) == "request-expired"  # noqa: B023 - is called at once


def test_what_is_kept_is_bounded(requests: RequestStore, file: Path, clock: SetClock) -> None:
    def n_rows() -> int:
        db = sqlite3.connect(file)
        (count,) = db.execute("SELECT count(*) FROM requests").fetchone()
        db.close()
        return int(count)

    for hour in range(5):
        for number in range(MOST):
            asks(requests, another(), f"198.51.{hour}.{number}:1")
        clock.pass_s(EXPIRE_S)
    assert n_rows() <= 2 * MOST
    decided = asks(requests, another())
    requests.deny(decided)
    clock.wall -= 30 * DAY_S  # a clock that is set back makes no decision old
    requests.ask(another().word(), HOME)
    assert [each.id for each in requests.shown()] == [decided]
    clock.wall += 30 * DAY_S
    clock.pass_s(7 * DAY_S)
    requests.ask(another().word(), HOME)
    assert requests.shown() == []
    assert n_rows() <= MOST + 1


def test_no_secret_is_in_the_file(requests: RequestStore, file: Path) -> None:
    asker = Asker()
    requests.approve(asks(requests, asker))
    kept = file.read_bytes()
    for secret in (asker.nonce, asker.credential):
        assert secret.encode() not in kept
        assert bytes.fromhex(secret) not in kept


def test_hosts_are_named_for_the_shell(requests: RequestStore, file: Path) -> None:
    requests.approve(asks(requests, another("tower")))
    asks(requests, another("attic"))
    assert hosts_in(file) == ({"attic"}, {"tower"})
    with pytest.raises(OSError, match="unable to open database file"):
        hosts_in(file.with_name("none"))


def test_a_file_of_an_earlier_ghostbox_gets_the_table(requests: RequestStore, store: ClientStore, file: Path) -> None:
    asks(requests, Asker())
    with store.changing() as db:
        db.execute("DROP TABLE requests")
    store.close()
    with open_store(file, DONOR) as again:
        table = RequestStore(again, FINGERPRINT)
        assert table.shown() == []
        asks(table, Asker())
        assert len(table.shown()) == 1


# --- kills ---


def _killed(file: Path, step: Callable[[RequestStore], object], after: int) -> int:
    """Do a step in a process of its own that is killed before its SQL statement number ``after``; return its status."""

    def counted(count: Callable[[str], None]) -> None:
        store = open_store(file, DONOR)
        table = RequestStore(store, FINGERPRINT)
        store._connection.set_trace_callback(count)
        step(table)

    return clients_file.killed(counted, after)


@pytest.mark.parametrize("step", ["ask", "open", "approve", "deny", "withdraw", "trust"])
def test_a_kill_between_any_two_statements_has_made_a_step_wholly_or_not_and_it_can_be_repeated(
    file: Path, step: str
) -> None:
    asker = Asker()
    seen, after, status = set(), 0, -9
    while status != 0:
        file.unlink(missing_ok=True)
        with open_store(file, DONOR) as store:
            table = RequestStore(store, FINGERPRINT)
            number = table.ask(asker.word(), HOME).id if step != "ask" else ""
            if step in ("approve", "deny", "withdraw"):
                table.open(number, asker.nonce)
        steps: dict[str, Callable[[RequestStore], object]] = {
            "ask": lambda table: table.ask(asker.word(), HOME),
            "open": lambda table, number=number: table.open(number, asker.nonce),  # type: ignore[misc]
            "approve": lambda table, number=number: table.approve(number),  # type: ignore[misc]
            "deny": lambda table, number=number: table.deny(number),  # type: ignore[misc]
            "withdraw": lambda table, number=number: table.withdraw(number, asker.nonce),  # type: ignore[misc]
            "trust": lambda table, number=number: _trusting(table).open(number, asker.nonce),  # type: ignore[misc]
        }
        status = _killed(file, steps[step], after)
        with open_store(file, DONOR) as store:
            table = RequestStore(store, FINGERPRINT)
            stages = [(each.stage, each.client) for each in table.shown()]
            seen.add((len(stages), len(store.clients())))
            approved = [each.id for each in store.clients()]
            if step in ("approve", "trust") and approved:
                assert table.look(number, asker.nonce)[1] == store.clients()[0]
            steps[step](table)
            assert len(store.clients()) == (1 if step in ("approve", "trust") else 0)
        after += 1
    wanted = {"ask": {(0, 0)}, "open": {(0, 0), (1, 0)}, "approve": {(1, 0), (0, 1)}, "deny": {(1, 0)}}
    wanted |= {"withdraw": {(1, 0), (0, 0)}, "trust": {(0, 0), (0, 1)}}
    assert seen == wanted[step]
    assert after > 2


def _trusting(table: RequestStore) -> RequestStore:
    return RequestStore(table._store, FINGERPRINT, trusts_network=True)
