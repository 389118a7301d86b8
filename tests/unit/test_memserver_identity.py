# SPDX-License-Identifier: MIT
"""A memserver is the same one after a restart, and another one on another machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from ghostbox.errors import GhostboxError
from ghostbox.memserver.identity import donor_id


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
    second = donor_id(tmp_path, machine_id=machine)
    assert second != first
    assert "was made on another machine: this memserver gets an id of its own" in caplog.text
    assert donor_id(tmp_path, machine_id=machine) == second


def test_damaged_file_is_said_and_replaced(tmp_path: Path, machine: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "identity.json").write_text("[]")
    made = donor_id(tmp_path, machine_id=machine)
    assert "identity.json cannot be read" in caplog.text
    assert donor_id(tmp_path, machine_id=machine) == made


def test_id_that_cannot_be_kept_is_an_error(tmp_path: Path, machine: Path) -> None:
    with pytest.raises(GhostboxError, match=r"cannot write .*/identity\.json: No such file or directory"):
        donor_id(tmp_path / "none", machine_id=machine)
