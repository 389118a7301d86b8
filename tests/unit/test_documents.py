# SPDX-License-Identifier: MIT
"""A document that a newer version wrote loses nothing when this version changes it, or this version refuses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ghostbox.donors import known as known_donors
from ghostbox.donors.client import DonorStatus
from ghostbox.donors.models import Holder
from ghostbox.errors import Refused
from ghostbox.memserver import records
from ghostbox.memserver.identity import donor_id
from ghostbox.paths import Paths, VmPaths
from ghostbox.session import unreleased
from ghostbox.session.record import Book
from ghostbox.session.record import LeaseRecord as HeldLease
from helpers.facts import RECORD

NEW = {"rack": {"row": [7]}}
DONOR = {"address": "tower", "id": "a", "name": "tower", "machine": "m1"}
LEASE = {"donor": "tower", "name": "one", "size_bytes": 4096}
LENT = {
    "name": "one",
    "size_bytes": 4096,
    "holder": {"host": "h", "vm": "v"} | NEW,
    "created_at": "2026-01-01T00:00:00Z",
    "incarnation": "i",
}
PLANE = {"pid": 1, "start_ticks": 2, "boot_id": "b", "incarnation": "i", "control_socket": "/s"}


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    (tmp_path / "state").mkdir()
    return Paths(tmp_path / "state", tmp_path / "r", tmp_path / "c", tmp_path / "e", tmp_path / "n")


def write(file: Path, document: dict[str, Any]) -> Path:
    file.write_text(json.dumps(document))
    return file


def test_known_donors_keep_what_a_newer_version_says_of_them(paths: Paths) -> None:
    document = {"version": 1, "donors": [DONOR | NEW, DONOR | {"address": "attic", "id": "b"} | NEW]} | NEW
    file = write(paths.state / "known-donors.json", document)
    status = DonorStatus("-", "tower", "1", "i", 10809, 1, 0, 1, 0, 0, draining=False, id="a", machine="m1")
    known_donors.note(paths, status, "192.168.7.2")
    moved, other = DONOR | {"address": "192.168.7.2"} | NEW, DONOR | {"address": "attic", "id": "b"} | NEW
    assert holds(json.loads(file.read_text()), {"version": 1, "donors": [moved, other]} | NEW)
    known_donors.forget(paths, "attic")
    assert holds(json.loads(file.read_text())["donors"], [moved])


def test_what_is_said_of_a_donor_is_not_said_of_another_one_at_its_address(paths: Paths) -> None:
    file = write(paths.state / "known-donors.json", {"donors": [DONOR | NEW]})
    status = DonorStatus("-", "other", "1", "i", 10809, 1, 0, 1, 0, 0, draining=False, id="z", machine="m1")
    known_donors.note(paths, status, "tower")
    (found,) = json.loads(file.read_text())["donors"]
    assert holds(found, DONOR | {"id": "z", "name": "other"})
    assert "rack" not in found


def test_unreleased_leases_keep_what_a_newer_version_says_of_them(paths: Paths) -> None:
    entry = {"vm": "box", "lease": LEASE | NEW, "since": "2026-01-01T00:00:00+00:00", "why": "silence"} | NEW
    file = write(paths.state / "unreleased-leases.json", {"leases": [entry]} | NEW)
    unreleased.note(paths.state, "box", HeldLease("attic", "two", 1), "silence")
    document = json.loads(file.read_text())
    kept = document["leases"][0]
    assert document["rack"] == kept["rack"] == kept["lease"]["rack"] == NEW["rack"]
    assert "further" not in file.read_text()


def test_lease_records_keep_what_a_newer_version_says(tmp_path: Path) -> None:
    document: dict[str, Any] = {
        "version": 1,
        "plane": PLANE | NEW,
        "leases": [LENT | NEW],
        "lost": [LENT | {"name": "two"} | NEW],
    } | NEW
    file = write(tmp_path / "leases.json", document)
    found = records.load(file)
    assert found.plane is not None
    assert (found.plane.pid, found.leases["one"].holder) == (1, Holder("h", "v"))
    records.save(file, found.with_lost(found.leases["one"]))
    saved = json.loads(file.read_text())
    assert holds(saved, document | {"leases": [], "lost": [*document["lost"], LENT | NEW]})


def holds(found: Any, wanted: Any) -> bool:
    """Tell whether all that is wanted was found; this version may have added fields of its own."""
    if isinstance(wanted, dict):
        return all(key in found and holds(found[key], value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(holds, found, wanted))
    return bool(found == wanted)


CHANGES: dict[str, Callable[[Paths], object]] = {
    "known-donors.json": known_donors.load,
    "unreleased-leases.json": lambda paths: unreleased.write_off(paths.state, ()),
    "leases.json": lambda paths: records.load(paths.state / "leases.json"),
    "identity.json": lambda paths: donor_id(paths.state),
}


@pytest.mark.parametrize("name", CHANGES)
def test_document_of_a_newer_form_is_refused_and_stays(paths: Paths, name: str) -> None:
    file = write(paths.state / name, {"version": 2, "donors": [], "leases": [], "plane": None, "lost": []})
    before = file.read_bytes()
    message = rf"{name} was written by a newer version of GhostBox: its form is 2, this version knows 1"
    with pytest.raises(Refused, match=message) as caught:
        CHANGES[name](paths)
    assert caught.value.hint == "use the newer version: an older one would lose what the file says"
    assert file.read_bytes() == before
    assert {entry.name for entry in paths.state.iterdir()} <= {name, "unreleased-leases.lock"}


def test_record_of_a_newer_format_is_refused_and_stays(tmp_path: Path) -> None:
    book = Book(VmPaths(tmp_path, tmp_path))
    book.save(RECORD)
    file = write(book.files.record, json.loads(book.files.record.read_text()) | {"format": 2})
    with pytest.raises(Refused, match=r"vm\.json was written by a newer version of GhostBox: its form is 2"):
        book.load()
    assert json.loads(file.read_text())["format"] == 2


@pytest.mark.parametrize("number", ["1", None, True, 1.5])
def test_number_that_is_none_is_damage(paths: Paths, number: object) -> None:
    write(paths.state / "known-donors.json", {"version": number, "donors": []})
    with pytest.raises(Exception, match="cannot read .*: version: it is no whole number"):
        known_donors.load(paths)
