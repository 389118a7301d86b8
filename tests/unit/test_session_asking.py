# SPDX-License-Identifier: MIT
"""A host asks a donor to be paired without a token: what it sends and keeps at each step, and how each step fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox import __version__, paths
from ghostbox.cli.output import Stages
from ghostbox.donors import code, failures, pairings, trust
from ghostbox.donors.address import Address
from ghostbox.donors.pairings import Pairing
from ghostbox.errors import (
    DeadlineExceeded,
    GhostboxError,
    Interrupted,
    NoAnswer,
    PairingRefused,
    Refused,
    Untrusted,
    UsageError,
)
from ghostbox.session import asking
from ghostbox.session.asking import Dialogue
from ghostbox.system import consent
from helpers.tls_server import Answer, Seen, TlsServer, tls_server

NUMBER, NONCE, CLIENT = "0123456789abcdef", "d0" * 32, "fedcba9876543210"
ASK, OPEN, LOOK = "POST /v1/pairing-requests", "PUT /v1/pairing-requests/self", "GET /v1/pairing-requests/self"
WITHDRAW = "DELETE /v1/pairing-requests/self"
PAIRED = {
    "client": CLIENT, "donor": "d1", "name": "attic", "machine": "m1", "version": __version__, "role": "user",
    "max_memory_bytes": 4096,
}  # fmt: skip
PENDING: Answer = (200, {"state": "pending", "pairing": None})
APPROVED: Answer = (200, {"state": "approved", "pairing": PAIRED})
ANSWERS: dict[str, Answer] = {ASK: (201, {"id": NUMBER, "nonce": NONCE}), OPEN: PENDING, LOOK: APPROVED}


@pytest.fixture
def own(ghostbox_dirs: Path, monkeypatch: pytest.MonkeyPatch) -> paths.Paths:
    monkeypatch.setattr(consent, "_rules", [])
    monkeypatch.setattr(asking, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(failures, "_PROBE_TIMEOUT_S", 0.05)  # no server here is one for NBD, which would greet
    return paths.find()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TlsServer]:
    with tls_server(tmp_path, ANSWERS) as running:
        yield running


def pair(
    server: TlsServer,
    own: paths.Paths,
    *,
    shown: list[str] | None = None,
    agrees: Callable[[str], bool] | None = lambda _words: True,
    timeout_s: float = 20.0,
) -> Pairing:
    seen = [] if shown is None else shown
    dialogue = Dialogue(lambda _address, words: seen.append(words), agrees, timeout_s)
    return asking.pair(server.address, server.fingerprint.hex(), own, dialogue, Stages(quiet=True))


def stored(own: paths.Paths, name: str = "pairing-requests.json", key: str = "requests") -> list[dict[str, Any]]:
    file = own.state / name
    return list(json.loads(file.read_text())[key]) if file.exists() else []


def refused(code_: str, status: int = 403) -> Answer:
    return status, {"error": {"code": code_, "message": f"the {code_} text", "hint": f"the {code_} hint"}}


def bodies(server: TlsServer, what: str) -> list[dict[str, Any]]:
    return [json.loads(each.body) for each in server.requests if f"{each.method} {each.path}" == what]


# --- the steps ---


def test_the_words_are_of_what_both_sides_know_and_the_donor_gets_a_digest_of_the_credential(
    own: paths.Paths, server: TlsServer
) -> None:
    shown: list[str] = []
    asked: list[str] = []
    made = pair(server, own, shown=shown, agrees=lambda words: asked.append(words) is None)  # type: ignore[func-returns-value]
    [ask], [opened] = bodies(server, ASK), bodies(server, OPEN)
    sha256 = code.digest(made.credential)
    assert ask["credential_sha256"] == sha256
    assert ask["commitment"] == code.commitment(opened["nonce"], sha256, ask["host_id"])
    assert ask["host_id"] == pairings.host_id(own)
    assert shown == asked == [code.words(server.fingerprint.hex(), sha256, opened["nonce"], NONCE)]
    assert (made.client, made.name, made.addresses, made.max_memory_bytes) == (CLIENT, "attic", (server.address,), 4096)
    assert pairings.load(own) == (made,)
    assert stored(own) == []


def test_no_request_shows_the_credential_and_only_the_look_shows_the_nonce(own: paths.Paths, server: TlsServer) -> None:
    made = pair(server, own)
    nonce = bodies(server, OPEN)[0]["nonce"]
    assert [each.authorization for each in server.requests] == [None, None, f"Bearer {NUMBER}.{nonce}"]
    assert nonce not in server.requests[0].body
    assert not any(made.credential in f"{each.body}{each.authorization}" for each in server.requests)
    file = own.state / "pairing-requests.json"
    assert file.stat().st_mode & 0o777 == 0o600


def test_all_that_a_step_needs_is_on_disk_before_it(own: paths.Paths, server: TlsServer) -> None:
    seen: list[tuple[str, str, int]] = []

    def keeping(answer: Answer) -> Answer:
        def look(_request: Seen) -> Any:
            [entry] = stored(own)
            seen.append((entry["number"], entry["donor_nonce"], len(entry["credential"])))
            return answer

        return look

    server.answers |= {ASK: keeping(ANSWERS[ASK]), OPEN: keeping(PENDING), LOOK: keeping(APPROVED)}
    pair(server, own)
    assert seen == [("", "", 64), (NUMBER, NONCE, 64), (NUMBER, NONCE, 64)]


@pytest.mark.parametrize("step", [ASK, OPEN])
def test_a_step_whose_answer_is_lost_is_repeated_by_the_same_command(
    own: paths.Paths, server: TlsServer, step: str
) -> None:
    server.answers[step] = lambda _request: None
    with pytest.raises(NoAnswer):
        pair(server, own)
    server.answers[step] = ANSWERS[step]
    pair(server, own)
    first, second = bodies(server, step)
    assert first == second
    assert len(bodies(server, ASK)) == (2 if step == ASK else 1)


@pytest.mark.parametrize("step", [ASK, OPEN, LOOK])
def test_a_command_that_is_killed_at_any_step_is_finished_by_the_next(
    own: paths.Paths, server: TlsServer, step: str
) -> None:
    command = [sys.executable, "-m", "ghostbox", "donor", "add", server.address, "--yes"]
    running = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def kill(_request: Seen) -> None:
        running.send_signal(signal.SIGKILL)
        running.wait(10)

    server.answers[step] = kill
    assert running.wait(60) == -signal.SIGKILL
    assert pairings.load(own) == ()
    server.answers[step] = ANSWERS[step]
    made = pair(server, own)
    assert {each["credential_sha256"] for each in bodies(server, ASK)} == {code.digest(made.credential)}
    assert len(bodies(server, ASK)) == (2 if step == ASK else 1)


def test_a_donor_that_does_not_answer_for_a_while_is_asked_on(own: paths.Paths, server: TlsServer) -> None:
    answers: list[Any] = [None, refused("too-many", 429), refused("internal", 500), PENDING, APPROVED]
    server.answers[LOOK] = lambda _request: answers.pop(0)
    assert pair(server, own).client == CLIENT
    assert answers == []


def test_a_request_that_the_donor_has_forgotten_is_made_anew(own: paths.Paths, server: TlsServer) -> None:
    server.answers[LOOK] = PENDING
    with pytest.raises(DeadlineExceeded):
        pair(server, own, timeout_s=0.0)
    opened: list[Any] = [refused("request-unknown", 404), PENDING]
    server.answers |= {OPEN: lambda _request: opened.pop(0), LOOK: APPROVED}
    pair(server, own)
    first, second = bodies(server, ASK)
    assert first["commitment"] != second["commitment"]
    assert first["credential_sha256"] != second["credential_sha256"]


# --- how it ends otherwise ---


def test_a_denied_host_is_told_so_and_asks_anew_if_it_asks_again(own: paths.Paths, server: TlsServer) -> None:
    server.answers[LOOK] = (200, {"state": "denied", "pairing": None})
    with pytest.raises(PairingRefused, match=f"the owner of donor {server.address} has denied this host") as caught:
        pair(server, own)
    assert f"ask again: ghostbox donor add {server.address}" in str(caught.value.hint)
    assert (stored(own), pairings.load(own)) == ([], ())


@pytest.mark.parametrize(
    ("step", "word"),
    [(ASK, "request-limit"), (OPEN, "request-opening"), (OPEN, "request-expired"), (LOOK, "request-expired")],
)
def test_what_the_donor_refuses_is_said_with_its_hint_and_given_up(
    own: paths.Paths, server: TlsServer, step: str, word: str
) -> None:
    server.answers[step] = refused(word)
    with pytest.raises(PairingRefused, match=f"donor {server.address}: the {word} text") as caught:
        pair(server, own)
    assert caught.value.hint == f"the {word} hint"
    assert (stored(own), pairings.load(own)) == ([], ())


REFUSALS: list[Answer] = [refused("not-paired", 401), refused("request-decided", 409), lambda _request: None]
"""What a host gets that cannot take its request back: from an older donor, just after an approval, from none."""


def withdrawn(server: TlsServer) -> list[str | None]:
    return [each.authorization for each in server.requests if f"{each.method} {each.path}" == WITHDRAW]


def test_a_request_that_nobody_decides_is_taken_back(own: paths.Paths, server: TlsServer) -> None:
    server.answers |= {LOOK: PENDING, WITHDRAW: (204, None)}
    with pytest.raises(DeadlineExceeded, match="has not decided within 0.0 s") as caught:
        pair(server, own, timeout_s=0.0)
    assert caught.value.why == "the request is taken back"
    assert caught.value.hint == f"ask again: ghostbox donor add {server.address}"
    assert withdrawn(server) == [f"Bearer {NUMBER}.{bodies(server, OPEN)[0]['nonce']}"]
    server.answers[LOOK] = APPROVED
    pair(server, own)
    assert (len(bodies(server, ASK)), len(bodies(server, OPEN))) == (1, 2)


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_request_that_cannot_be_taken_back_waits_at_the_donor(
    own: paths.Paths, server: TlsServer, answer: Answer
) -> None:
    server.answers |= {LOOK: PENDING, WITHDRAW: answer}
    with pytest.raises(DeadlineExceeded, match="has not decided within 0.0 s") as caught:
        pair(server, own, timeout_s=0.0)
    assert caught.value.why == "the request waits there"
    assert f"ghostbox donor add {server.address} goes on with it" in str(caught.value.hint)
    assert "ghostbox memserver approve " in str(caught.value.hint)
    server.answers[LOOK] = APPROVED
    pair(server, own)
    assert len(bodies(server, ASK)) == 1


@pytest.mark.parametrize(("answer", "said"), [((204, None), "is taken back"), (refused("internal", 500), "waits")])
def test_ctrl_c_takes_the_request_back(
    own: paths.Paths, server: TlsServer, monkeypatch: pytest.MonkeyPatch, answer: Answer, said: str
) -> None:
    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    server.answers |= {LOOK: PENDING, WITHDRAW: answer}
    monkeypatch.setattr(time, "sleep", interrupt)
    with pytest.raises(Interrupted, match=f"interrupted: the request {said} at donor {server.address}"):
        pair(server, own)
    assert (len(withdrawn(server)), len(stored(own))) == (1, 1)


def test_ctrl_c_at_the_question_takes_the_request_back_too(own: paths.Paths, server: TlsServer) -> None:
    def interrupt(_words: str) -> bool:
        raise KeyboardInterrupt

    server.answers[WITHDRAW] = (204, None)
    with pytest.raises(Interrupted, match=f"interrupted: the request is taken back at donor {server.address}"):
        pair(server, own, agrees=interrupt)
    assert len(withdrawn(server)) == 1


def test_a_user_who_interrupts_the_taking_back_waits_no_longer(own: paths.Paths, server: TlsServer) -> None:
    def interrupt(_request: Seen) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # the main thread gets it, which waits for the answer
        ended.wait(30)

    ended = threading.Event()
    server.answers |= {LOOK: PENDING, WITHDRAW: interrupt}
    with pytest.raises(DeadlineExceeded) as caught:
        pair(server, own, timeout_s=0.0)
    ended.set()
    assert caught.value.why == "the request waits there"


def test_a_user_who_sees_other_words_is_not_paired_with_whoever_approved(own: paths.Paths, server: TlsServer) -> None:
    with pytest.raises(
        Refused, match=f"the words differ: this host is not paired with donor {server.address}"
    ) as caught:
        pair(server, own, agrees=lambda _words: False)
    assert len(withdrawn(server)) == 1
    assert "ghostbox memserver revoke " in str(caught.value.hint)
    assert (stored(own), pairings.load(own)) == ([], ())


def test_without_anybody_to_look_at_the_words_nothing_is_asked(own: paths.Paths, server: TlsServer) -> None:
    with pytest.raises(UsageError, match="whether both screens show the same words cannot be asked without a terminal"):
        pair(server, own, agrees=None)
    assert (server.requests, stored(own)) == ([], [])


CHANGED = "shows another certificate than when this host asked to be paired"


@pytest.mark.parametrize("step", [ASK, OPEN, LOOK])
def test_a_certificate_that_changes_between_the_steps_ends_the_request(
    own: paths.Paths, server: TlsServer, tmp_path: Path, step: str
) -> None:
    """A later step is pinned to the certificate that was seen first: another server gets nothing of it."""
    with tls_server(tmp_path, ANSWERS, name="other") as other:
        if step != ASK:  # the request was begun with the first server
            server.answers[step] = PENDING if step == LOOK else lambda _request: None
            with pytest.raises(GhostboxError):
                pair(server, own, timeout_s=0.0)
        moved = TlsServer(other.address, server.fingerprint, {})
        with pytest.raises(Untrusted, match=CHANGED) as caught:
            pair(moved, own)
        assert "ask again: ghostbox donor add" in str(caught.value.hint)
        assert other.requests == []
    assert stored(own) == []


def test_a_donor_with_another_certificate_than_the_waiting_request_is_not_asked(
    own: paths.Paths, server: TlsServer
) -> None:
    server.answers[LOOK] = PENDING
    with pytest.raises(DeadlineExceeded):
        pair(server, own, timeout_s=0.0)
    before = len(server.requests)
    with pytest.raises(Untrusted, match=CHANGED):
        pair(TlsServer(server.address, b"\5" * 32, {}), own)
    assert (len(server.requests), stored(own)) == (before, [])


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        (ASK, (201, {"id": "x", "nonce": NONCE})),
        (ASK, (201, {"id": NUMBER, "nonce": "00"})),
        (OPEN, (200, {"state": "fine", "pairing": None})),
        (OPEN, (200, {"state": "approved", "pairing": None})),
        (OPEN, (200, {"state": "approved", "pairing": {**PAIRED, "client": "x\r\ny"}})),
    ],
)
def test_answers_of_a_strange_form_are_no_donors(
    own: paths.Paths, server: TlsServer, step: str, answer: Answer
) -> None:
    server.answers[step] = answer
    with pytest.raises(NoAnswer, match="it is not a GhostBox donor"):
        pair(server, own)
    assert pairings.load(own) == ()


@pytest.mark.parametrize("status", [401, 404])
def test_a_donor_that_pairs_by_tokens_alone_is_of_another_version(
    own: paths.Paths, server: TlsServer, status: int
) -> None:
    server.answers[ASK] = refused("not-paired" if status == 401 else "unknown-route", status)
    server.answers["GET /v1/version"] = (200, {"version": "0.0.1"})
    with pytest.raises(NoAnswer, match="of versions that do not understand each other"):
        pair(server, own)


# --- whether there is something to ask ---


def test_a_donor_that_speaks_tls_and_is_not_paired_is_asked(own: paths.Paths, server: TlsServer) -> None:
    assert asking.wanted(server.address, own) == server.fingerprint.hex()
    made = pair(server, own)
    server.answers["GET /v1/status"] = refused("suspended")
    assert asking.wanted(server.address, own) is None
    for ended in ("not-paired", "revoked"):
        server.answers["GET /v1/status"] = refused(ended)
        assert asking.wanted(server.address, own) == made.fingerprint


def test_a_donor_without_tls_is_not_asked_where_it_may_be_used_so_and_pairs_with_nobody_elsewhere(
    own: paths.Paths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tls_server(tmp_path, {}, plain=True) as plain:
        assert asking.wanted(plain.address, own) is None
        monkeypatch.setattr(Address, "is_loopback", property(lambda _self: False))
        with pytest.raises(
            Untrusted, match=f"donor {plain.address} is not paired with this host, and serves without TLS"
        ) as caught:
            asking.wanted(plain.address, own)
        assert caught.value.hint == f"{trust.PAIR_HINT}; or, on a network that you trust wholly, add --insecure"
    with pytest.raises(NoAnswer, match=f"cannot reach donor {plain.address}"):
        asking.wanted(plain.address, own)
