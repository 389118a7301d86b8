# SPDX-License-Identifier: MIT
"""The file of lease records is never half written, and no record is lost silently."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ghostbox.donors.models import Holder
from ghostbox.memserver import records
from ghostbox.memserver.records import LeaseRecord, PlaneRecord, Records
from helpers.limits import small_disk


def _lease(name: str, incarnation: str | None = "one") -> LeaseRecord:
    return LeaseRecord(name, 4096, Holder("host", "vm"), "2026-01-01T00:00:00Z", incarnation)


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    kept = Records(PlaneRecord(1, 2, "boot", "id"), {"a": _lease("a"), "b": _lease("b", None)}, {"c": _lease("c")})
    records.save(tmp_path / "leases.json", kept)
    assert records.load(tmp_path / "leases.json") == kept
    assert [path.name for path in tmp_path.iterdir()] == ["leases.json"]


def test_no_file_is_no_lease(tmp_path: Path) -> None:
    assert records.load(tmp_path / "leases.json") == Records()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"plane": null, "leases": [{}], "lost": []}'])
def test_a_damaged_file_is_put_aside_and_said_so(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "leases.json"
    path.write_text(content)
    with caplog.at_level(logging.ERROR):
        assert records.load(path) == Records()
    assert f"lease records {path} are damaged" in caplog.text
    assert (tmp_path / "leases.damaged").read_text() == content


def test_a_failed_write_leaves_the_old_file() -> None:
    with small_disk() as disk:
        path = disk.path / "leases.json"
        old = Records(None, {"a": _lease("a")}, {})
        records.save(path, old)
        disk.fill()
        many = {f"l{number}": _lease(f"l{number}") for number in range(64)}
        with pytest.raises(OSError, match="No space left on device"):
            records.save(path, Records(None, many, {}))
        assert records.load(path) == old


def test_a_new_lease_ends_the_memory_of_a_lost_one() -> None:
    kept = Records(None, {"a": _lease("a")}, {}).with_lost(_lease("a"))
    assert (list(kept.leases), list(kept.lost)) == ([], ["a"])
    again = kept.with_lease(_lease("a", "two"))
    assert (list(again.leases), list(again.lost)) == (["a"], [])


def test_lost_leases_are_bounded() -> None:
    kept = Records()
    for number in range(100):
        kept = kept.with_lost(_lease(f"l{number}"))
    assert len(kept.lost) == 64
    assert "l99" in kept.lost
