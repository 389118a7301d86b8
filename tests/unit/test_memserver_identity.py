# SPDX-License-Identifier: MIT
"""A memserver keeps its identity over a restart, and has another one on another machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from ghostbox.errors import GhostboxError
from ghostbox.memserver.identity import donor_id
from ghostbox.system.machine import machine_digest


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "machine-id"
    path.write_text("0123\n")
    return path


def test_id_stays_the_same(tmp_path: Path, machine: Path) -> None:
    first = donor_id(tmp_path, machine_id=machine)
    assert len(first) == 16
    assert donor_id(tmp_path, machine_id=machine) == first


def test_state_that_was_copied_to_another_machine_is_another_donors(
    tmp_path: Path, machine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = donor_id(tmp_path, machine_id=machine)
    machine.write_text("4567\n")
    second = donor_id(tmp_path, machine_id=machine, known=lambda: first)  # the list of clients was copied along
    assert second != first
    assert "was made on another machine: this memserver gets an id of its own" in caplog.text
    assert donor_id(tmp_path, machine_id=machine) == second


def test_damaged_file_is_said_and_replaced(tmp_path: Path, machine: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "identity.json").write_text("[]")
    made = donor_id(tmp_path, machine_id=machine)
    assert "identity.json cannot be read" in caplog.text
    assert donor_id(tmp_path, machine_id=machine) == made


@pytest.mark.parametrize("damage", ["[]", "", None], ids=["damaged", "empty", "gone"])
def test_file_that_is_lost_gets_the_id_that_hosts_know(tmp_path: Path, machine: Path, damage: str | None) -> None:
    donor_id(tmp_path, machine_id=machine)
    if damage is None:
        (tmp_path / "identity.json").unlink()
    else:
        (tmp_path / "identity.json").write_text(damage)
    assert donor_id(tmp_path, machine_id=machine, known=lambda: "0123456789abcdef") == "0123456789abcdef"
    assert donor_id(tmp_path, machine_id=machine) == "0123456789abcdef"


def test_id_that_cannot_be_kept_is_an_error(tmp_path: Path, machine: Path) -> None:
    with pytest.raises(GhostboxError, match=r"cannot write .*/identity\.json: No such file or directory"):
        donor_id(tmp_path / "none", machine_id=machine)


def test_a_machine_is_told_by_its_kernel_and_keeps_its_ids_to_itself(tmp_path: Path) -> None:
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("a-b-c\n")
    digest = machine_digest(boot_id=boot_id)
    assert len(digest) == 16
    assert digest == machine_digest(boot_id=boot_id)
    assert "a-b-c" not in digest
    assert machine_digest() == machine_digest() != digest
    boot_id.write_text("d-e-f\n")
    assert machine_digest(boot_id=boot_id) != digest


def test_two_virtual_machines_can_be_told_to_be_one_machine(tmp_path: Path) -> None:
    boot_ids = [tmp_path / name for name in "ab"]
    for path in boot_ids:
        path.write_text(path.name)
    assert machine_digest("rack-1", boot_id=boot_ids[0]) == machine_digest("rack-1", boot_id=boot_ids[1])
    assert machine_digest("rack-2") != machine_digest("rack-1")
