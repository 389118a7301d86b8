# SPDX-License-Identifier: MIT
"""Steps of bootstrap run in a copy of the project's directory, with the system's tools or scripts in their place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from helpers import project

QUIET_LINES = 30


@dataclass(frozen=True)
class Copy:
    """Hold a directory with bootstrap and a command, with a space in its name, and a PATH with test tools in front."""

    root: Path
    tools: Path
    home: Path

    @property
    def command(self) -> Path:
        """Return the path that the link leads to."""
        return self.root / ".venv/bin/ghostbox"

    @property
    def link(self) -> Path:
        """Return the path of an ordinary user's link."""
        return self.home / ".local/bin/ghostbox"

    def tool(self, name: str, *lines: str) -> None:
        """Put a small script into the place of a tool."""
        path = self.tools / name
        path.write_text("\n".join(("#!/bin/bash", *lines, "")))
        path.chmod(0o755)

    def steps(self, text: str, *, umask: str = "022", **env: str) -> subprocess.CompletedProcess[str]:
        """Call functions of bootstrap."""
        path = env.pop("PATH", f"{self.tools}:{os.environ['PATH']}")
        argv = ["/bin/bash", "-c", f"umask {umask}; source '{self.root}/bootstrap'; {text}"]
        full = {**os.environ, "PATH": path, "HOME": str(self.home), **env}
        return subprocess.run(argv, env=full, cwd="/", capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    made = Copy(tmp_path / "a project", tmp_path / "tools", tmp_path / "home")
    for place in (made.root, made.tools, made.home, made.command.parent, made.root / ".bootstrap"):
        place.mkdir(parents=True, exist_ok=True)
    shutil.copy(project.ROOT / "bootstrap", made.root)
    made.command.write_text("#!/bin/sh\necho ran\n")
    made.command.chmod(0o755)
    made.tool(
        "id", 'case $1 in -u) echo 1000 ;; -un) echo ana ;; -Gn) echo ana kvm ;; *) exec /usr/bin/id "$@" ;; esac'
    )
    return made


def apt_that_fails(copy: Copy) -> None:
    copy.tool("dpkg-query")
    copy.tool("apt-cache")
    copy.tool("apt-get", "for n in {1..200}; do echo line $n of apt; done", "exit 100")
    copy.tool("sudo", '[ "$*" = "-n true" ] || exec "$@"')


def test_a_step_that_works_is_one_line_and_its_output_is_in_the_log(copy: Copy) -> None:
    done = copy.steps("step 'counting' seq 400")
    assert done.returncode == 0
    assert (done.stdout, done.stderr) == ("", "bootstrap: counting ... 0 s\n")
    logged = (copy.root / ".bootstrap/log").read_text()
    assert logged.startswith("\n== counting: seq 400\n1\n")
    assert logged.endswith("\n400\n")


def test_a_step_that_fails_shows_its_last_lines_and_names_the_log(copy: Copy) -> None:
    apt_that_fails(copy)
    done = copy.steps("install_packages runtime")
    assert done.returncode == 1
    assert "bootstrap: installing system packages (" in done.stderr
    assert " ... failed 0 s\n" in done.stderr
    assert "error: apt-get could not fetch the lists of packages\nwhy: its last lines were:\n  line 181" in done.stderr
    log = copy.root / ".bootstrap/log"
    assert f"  line 200 of apt\nfix: mend the network or /etc/apt/sources.list; the whole log is {log}\n" in done.stderr
    assert len(done.stderr.splitlines()) < QUIET_LINES
    assert log.read_text().count("line 1 of apt") == 2


@pytest.mark.parametrize("has_sudo", [False, True])
def test_a_user_who_may_not_install_packages_is_told_what_root_must_do(copy: Copy, has_sudo: bool) -> None:
    apt_that_fails(copy)
    (copy.tools / "sudo").unlink()
    if has_sudo:
        copy.tool("sudo", "echo 'ana is not in the sudoers file.' >&2", "exit 1")
    for name in ("awk", "bash", "cat", "cut", "dirname", "echo", "id", "mkdir", "readlink", "xargs", "wc"):
        if not (copy.tools / name).exists():
            (copy.tools / name).symlink_to(str(shutil.which(name)))
    done = copy.steps("install_packages runtime", PATH=str(copy.tools))
    assert done.returncode == 1
    assert " system packages are missing, and ana may not install them\n" in done.stderr
    assert "\nfix: as root: apt-get install --no-install-recommends python3 " in done.stderr
    assert "line 1 of apt" not in done.stderr


def test_packages_that_are_there_are_not_installed(copy: Copy) -> None:
    apt_that_fails(copy)
    copy.tool("dpkg-query", f"'{copy.root}/bootstrap' packages test | awk '{{print \"ii  \" $1}}'")
    done = copy.steps("install_packages test")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("role", "has", "lacks"),
    [
        ("donor", {"fastapi", "uvicorn", "httpx", "meson-python"}, {"libvirt-python", "paramiko", "numpy", "pytest"}),
        ("host", {"libvirt-python", "paramiko", "numpy", "httpx"}, {"fastapi", "uvicorn", "matplotlib", "pytest"}),
        ("runtime", {"libvirt-python", "fastapi", "httpx"}, {"matplotlib", "pytest"}),
        ("test", {"libvirt-python", "fastapi", "matplotlib", "pytest"}, set()),
    ],
)
def test_a_role_brings_the_python_packages_that_it_needs(copy: Copy, role: str, has: set[str], lacks: set[str]) -> None:
    shutil.copy(project.ROOT / "pyproject.toml", copy.root)
    (copy.root / ".venv/bin/python").symlink_to(sys.executable)
    done = copy.steps(f"requirements {role}")
    names = {line.partition(">")[0].partition("=")[0] for line in done.stdout.splitlines()}
    assert has <= names
    assert not lacks & names


