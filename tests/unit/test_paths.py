# SPDX-License-Identifier: MIT
"""Directories for root and for other users."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ghostbox import paths
from ghostbox.errors import ConfigError
from ghostbox.system import state_files
from helpers import project

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def as_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the environment of a user whose login made no session."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home-of/ana")
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_root_uses_the_system_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    found = paths.find()
    assert (found.state, found.runtime) == (Path("/var/lib/ghostbox"), Path("/run/ghostbox"))
    assert found.images == Path("/var/cache/ghostbox/images")


def test_a_user_uses_the_xdg_directories(as_user: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    found = paths.find()
    assert found.state == Path("/home-of/ana/.local/state/ghostbox")
    assert found.runtime == Path("/run/user/1000/ghostbox")
    assert found.cache == Path("/home-of/ana/.cache/ghostbox")


@pytest.mark.filterwarnings("error")
def test_without_a_login_session_sockets_lie_beside_the_state_and_not_in_tmp(as_user: None) -> None:
    assert paths.find().runtime == Path("/home-of/ana/.local/state/ghostbox/run")


@pytest.mark.parametrize("kind", ["state", "runtime", "cache", "native"])
def test_each_directory_can_be_moved(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"GHOSTBOX_{kind.upper()}_DIR", "/elsewhere")
    assert getattr(paths.find(), kind) == Path("/elsewhere")


def test_vms_and_memservers_have_directories_of_their_own() -> None:
    found = paths.find()
    assert found.vm("a").state != found.vm("b").state
    assert found.vm("a").pager_socket.parent == found.vm("a").pager_control.parent == found.runtime / "vms/a"
    assert found.memserver_state("t").parent.name == "memservers"


def test_the_reference_configuration_is_shipped() -> None:
    assert paths.data_file("config.yaml").is_file()


def test_an_empty_variable_is_as_if_it_were_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("GHOSTBOX_STATE_DIR", "")
    assert paths.find().state == Path("/var/lib/ghostbox")


@pytest.mark.parametrize("kind", ["STATE", "RUNTIME", "CACHE", "NATIVE"])
def test_a_relative_directory_is_refused_with_what_to_write(
    kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(f"GHOSTBOX_{kind}_DIR", "here/x")
    message = rf"GHOSTBOX_{kind}_DIR is 'here/x', which does not begin at the root \(/\)"
    with pytest.raises(ConfigError, match=message) as caught:
        paths.find()
    assert caught.value.hint == f"GHOSTBOX_{kind}_DIR={tmp_path}/here/x"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a\nb", "it has a control character in its name"),
        ("a\x1b[31m", "it has a control character in its name"),
        ("a\u2028b", "it has a control character in its name"),
        ("a${HOME}b", r"it has '\$\{' in its name, which ssh takes for a variable"),
        ("a\udcffb", "its name is not UTF-8"),
    ],
)
def test_a_name_that_some_program_cannot_be_told_is_refused_with_the_reason(
    name: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GHOSTBOX_STATE_DIR", f"/x/{name}")
    with pytest.raises(ConfigError, match="the state directory cannot be used: /x/a") as caught:
        paths.find()
    assert re.search(why, str(caught.value.why))
    assert caught.value.hint == "set GHOSTBOX_STATE_DIR to another directory"


@pytest.mark.parametrize("name", ["a b", "a:b", "a%h", "it's", 'qu"ote', "$x", "a\\b", "[a]*?", "ü", "a\u00a0b"])
def test_other_odd_names_are_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_STATE_DIR", f"/x/{name}")
    assert paths.find().state == Path(f"/x/{name}")


def test_a_name_that_the_locale_reads_in_another_way_than_libvirt_is_refused(ghostbox_cli: Cli) -> None:
    """If Python does not use UTF-8, it reads other characters in the bytes of the name.

    libvirt would look for another directory.
    """
    env = {"GHOSTBOX_STATE_DIR": "/tmp/gbt-ü", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = ghostbox_cli("paths", env=env)
    assert done.returncode == 2, done.stdout
    assert "does not run in a UTF-8 locale" in done.stderr


def test_a_service_without_a_home_uses_what_it_is_given_or_says_what_is_missing(
    as_user: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_uid: int) -> pwd.struct_passwd:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(ConfigError, match="there is no home directory to keep VMs in") as caught:
        paths.find()
    assert caught.value.why == "HOME is not set, and the system knows no user 1000"
    for kind in ("STATE", "RUNTIME", "CACHE"):
        monkeypatch.setenv(f"GHOSTBOX_{kind}_DIR", f"/srv/{kind}")
    assert paths.find().state == Path("/srv/STATE")
    assert paths.home_directory() is None


def test_the_runtime_directory_of_another_users_session_is_refused(
    as_user: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 54321)
    with pytest.raises(ConfigError, match=f"XDG_RUNTIME_DIR is {tmp_path}, which belongs to another user") as caught:
        paths.find()
    assert "unset XDG_RUNTIME_DIR" in str(caught.value.hint)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "relative")
    assert paths.find().runtime == Path("/home-of/ana/.local/state/ghostbox/run"), "the standard has it ignored"


def test_a_process_of_an_unknown_user_without_home_is_told_so(tmp_path: Path) -> None:
    """The process runs as a user that the system really does not know."""
    argv = [sys.executable, "-m", "ghostbox", "paths"]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(project.ROOT)}
    closed = "cannot run here: the tests' Python is closed to other users"
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, user=54321, cwd="/", check=False)
    except PermissionError:
        pytest.skip(closed)
    if "Permission denied" in done.stderr or "No module named" in done.stderr:
        pytest.skip(closed)
    assert done.returncode == 2, done.stderr
    assert "error: there is no home directory to keep VMs in\nwhy: HOME is not set, and the system knows" in done.stderr


def test_a_current_directory_that_is_gone_is_said(tmp_path: Path, ghostbox_dirs: Path) -> None:
    (gone := tmp_path / "gone").mkdir()
    script = f"cd '{gone}' && rmdir '{gone}' && exec '{sys.executable}' -m ghostbox config show"
    env = {**os.environ, "PYTHONPATH": str(project.ROOT), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, check=False)
    assert "error: the current directory is gone\nfix: change to another directory: cd" in done.stderr


def test_no_umask_takes_from_libvirts_user_what_it_must_pass(tmp_path: Path) -> None:
    """The first program to make the directories may be a donor, a measurement or a VM."""
    made = [tmp_path / "s" / "memservers" / "tower", tmp_path / "r" / "vms" / "work"]
    before = os.umask(0o077)
    try:
        paths.make_directory(made[0], 0o700)
        paths.make_directory(made[1])
        paths.make_directory(tmp_path / "s" / "vms")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"s": 0o711, "memservers": 0o711, "tower": 0o700, "r": 0o711, "vms": 0o711, "work": 0o711}


def test_all_programs_make_ghostbox_directories_in_the_same_way() -> None:
    """A plain mkdir obeys the umask, and a later VM would be refused."""
    allowed = {
        "paths.py",
        "build.py",
        "store.py",
        "ssh_include.py",
        "cgroup.py",
        "lab.py",
        "services.py",
        "sftp.py",
        "daemon.py",
        "agent.py",  # it runs where no other module of ours is, and sets the umask
    }
    wrong = [
        str(path)
        for path in (project.ROOT / "ghostbox").rglob("*.py")
        if path.name not in allowed and ".mkdir(" in path.read_text(encoding="utf-8")
    ]
    assert not wrong


def test_what_is_kept_is_its_owners_alone_whatever_the_umask_is(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state_files.write(tmp_path / "state.json", {"a": 1})
        with paths.open_private(tmp_path / "log", append=True) as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {
        "state.json": 0o600,
        "log": 0o600,
    }


def test_a_private_file_is_added_to_or_begun_anew(tmp_path: Path) -> None:
    for text, append, whole in ((b"one", True, b"one"), (b"two", True, b"onetwo"), (b"new", False, b"new")):
        with paths.open_private(tmp_path / "log", append=append) as file:
            file.write(text)
        assert (tmp_path / "log").read_bytes() == whole
