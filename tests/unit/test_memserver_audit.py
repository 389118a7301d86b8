# SPDX-License-Identifier: MIT
"""The file of a donor's audit log has whole lines, a bounded size, and is readable by its owner only."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ghostbox import paths
from ghostbox.donors.models import Holder
from ghostbox.memserver import audit
from ghostbox.memserver.audit import AuditLog, Event
from helpers.other_user import as_user

Cli = Callable[..., subprocess.CompletedProcess[str]]
ANA = Holder("tower", "ana")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return audit.path(tmp_path)


def leases(file: Path) -> Path:
    return file.with_name("audit-leases.jsonl")


def test_a_line_has_time_event_holder_and_address(file: Path) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    log = AuditLog(file)
    log.note(Event.LEASE_MADE, address="192.168.7.3:4000", holder=ANA, lease="one", size_bytes=1 << 30)
    log.note(Event.DRAIN_BEGUN, reason="pressure")
    made, drained = (json.loads(line) for line in leases(file).read_text().splitlines())
    assert before < datetime.fromisoformat(made.pop("time")) <= datetime.now(UTC)
    assert made == {
        "event": "lease-made",
        "address": "192.168.7.3:4000",
        "host": "tower",
        "vm": "ana",
        "lease": "one",
        "size_bytes": 1 << 30,
    }
    assert (drained["event"], drained["reason"], len(drained)) == ("drain-begun", "pressure", 3)
    assert str(next(audit.read(file))).endswith("lease-made         lease one, 1 GiB; tower/ana from 192.168.7.3:4000")


def test_what_a_client_sends_does_not_look_like_an_entry_of_its_own(file: Path) -> None:
    AuditLog(file).note(Event.REQUEST_REFUSED, reason="x\n2026-11-29 12:00:00  lease-ended       lease one\x1b[2J")
    shown = str(next(audit.read(file)))
    assert shown.endswith("request-refused    x?2026-11-29 12:00:00  lease-ended       lease one?[2J")
    assert len(shown.splitlines()) == 1


def test_it_is_its_owners_alone(file: Path) -> None:
    before = os.umask(0)
    try:
        AuditLog(file).note(Event.STARTED)
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600


def test_full_files_are_kept_up_to_a_number_and_read_in_order(file: Path) -> None:
    log = AuditLog(file, file_bytes=600)
    for number in range(100):
        log.note(Event.LEASE_MADE, lease=f"lease-{number:03}")
    kept = sorted(path.name for path in file.parent.iterdir())
    name = leases(file).name
    assert kept == [name, *(f"{name}.{number}" for number in range(1, audit.KEPT_FILES + 1))]
    assert all(path.stat().st_size <= 600 for path in file.parent.iterdir())
    names = [entry.lease for entry in audit.read(file)]
    assert names == [f"lease-{number:03}" for number in range(100 - len(names), 100)]
    assert len(names) > 20


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_killed_while_it_renames_it_goes_on_and_loses_nothing_more(file: Path, missing: int) -> None:
    log = AuditLog(file, file_bytes=600)
    for number in range(40):
        log.note(Event.LEASE_MADE, lease=f"lease-{number:03}")
    # A kill between two renames leaves a number without a file.
    full = [leases(file).with_name(f"audit-leases.jsonl.{number}") for number in range(1, audit.KEPT_FILES + 1)]
    lost = {entry.lease for entry in audit.read(file)}
    for number in range(audit.KEPT_FILES - 1, missing - 1, -1):
        full[number - 1].replace(full[number])
    left = [entry.lease for entry in audit.read(file)]
    assert len(lost - set(left)) < 10  # the oldest file's lines may be lost
    log.note(Event.LEASE_MADE, lease="after")
    assert [entry.lease for entry in audit.read(file)] == [*left, "after"]


def test_a_line_that_was_cut_off_is_passed_over_and_the_next_one_is_whole(file: Path) -> None:
    log = AuditLog(file)
    log.note(Event.LEASE_MADE, lease="one")
    log.note(Event.LEASE_MADE, lease="two")
    os.truncate(leases(file), leases(file).stat().st_size - 7)
    log.note(Event.LEASE_MADE, lease="three")
    assert [entry.lease for entry in audit.read(file)] == ["one", "three"]


def test_lines_that_make_no_sense_are_passed_over(file: Path) -> None:
    AuditLog(file).note(Event.STARTED)
    with file.open("ab") as stream:
        stream.write(b'[]\n{}\n{"time": 5, "event": "x"}\n{"time": "2026-11-29", "event": "x"}\n\xff\xfe\n')
    assert [entry.event for entry in audit.read(file)] == ["started"]


def test_what_one_client_causes_again_and_again_is_counted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = AuditLog(file)
    for port in range(50):
        log.note(Event.LEASE_REFUSED, address=f"192.168.7.3:{port}", code="draining")
    log.note(Event.LEASE_REFUSED, address="192.168.7.4:1", code="draining")
    log.note(Event.LEASE_REFUSED, address="192.168.7.3:1", code="too-small")
    now += 11.0
    log.note(Event.LEASE_REFUSED, address="192.168.7.3:60", code="draining")
    log.note(Event.LEASE_MADE, address="192.168.7.3:61", lease="one")
    log.note(Event.LEASE_MADE, address="192.168.7.3:61", lease="two")
    said = [(entry.address, entry.code, entry.repeated) for entry in audit.read(file)]
    assert said == [
        ("192.168.7.3:0", "draining", 0),
        ("192.168.7.4:1", "draining", 0),
        ("192.168.7.3:1", "too-small", 0),
        ("192.168.7.3:60", "draining", 49),
        ("192.168.7.3:61", None, 0),
        ("192.168.7.3:61", None, 0),
    ]
    assert "49 more like this since the last line" in [str(entry) for entry in audit.read(file)][3]


def test_refusals_of_many_clients_push_out_no_lease_and_nothing_of_the_donors_own(file: Path) -> None:
    log = AuditLog(file, file_bytes=600)
    log.note(Event.STARTED)
    log.note(Event.LEASE_MADE, lease="one")
    for number in range(300):
        log.note(Event.REQUEST_REFUSED, address=f"10.0.{number // 250}.{number % 250}:9", reason="x" * 100)
    said = [entry.event for entry in audit.read(file)]
    assert said[:2] == ["started", "lease-made"]
    assert 2 < len(said) < 30


def test_leases_that_a_client_makes_and_ends_push_out_nothing_of_the_donors_own(file: Path) -> None:
    log = AuditLog(file, file_bytes=600)
    log.note(Event.STARTED)
    for _ in range(100):
        log.note(Event.LEASE_MADE, lease="one")
        log.note(Event.LEASE_ENDED, lease="one")
    assert next(audit.read(file)).event == "started"


def test_log_of_an_earlier_version_is_read_with_what_follows_in_order(file: Path) -> None:
    old = {"time": "2026-11-29T10:00:00.123Z", "event": "lease-made", "lease": "old"}
    file.write_text(json.dumps(old) + "\n")
    log = AuditLog(file)
    log.note(Event.LEASE_ENDED, lease="old")
    log.note(Event.STARTED)
    log.note(Event.LEASE_REFUSED, lease="new", code="draining")
    log.note(Event.LEASE_MADE, lease="new")
    said = ["lease-made", "lease-ended", "started", "lease-refused", "lease-made"]
    assert [entry.event for entry in audit.read(file)] == said


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("[2001:db8:1:2::1]:5", "[2001:db8:1:2:ffff::9]:6", True),
        ("[2001:db8:1:2::1]:5", "[2001:db8:1:3::1]:5", False),
        ("[fe80::1%eth0]:5", "[fe80::2%eth0]:5", True),
        ("[::ffff:10.0.0.1]:5", "10.0.0.1:6", True),
        ("[::ffff:10.0.0.1]:5", "[::ffff:10.0.0.2]:5", False),
        ("10.0.0.1:5", "10.0.0.2:5", False),
        ("owner", "owner", True),
    ],
)
def test_client_is_an_address_or_the_network_that_one_machine_may_use_at_will(
    file: Path, one: str, other: str, same: bool
) -> None:
    log = AuditLog(file)
    log.note(Event.REQUEST_REFUSED, address=one, code="invalid")
    log.note(Event.REQUEST_REFUSED, address=other, code="invalid")
    assert len(list(audit.read(file))) == (1 if same else 2)


def test_what_was_left_out_is_summed_up_once_a_minute_and_at_the_end(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = AuditLog(file)
    for number in range(600):
        for _ in range(3):
            log.note(Event.REQUEST_REFUSED, address=f"10.0.{number // 200}.{number % 200}:9", code="invalid")
    now += 61.0
    log.note(Event.LEASE_MADE, lease="one")
    log.note(Event.LEASE_REFUSED, address="10.1.0.1:1", code="draining")
    log.note(Event.LEASE_REFUSED, address="10.1.0.1:2", code="draining")
    log.note(Event.ENDED)
    summed = [entry for entry in audit.read(file) if entry.event == "refusals-counted"]
    assert [entry.repeated for entry in summed] == [1200, 1]
    assert str(summed[0].reason).startswith("1200 more refusals and limits, caused by 257 clients, have no lines")
    assert "1 more refusals and limits, caused by 10.1.0.1, have" in str(summed[1])
    assert [entry.event for entry in audit.read(file)][-5:] == [
        "refusals-counted",
        "lease-made",
        "lease-refused",
        "refusals-counted",
        "ended",
    ]


def test_a_log_that_cannot_be_written_is_said_once_and_holds_nothing_up(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_path: Path, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = AuditLog(file)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(audit, "open_private", full)
        log.note(Event.STARTED)
        log.note(Event.ENDED)
    assert [record.message for record in caplog.records] == [
        f"the audit log {file} cannot be written: No space left on device"
    ]
    log.note(Event.STARTED)
    assert [entry.event for entry in audit.read(file)] == ["started"]


@pytest.mark.skipif(os.geteuid() != 0, reason="cannot run here: needs root to become another user")
def test_another_user_is_told_that_it_is_not_his(ghostbox_dirs: Path, tmp_path: Path) -> None:
    found = paths.find()
    state = found.memserver_state("one")
    state.mkdir(parents=True)
    AuditLog(audit.path(state)).note(Event.STARTED)
    for place in (*audit.path(state).parents[:4], *tmp_path.parents[:3]):
        place.chmod(place.stat().st_mode | 0o755)

    def read() -> str:
        try:
            audit.find("one", found, None)
        except Exception as err:
            return f"{type(err).__name__}: {err}"
        return "read"

    assert as_user(read) == f"GhostboxError: cannot read the audit log {audit.path(state)}: Permission denied"


def test_a_memserver_without_a_log_is_told_from_those_that_have_one(quick_cli: Cli) -> None:
    done = quick_cli("memserver", "audit", "--name", "one")
    assert done.returncode == 4
    assert "memserver 'one' has no audit log on this machine" in done.stderr
    assert "fix: a memserver makes the log on its machine when it starts" in done.stderr
    state = paths.find().memserver_state("two")
    state.mkdir(parents=True)
    AuditLog(audit.path(state)).note(Event.STARTED)
    assert "fix: --name two" in quick_cli("memserver", "audit", "--name", "one").stderr


def test_lines_are_chosen_by_time_and_number(quick_cli: Cli) -> None:
    state = paths.find().memserver_state("one")
    state.mkdir(parents=True)
    log, file = AuditLog(audit.path(state)), audit.path(state)
    for name in ("old", "new", "newer"):
        log.note(Event.LEASE_MADE, lease=name)
    lines = [json.loads(line) for line in leases(file).read_text().splitlines()]
    lines[0]["time"] = "2026-01-02T03:04:05.678Z"
    leases(file).write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    def names(*options: str) -> list[str]:
        done = quick_cli("memserver", "audit", "--name", "one", "--json", *options)
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["lease"] for line in done.stdout.splitlines()]

    assert names() == ["old", "new", "newer"]
    assert names("--since", "1h") == names("--since", "2026-01-03") == ["new", "newer"]
    assert names("--since", "2026-01-02T03:00:00+00:00") == ["old", "new", "newer"]
    assert names("-n", "1") == names("--lines", "1", "--since", "1h") == ["newer"]
    assert names("-n", "0") == []
    assert names("-n", "9") == ["old", "new", "newer"]
    done = quick_cli("memserver", "audit", "--name", "one", "--since", "yesterday")
    assert done.returncode == 2
    assert "'yesterday' is neither a time (2026-11-29T10:00) nor a duration before now (2h)" in done.stderr
