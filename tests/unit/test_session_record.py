# SPDX-License-Identifier: MIT
"""The record of a VM is written whole and read back equal; its states are in order, its lock is exclusive."""

from __future__ import annotations

import dataclasses
import json
import re
import threading
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from ghostbox.donors.known import KnownDonor
from ghostbox.errors import GhostboxError, NotFound, Refused
from ghostbox.paths import Paths, VmPaths
from ghostbox.plan.plan import PagerPlan
from ghostbox.plan.tiering import Tiering
from ghostbox.session.record import (
    TRANSITIONS,
    Book,
    LeaseRecord,
    Made,
    Record,
    VmState,
    lock_is_free,
    locked,
    names,
)
from ghostbox.system.process_table import Identity

RECORD = Record(
    name="box",
    state=VmState.STARTING,
    uuid="u",
    mac="m",
    ssh_port=2222,
    created_at="2026-01-01T00:00:00+00:00",
    domain="ghostbox-box",
    libvirt_uri="qemu:///system",
    image="debian",
    user="ghost",
    virt="kvm",
    cpus=2,
    memory_bytes=1,
    remote_memory_bytes=2,
    cache_bytes=3,
    disk_bytes=4,
    forwards=((8080, 80),),
    made=frozenset({Made.PAGER, Made.FILES}),
    leases=(LeaseRecord("a:1", "x", 5),),
    pager=PagerPlan(cache_bytes=1, extent_bytes=2, readahead_bytes=3, poll_us=4, log_level="info", replicas=2),
    donors=("a:1", "b:1"),
    backup="/b",
    paused=True,
    tiering=Tiering(on=True, why="KVM", promote_mib_per_s=3),
)


def book(tmp_path: Path) -> Book:
    return Book(VmPaths(tmp_path / "s" / "vms" / "box", tmp_path / "r"))


def test_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    book(tmp_path).save(RECORD)
    assert book(tmp_path).load() == RECORD
    assert [entry.name for entry in (tmp_path / "s" / "vms" / "box").iterdir()] == ["vm.json"]


def test_vm_without_a_record_does_not_exist(tmp_path: Path) -> None:
    assert book(tmp_path).load() is None


def test_missing_vm_is_named_with_those_that_exist(tmp_path: Path) -> None:
    paths = Paths(tmp_path / "s", tmp_path / "r", tmp_path, tmp_path, tmp_path)
    book(tmp_path).save(RECORD)
    assert names(paths) == ["box"]
    with pytest.raises(NotFound, match="no VM named 'other'") as caught:
        Book(paths.vm("other")).need("other", paths)
    assert caught.value.hint == "there are: box"
    with pytest.raises(NotFound) as caught:
        Book(paths.vm("bxo")).need("bxo", paths)
    assert caught.value.hint == "did you mean 'box'? there are: box"


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1, "state": "nonsense"}', "[1]"])
def test_damaged_record_is_an_error_that_says_where(tmp_path: Path, text: str) -> None:
    made = book(tmp_path)
    made.save(RECORD)
    made.files.record.write_text(text)
    with pytest.raises(GhostboxError, match=re.escape(f"cannot read {made.files.record}")):
        made.load()


def test_record_of_an_earlier_version_has_what_later_ones_added_by_default(tmp_path: Path) -> None:
    old = RECORD.to_json()
    later = ("donors", "backup", "asked_to", "tiering", "environment", "qemu", "drained", "network", "disks", "shares")
    read = Record.from_json({key: value for key, value in old.items() if key not in later})
    assert (read.donors, read.disks, read.tiering, read.qemu, read.network) == ((), (), None, None, "user")
    assert read.leases == RECORD.leases


@pytest.mark.parametrize("place", ["", "leases.0", "pager", "tiering", "qemu", "pager_process", "drained.0"])
def test_record_of_a_later_version_is_an_error_that_names_what_is_unknown(tmp_path: Path, place: str) -> None:
    """At each level: pydantic 2.10.0 ignores unknown fields of a nested dataclass, 2.11.0 does not."""
    made = book(tmp_path)
    identity = Identity(1, 2, "boot", 3)
    made.save(replace(RECORD, qemu=identity, pager_process=identity, drained=(KnownDonor("a:1"),)))
    document = json.loads(made.files.record.read_text())
    part = document
    for step in filter(None, place.split(".")):
        part = part[int(step) if step.isdigit() else step]
    part["rack"] = 7
    made.files.record.write_text(json.dumps(document))
    wanted = ".".join(filter(None, (place, "rack")))
    with pytest.raises(GhostboxError, match=rf"cannot read .*vm\.json: {re.escape(wanted)}: "):
        made.load()


def test_every_dataclass_in_a_record_is_among_those_that_refuse_unknown_fields() -> None:
    """A new part of the record needs a place in the test above."""
    hints = get_type_hints(Record)
    parts = {name for name, hint in hints.items() if any(map(is_dataclass, (hint, *get_args(hint))))}
    assert parts == {"leases", "pager", "tiering", "qemu", "pager_process", "drained"}


def test_transition_that_the_drawing_lacks_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        RECORD.to(VmState.PREPARING)
    assert RECORD.to(VmState.RUNNING).state is VmState.RUNNING


def test_every_recorded_state_leads_to_stopped_or_absent() -> None:
    for state, following in TRANSITIONS.items():
        if state is not VmState.ABSENT:
            assert following & {VmState.STOPPED, VmState.ABSENT}


def test_lock_is_held_by_one_and_names_its_holder(tmp_path: Path) -> None:
    files = book(tmp_path).files
    with locked(files):
        assert not lock_is_free(files)
        with pytest.raises(Refused, match=r"another command is at work on VM 'box' \(pid \d+\)"), locked(files):
            pass
    assert lock_is_free(files)


def test_supervisor_that_is_at_work_is_waited_for(tmp_path: Path) -> None:
    files = book(tmp_path).files
    supervisor = locked(files, supervisor=True)
    supervisor.__enter__()
    soon = threading.Timer(0.2, supervisor.__exit__, (None, None, None))
    soon.start()
    with locked(files):
        assert not lock_is_free(files)
    soon.join()


def test_state_directory_lets_qemu_pass_and_not_look(tmp_path: Path) -> None:
    made = book(tmp_path)
    made.save(RECORD)
    assert made.files.state.stat().st_mode & 0o777 == 0o711


def test_records_fields_are_all_in_its_json() -> None:
    assert {field.name for field in dataclasses.fields(Record)} < RECORD.to_json().keys()
