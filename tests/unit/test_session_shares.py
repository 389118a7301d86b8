# SPDX-License-Identifier: MIT
"""Some directories can be shared, others are refused, and the guest gets a request for each share."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from ghostbox import config
from ghostbox.config import SharedFolder
from ghostbox.errors import ConfigError, Refused, UsageError
from ghostbox.session import share_server, shares


def test_directory_is_taken_from_where_it_was_written(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("vm: {shares: [data, './x y:ro', /abs:rw, 'colon:dir']}\n")
    assert config.load(file=file).vm.shares == (
        SharedFolder(tmp_path / "data"),
        SharedFolder(tmp_path / "x y", read_only=True),
        SharedFolder(Path("/abs")),
        SharedFolder(tmp_path / "colon:dir"),
    )


def test_folder_is_read_back_as_it_is_shown() -> None:
    for folder in (SharedFolder(Path("/a b")), SharedFolder(Path("/a:ro")), SharedFolder(Path("/a"), read_only=True)):
        assert config.load({"vm.shares": [str(folder)]}).vm.shares == (folder,)


@pytest.mark.parametrize("text", ["", ":ro", "a\0b"])
def test_what_is_no_directory_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a shared directory"):
        config.load({"vm.shares": [text]})


def test_directory_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be shared: it does not exist") as caught:
        shares.check([SharedFolder(tmp_path / "a b")])
    assert caught.value.hint == f"mkdir -p '{tmp_path}/a b'"


def test_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="cannot be shared: it is no directory"):
        shares.check([SharedFolder(tmp_path / "file")])


def test_directory_that_one_may_not_write_is_refused_unless_it_is_shared_read_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("cannot run here: the test becomes another user and back")
    os.setresuid(pwd.getpwnam("nobody").pw_uid, -1, -1)  # access(2) asks for the real user
    try:
        with pytest.raises(Refused, match="/usr/share cannot be shared: you may not read and write it") as caught:
            shares.check([SharedFolder(Path("/usr/share"))])
        shares.check([SharedFolder(Path("/usr/share"), read_only=True)])
    finally:
        os.setresuid(0, -1, -1)
    assert caught.value.hint == "share it with :ro"


def test_two_directories_of_one_name_are_refused(tmp_path: Path) -> None:
    for parent in ("a", "b"):
        (tmp_path / parent / "src").mkdir(parents=True)
    with pytest.raises(UsageError, match="two shared directories are named 'src'"):
        shares.check([SharedFolder(tmp_path / "a" / "src"), SharedFolder(tmp_path / "b" / "src")])


@pytest.mark.parametrize("name", ["/", "/x/disk2", ".."])
def test_directory_without_a_name_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be shared under its own name"):
        shares.check([SharedFolder(Path(name))])


def test_names_of_any_kind_reach_the_guests_shell_as_one_word() -> None:
    command = share_server.mount_command(SharedFolder(Path("/x/a b;$(reboot)'"), read_only=True))
    assert command.count("""'/mnt/a b;$(reboot)'"'"''""") == 3
    assert "allow_other,dcache_timeout=1,ro" in command
