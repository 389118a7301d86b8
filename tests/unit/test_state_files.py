# SPDX-License-Identifier: MIT
"""A file that is replaced has the old or the new content: on a full disk, and when its writer is killed at any step."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ghostbox import paths
from ghostbox.errors import GhostboxError
from ghostbox.session import definition, ssh_include
from ghostbox.system import state_files
from helpers.killed import killed_at
from helpers.limits import SmallDisk, small_disk

NEW = b"new" * 5000


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    with small_disk() as found:
        yield found


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_file_is_replaced_and_no_draft_stays(tmp_path: Path, umask: None) -> None:
    file = tmp_path / "file.json"
    file.write_text("old")
    state_files.replace(file, NEW)
    assert file.read_bytes() == NEW
    assert (names(tmp_path), mode(file)) == (["file.json"], 0o600)
    state_files.replace(file, b"", mode=0o604)
    assert (file.read_bytes(), mode(file)) == (b"", 0o604)


def test_document_is_written_as_json(tmp_path: Path) -> None:
    state_files.write(tmp_path / "file.json", {"a": [1, "ä\udcff"]})
    assert json.loads((tmp_path / "file.json").read_text("ascii")) == {"a": [1, "ä\udcff"]}


def test_full_disk_leaves_the_old_file_and_no_draft(disk: SmallDisk) -> None:
    file = disk.path / "file"
    file.write_text("old")
    disk.fill()
    with pytest.raises(OSError, match="No space left on device") as caught:
        state_files.replace(file, NEW)
    assert caught.value.errno == errno.ENOSPC
    assert (disk.files(), file.read_text()) == (["file"], "old")


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_kill_at_any_step_leaves_the_old_file(tmp_path: Path, owner: object, name: str) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    killed_at(owner, name, lambda: state_files.replace(file, NEW))
    assert file.read_text() == "old"
    state_files.replace(file, b"newer")
    assert file.read_bytes() == b"newer"
    assert names(tmp_path) == ["file"], "the next writer removes the draft"


def test_two_files_that_differ_in_their_ending_have_drafts_of_their_own(tmp_path: Path) -> None:
    """A writer of a VM's record must not remove the draft of another file of the same stem."""
    killed_at(Path, "replace", lambda: state_files.replace(tmp_path / "vm.json", b"record"))
    state_files.replace(tmp_path / "vm.yaml", b"definition")
    draft, whole = names(tmp_path)
    assert (draft.startswith(".vm.json."), whole) == (True, "vm.yaml")
    assert (tmp_path / "vm.yaml").read_bytes() == b"definition"
    assert (tmp_path / draft).read_bytes() == b"record"


def test_writer_leaves_the_draft_of_another_writer_that_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "known_hosts"
    publish = state_files.publish

    def publish_after_another(draft: Path, path: Path, *, mode: int | None = None) -> None:
        monkeypatch.setattr(state_files, "publish", publish)
        state_files.replace(file, b"the other's")
        assert file.read_bytes() == b"the other's"
        publish(draft, path, mode=mode)

    monkeypatch.setattr(state_files, "publish", publish_after_another)
    state_files.replace(file, b"ours")
    assert (names(tmp_path), file.read_bytes()) == (["known_hosts"], b"ours")


def test_many_writers_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    contents = [bytes([65 + number]) * 70000 for number in range(8)]

    def write_often(content: bytes) -> None:
        for _ in range(20):
            state_files.replace(file, content)
            assert file.read_bytes() in contents

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(write_often, contents))
    assert names(tmp_path) == ["known_hosts"]


def test_published_file_has_its_name_once_it_is_on_disk(tmp_path: Path) -> None:
    draft, file = tmp_path / "draft", tmp_path / "file"
    draft.write_bytes(NEW)
    killed_at(os, "fsync", lambda: state_files.publish(draft, file, mode=0o600))
    assert not file.exists()
    state_files.publish(draft, file, mode=0o600)
    assert (names(tmp_path), file.read_bytes(), mode(file)) == (["file"], NEW, 0o600)


def test_definition_stays_as_it_was_on_a_full_disk(disk: SmallDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_STATE_DIR", str(disk.path / "state"))
    files = paths.find().vm("box")
    definition.keep(files, "vm: {cpus: 2}\n")
    disk.fill()
    with pytest.raises(GhostboxError, match=r"cannot write .*/definition\.yaml: No space left on device") as caught:
        definition.keep(files, "vm: {cpus: 3}\n" + "#" * 8000)
    assert caught.value.hint is not None
    assert "df -h" in caught.value.hint
    assert files.definition.read_text() == "vm: {cpus: 2}\n"
    assert [entry.name for entry in files.state.iterdir()] == ["definition.yaml"]


def test_ssh_configuration_stays_as_it_was_on_a_full_disk_and_at_a_kill(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GHOSTBOX_STATE_DIR", str(disk.path / "state"))
    config = disk.path / "config"
    config.write_text("Host tower\n" + "#" * 4000)
    config.chmod(0o640)
    disk.fill()
    with pytest.raises(GhostboxError, match=r"cannot write .*/config: No space left on device"):
        ssh_include.install(config, paths.find(), [])
    assert config.read_text().startswith("Host tower\n")
    disk.free()
    killed_at(Path, "replace", lambda: ssh_include.install(config, paths.find(), []))
    assert config.read_text().startswith("Host tower\n")
    assert ssh_include.install(config, paths.find(), []).changed
    assert (config.read_text().splitlines()[1], mode(config)) == ("Host tower", 0o640)