@pytest.mark.parametrize(
    ("installed", "wanted", "again"),
    [("runtime", "donor", False), ("test", "host", False), ("donor", "runtime", True), ("donor", "donor", False)],
)
def test_what_another_role_brought_is_not_installed_again(copy: Copy, installed: str, wanted: str, again: bool) -> None:
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(project.ROOT / name, copy.root)
    (copy.root / ".venv/bin/python").symlink_to(sys.executable)
    stamps = 'echo "$PWD, $(/usr/bin/python3 --version | cut -d. -f1,2)" >.venv/place.stamp'
    stamps += f"; hash_of pyproject.toml constraints.txt >.venv/requirements-{installed}.stamp"
    done = copy.steps(f'step() {{ echo "$*"; }}; {stamps}; python_env {wanted}')
    assert done.returncode == 0, done.stderr
    assert ("-r .bootstrap/requirements.txt -c constraints.txt" in done.stdout) is again


def test_the_command_is_linked_once_and_found_by_its_name(copy: Copy) -> None:
    path = f"{copy.tools}:{copy.link.parent}:/usr/bin:/bin"
    first = copy.steps("link_command", PATH=path)
    assert first.stderr == f"bootstrap: linked {copy.link}\n"
    assert copy.steps("link_command; ghostbox", PATH=path).stdout == "ran\n"
    assert copy.steps("link_command", PATH=path).stderr == ""


def test_a_directory_that_is_not_on_the_path_is_said_with_what_puts_it_there(copy: Copy) -> None:
    done = copy.steps("link_command")
    advice = done.stderr.partition("is not on your PATH: ")[2].partition(" (")[0]
    assert advice == f'export PATH="{copy.link.parent}:$PATH"'
    assert copy.steps(f"{advice}; ghostbox").stdout == "ran\n"


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_another_copys_command_is_neither_replaced_nor_removed(copy: Copy, kind: str) -> None:
    copy.link.parent.mkdir(parents=True)
    other = copy.home / "other"
    if kind != "dangling":
        other.write_text("#!/bin/sh\necho other\n")
    if kind == "file":
        other.rename(copy.link)
    else:
        copy.link.symlink_to(other)
    done = copy.steps("link_command")
    assert done.returncode == 0
    assert done.stderr == f"bootstrap: {copy.link} belongs to another copy, and is left alone: call {copy.command}\n"
    assert copy.steps("uninstall").returncode == 0
    assert os.path.lexists(copy.link)
    assert not copy.command.exists()


def test_another_ghostbox_that_comes_first_is_named(copy: Copy) -> None:
    copy.tool("ghostbox", "echo other")
    done = copy.steps("link_command", PATH=f"{copy.tools}:{copy.link.parent}:/usr/bin:/bin")
    assert f"bootstrap: {copy.tools}/ghostbox comes first on your PATH: call {copy.link}\n" in done.stderr


def test_uninstall_removes_the_link(copy: Copy) -> None:
    copy.steps("link_command")
    assert copy.link.is_symlink()
    done = copy.steps("uninstall")
    assert f"bootstrap: removed {copy.link}\n" in done.stderr
    assert not os.path.lexists(copy.link)
    assert not copy.command.parent.exists()


def test_what_is_installed_may_be_read_by_all_and_what_runs_has_the_users_umask(copy: Copy) -> None:
    made = copy.root / ".bootstrap/made"
    done = copy.steps(f"touch '{made}'; with_groups bash -c umask", umask="077")
    assert done.stdout == "0077\n"
    assert made.stat().st_mode & 0o777 == 0o644


def test_a_directory_of_another_user_is_refused_before_anything_is_tried(copy: Copy) -> None:
    if os.geteuid() != 0:
        pytest.skip("cannot run here: only root can make a directory of another user")
    os.chown(copy.root / ".venv", 0, 0)
    for place in (copy.root, *copy.root.parents):
        if place.stat().st_uid == 0 and not place.stat().st_mode & 0o001:
            place.chmod(place.stat().st_mode | 0o055)
    done = copy.steps(
        f"exec setpriv --reuid=65534 --clear-groups -- bash -c \"source '{copy.root}/bootstrap'; check_owner\""
    )
    assert done.returncode == 1
    assert f"error: ana may not write to {copy.root}, which belongs to root\n" in done.stderr
    assert f"fix: sudo chown -R ana: '{copy.root}'" in done.stderr
