# SPDX-License-Identifier: MIT
"""A qemu-nbd serves the copy on disk from GhostBox's own file, may die, and leaves nothing behind at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.errors import GhostboxError, ProgramError, Refused
from ghostbox.paths import VmPaths
from ghostbox.session import backup
from ghostbox.system import processes
from ghostbox.units import MIB


@pytest.fixture
def files() -> Iterator[VmPaths]:
    with tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp") as short:
        place = Path(short) / "a %h:'c&d#e?f=g"  # all characters that have a meaning in a URI
        place.mkdir()
        found = VmPaths(place, place)
        yield found
        for pid in backup.find(found):
            processes.terminate(pid)


def on_export(files: VmPaths, command: str) -> str:
    """Run a command of qemu-io on the export. QEMU 10 takes no URI with an escaped '&' or '%' in its query."""
    server = {"type": "unix", "path": str(files.backup_socket)}
    export = {"driver": "nbd", "server": server, "export": "backup"}
    argv = ["qemu-io", "-c", command, f"json:{json.dumps({'driver': 'raw', 'file': export})}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout


def test_server_that_is_gone_is_started_again_and_has_what_was_written(files: VmPaths, tmp_path: Path) -> None:
    file = tmp_path / "copy"
    backup.check(file)
    backup.create(file, 64 * MIB)
    assert backup.ensure(files, file) and not backup.ensure(files, file)
    assert file.stat().st_mode & 0o777 == 0o600
    assert "wrote 4096/4096 bytes at offset 1048576" in on_export(files, "write -P 7 1M 4k")
    assert on_export(files, "length").strip() == "64 MiB"
    seen = subprocess.run(["nbdinfo", "--size", backup.uri(files)], capture_output=True, text=True, check=True)
    assert int(seen.stdout) == 64 * MIB, "libnbd, the pager's client, reads the URI as QEMU does"
    assert 4096 <= file.stat().st_blocks * 512 < MIB, "it takes room as it is written"
    [pid] = backup.find(files)
    os.kill(pid, signal.SIGKILL)
    processes.wait_until(lambda: not backup.find(files), timeout_s=10, what="its end")
    assert backup.ensure(files, file)
    assert "Pattern verification failed" not in on_export(files, "read -P 7 1M 4k")
    assert "discard 65536/65536 bytes" in on_export(files, "discard 1M 64k")
    assert file.stat().st_blocks == 0, "what is trimmed goes back to the disk"
    backup.remove(files, file)
    assert not backup.find(files) and not file.exists() and not files.backup_socket.exists()
    backup.remove(files, file)


def test_place_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    with pytest.raises(Refused, match=f"pool.backup: {taken} exists already") as caught:
        backup.check(taken)
    assert caught.value.hint == "name a file that does not exist, or a directory"
    with pytest.raises(Refused, match=f"pool.backup: there is no directory {tmp_path}/none") as caught:
        backup.check(tmp_path / "none" / "copy")
    assert caught.value.hint == f"mkdir -p {tmp_path}/none"
    with pytest.raises(GhostboxError, match=f"pool.backup: cannot make {taken}: File exists"):
        backup.create(taken, MIB)


def test_disk_that_is_too_small_is_told_of(tmp_path: Path) -> None:
    assert backup.notes(None, MIB) == backup.notes(tmp_path / "copy", MIB) == ()
    [note] = backup.notes(tmp_path / "copy", 1 << 60)
    assert "free, the copy on disk can grow to 1048576 TiB: when the disk is full, the copy is incomplete" in note


def test_host_without_qemu_nbd_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramError, match=r"pool\.backup needs qemu-nbd, which is not installed") as caught:
        backup.check(tmp_path / "copy")
    assert caught.value.hint == "sudo apt install qemu-utils"


def test_server_that_does_not_start_says_why(files: VmPaths, tmp_path: Path) -> None:
    with pytest.raises(ProgramError, match="qemu-nbd does not serve") as caught:
        backup.ensure(files, tmp_path / "none")
    assert "No such file or directory" in str(caught.value.why)
