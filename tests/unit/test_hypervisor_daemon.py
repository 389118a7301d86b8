# SPDX-License-Identifier: MIT
"""GhostBox names what a machine without systemd lacks for libvirt."""

from __future__ import annotations

from pathlib import Path

from ghostbox.system.hypervisor import daemon


def test_the_directory_of_console_locks_is_made_where_nobody_has_made_it(tmp_path: Path) -> None:
    daemon.make_lock_directory(tmp_path / "lock")
    assert (tmp_path / "lock").stat().st_mode & 0o7777 == 0o1777


def test_one_that_is_there_stays_as_it_is_and_one_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir(mode=0o755)
    daemon.make_lock_directory(tmp_path / "lock")
    assert (tmp_path / "lock").stat().st_mode & 0o7777 == 0o755
    daemon.make_lock_directory(tmp_path / "nothing/lock")
    assert not (tmp_path / "nothing").exists()
