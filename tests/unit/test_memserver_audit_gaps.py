# SPDX-License-Identifier: MIT
"""What a donor recorded is in its audit log, also if it was killed before it wrote the line."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ghostbox.donors.models import Holder, PairingRequest
from ghostbox.memserver import audit, audit_gaps, records
from ghostbox.memserver.audit import AuditLog, Event
from ghostbox.memserver.clients import Client, ClientStore, State, open_store
from ghostbox.memserver.data_plane import DataPlane, PlaneSettings
from ghostbox.memserver.leases import DrainCause, LeaseBook
from ghostbox.memserver.records import UNKNOWN_HOLDER, LeaseRecord, PlaneRecord, Records
from ghostbox.system import process_table
from helpers.fake_control import fake_control
from helpers.killed import killed_at

ANA = Holder("tower", "ana")
EXPORT = {"name": "one", "size_bytes": 4096, "resident_bytes": 0, "incarnation": "a", "connections": 0, "idle_s": 0}
STATUS = {"pid": 1, "host": "127.0.0.1", "port": 7, "size_bytes": 8192, "exported_bytes": 0, "resident_bytes": 0}
LATE = "found at this start; when it happened, the donor was killed, or the log could not be written"


@pytest.fixture
def log(tmp_path: Path) -> AuditLog:
    found = AuditLog(audit.path(tmp_path))
    found.note(Event.STARTED)
    return found


def said(tmp_path: Path) -> list[tuple[str | None, ...]]:
    """Return all lines but the first."""
    lines = list(audit.read(audit.path(tmp_path)))[1:]
    return [(each.event, each.lease, each.host, each.reason) for each in lines]


def lease(name: str, **changes: object) -> LeaseRecord:
    made = LeaseRecord(name, 4096, ANA, records.now(), "a")
    return replace(made, **changes)  # type: ignore[arg-type]


def held(*leases: LeaseRecord) -> Records:
    return Records(leases={each.name: each for each in leases})


@contextmanager
def book(tmp_path: Path, *exports: object) -> Iterator[LeaseBook]:
    """Yield a lease book over the records of the one before; its data plane has these exports."""
    with tempfile.TemporaryDirectory(prefix="gb-") as place:
        control = Path(place) / "control.sock"
        settings = PlaneSettings(Path("/none"), control, tmp_path / "log", "127.0.0.1", 0, 8192, "id", "machine")
        own = PlaneRecord(os.getpid(), process_table.start_ticks(os.getpid()), process_table.boot_id(), "i")
        answers = {"status": {**STATUS, "exports": exports}, "export-add": EXPORT, "export-remove": {}}
        with fake_control(control, answers):
            plane = DataPlane(settings, own, lambda: None)
            kept = tmp_path / "leases.json"
            try:
                found = LeaseBook(plane, kept, records.load(kept), lambda: None, AuditLog(audit.path(tmp_path)))
                found.reconcile()
                yield found
            finally:
                plane.close()


def test_lease_whose_line_a_kill_cut_off_is_in_the_log_after_the_next_start(tmp_path: Path, log: AuditLog) -> None:
    with book(tmp_path) as first:
        killed_at(AuditLog, "note", lambda: first.create("one", 4096, ANA))
    assert said(tmp_path) == []
    for _ in range(2):
        with book(tmp_path, EXPORT):
            assert said(tmp_path) == [("lease-made", "one", "tower", LATE)]


def test_end_of_a_lease_whose_line_a_kill_cut_off_is_in_the_log_after_the_next_start(
    tmp_path: Path, log: AuditLog
) -> None:
    with book(tmp_path) as first:
        first.create("one", 4096, ANA)
        killed_at(AuditLog, "note", lambda: first.release("one", force=False))
    for _ in range(2):
        with book(tmp_path):
            assert said(tmp_path)[1:] == [("lease-ended", "one", "tower", LATE)]


def test_drain_whose_line_a_kill_cut_off_is_in_the_log_after_the_next_start(tmp_path: Path, log: AuditLog) -> None:
    with book(tmp_path) as first:
        killed_at(AuditLog, "note", lambda: first.drain(DrainCause.ASKED))
    for _ in range(2):
        with book(tmp_path) as second:
            assert said(tmp_path) == [("drain-begun", None, None, "asked")]
    killed_at(AuditLog, "note", lambda: second.stop_draining(DrainCause.ASKED))
    with book(tmp_path):
        assert said(tmp_path)[1:] == [("drain-ended", None, None, "asked")]


def test_log_that_says_all_gets_no_line(tmp_path: Path, log: AuditLog) -> None:
    again = lease("again", created_at="2026-01-01T00:00:00Z")
    for name in ("one", "again", "gone"):
        log.note(Event.LEASE_MADE, holder=ANA, lease=name)
    log.note(Event.LEASE_LOST, holder=ANA, lease="again")
    log.note(Event.LEASE_ENDED, holder=ANA, lease="gone")
    before = said(tmp_path)
    for kept in (
        held(lease("one"), again),
        held(lease("one", holder=UNKNOWN_HOLDER, created_at="2036-01-01T00:00:00Z"), again),
    ):
        audit_gaps.fill(log, kept)
        assert said(tmp_path) == before


def test_lease_that_is_older_than_the_log_is_not_missed(tmp_path: Path, log: AuditLog) -> None:
    audit_gaps.fill(log, held(lease("old", created_at="2026-01-01T00:00:00Z")))
    assert said(tmp_path) == []


def test_lease_that_is_not_made_yet_is_not_said_to_be(tmp_path: Path, log: AuditLog) -> None:
    audit_gaps.fill(log, held(lease("one", incarnation=None)))
    assert said(tmp_path) == []


def test_lost_lease_and_a_name_that_was_used_again_are_found(tmp_path: Path, log: AuditLog) -> None:
    for name in ("lost", "again"):
        log.note(Event.LEASE_MADE, holder=ANA, lease=name, size_bytes=4096)
    log.note(Event.LEASE_ENDED, holder=ANA, lease="again")
    audit_gaps.fill(log, replace(held(lease("again")), lost={"lost": lease("lost")}))
    assert said(tmp_path)[3:] == [("lease-made", "again", "tower", LATE), ("lease-lost", "lost", "tower", LATE)]


def test_log_that_cannot_be_read_holds_nothing_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audit.path(tmp_path).mkdir()
    audit_gaps.fill(AuditLog(audit.path(tmp_path)), held(lease("one")))
    assert f"the audit log {audit.path(tmp_path)} cannot be read: Is a directory" in caplog.text


def test_lease_whose_line_was_in_a_file_that_is_gone_is_not_missed(tmp_path: Path) -> None:
    file = audit.path(tmp_path)
    file.write_text('{"time": "2026-01-01T00:00:00.000000Z", "event": "started"}\n')
    log = AuditLog(file, file_bytes=400)
    for _ in range(100):
        log.note(Event.LEASE_MADE, holder=ANA, lease="other")
        log.note(Event.LEASE_ENDED, holder=ANA, lease="other")
    before = said(tmp_path)
    audit_gaps.fill(log, held(lease("one", created_at="2026-01-02T00:00:00Z")))
    assert said(tmp_path) == before


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ClientStore]:
    with open_store(tmp_path / "clients.sqlite3", "d0" * 8) as opened:
        yield opened


def paired(store: ClientStore, host: str) -> Client:
    token = store.create_token(600)
    return store.pair(
        PairingRequest(
            token_id=token.entry.id,
            secret=token.secret.hex(),
            credential_sha256=hashlib.sha256(host.encode()).hexdigest(),
            host=host,
            host_id="11" * 8,
            version="0.1",
        ),
        "192.0.2.7:5000",
    )


def test_pairings_whose_lines_a_kill_cut_off_are_in_the_log_after_the_next_start(
    tmp_path: Path, log: AuditLog, store: ClientStore
) -> None:
    tower, attic = paired(store, "tower"), paired(store, "attic")
    log.note(Event.PAIRED, holder=Holder("attic", ""), client=attic.id)
    store.set_state(attic.id, State.SUSPENDED)
    for _ in range(2):
        audit_gaps.fill_clients(log, store)
        assert said(tmp_path)[1:] == [("paired", None, "tower", LATE), ("client-suspended", None, "attic", LATE)]
    store.set_state(attic.id, State.ACTIVE)
    audit_gaps.fill_clients(log, store)
    store.set_state(attic.id, State.REVOKED)
    audit_gaps.fill_clients(log, store)
    store.remove(tower.id)
    for _ in range(2):
        audit_gaps.fill_clients(log, store)
        assert said(tmp_path)[3:] == [
            ("client-resumed", None, "attic", LATE),
            ("client-revoked", None, "attic", LATE),
            ("pairing-ended", None, "tower", LATE),
        ]


def test_an_approval_whose_line_a_kill_cut_off_is_in_the_log_as_a_pairing(
    tmp_path: Path, log: AuditLog, store: ClientStore
) -> None:
    _, attic = paired(store, "tower"), paired(store, "attic")
    log.note(Event.PAIRING_APPROVED, holder=Holder("attic", ""), client=attic.id)
    for _ in range(2):
        audit_gaps.fill_clients(log, store)
        assert said(tmp_path)[1:] == [("paired", None, "tower", LATE)]


def test_client_that_is_older_than_the_log_is_not_missed(tmp_path: Path, store: ClientStore) -> None:
    paired(store, "tower")
    log = AuditLog(audit.path(tmp_path))
    log.note(Event.STARTED)
    audit_gaps.fill_clients(log, store)
    assert said(tmp_path) == []
