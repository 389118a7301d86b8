# SPDX-License-Identifier: MIT
"""bootstrap checks its arguments and the machine. These tests install nothing; bootstrap itself installed them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from helpers import project

TOOLS = ("awk", "bash", "cat", "cut", "dirname", "echo", "find", "grep", "id", "readlink", "sha256sum", "sort", "xargs")


def bootstrap(*args: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": path or os.environ["PATH"]}
    argv = ["/bin/bash", str(project.ROOT / "bootstrap"), *args]
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=env, timeout=60, cwd="/")


def test_help_names_the_commands() -> None:
    done = bootstrap("--help")
    assert done.returncode == 0
    for word in ("demo", "check", "test", "install", "uninstall", "./bootstrap demo --json"):
        assert word in done.stdout


@pytest.mark.parametrize("args", [(), ("instal",)])
def test_a_wrong_command_is_a_usage_error(args: tuple[str, ...]) -> None:
    done = bootstrap(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: ./bootstrap COMMAND" in done.stderr


def test_every_package_has_a_name_for_each_system_and_a_reason() -> None:
    runtime, test = bootstrap("packages").stdout, bootstrap("packages", "test").stdout
    assert test.startswith(runtime)
    for line in test.splitlines():
        columns = line.split()
        assert len(columns) >= 6, f"no reason: {line}"
        assert re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", columns[0])
    assert "nbdkit" not in runtime


def test_a_donor_gets_neither_qemu_nor_libvirt_nor_a_compiler_run_for_its_binding() -> None:
    donor = {line.split()[0] for line in bootstrap("packages", "donor").stdout.splitlines()}
    all_of_them = {line.split()[0] for line in bootstrap("packages").stdout.splitlines()}
    assert (
        {"python3", "gcc", "libjansson-dev", "libnbd-dev", "libgnutls28-dev", "libseccomp-dev"} <= donor < all_of_them
    )
    left_out = all_of_them - donor
    assert {"qemu-system-x86", "libvirt-daemon-system", "libvirt-dev", "python3-dev", "mmdebstrap"} <= left_out


@pytest.mark.parametrize("arguments", [("--role",), ("--role", "guest"), ("donor",)])
def test_a_role_that_is_none_is_refused_before_anything_is_installed(arguments: tuple[str, ...]) -> None:
    done = bootstrap("install", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: install takes nothing but --role donor or --role host: ")


@pytest.mark.parametrize(
    ("manager", "call", "package"),
    [
        ("dnf", "dnf install python3 ", "libnbd-devel"),
        ("pacman", "pacman -S python ", "libnbd"),
        ("zypper", "zypper install python311 ", "libnbd-devel"),
        ("apk", "apk add python3 ", "libnbd-dev"),
    ],
)
def test_another_package_manager_is_told_what_to_install(manager: str, call: str, package: str, tmp_path: Path) -> None:
    for tool in TOOLS:
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    (tmp_path / manager).symlink_to("/bin/true")
    done = bootstrap("install", path=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: this is not Debian: packages are installed by hand here")
    assert f"fix: {call}" in done.stderr
    assert package in done.stderr.split()


def test_without_any_package_manager_debian_names_are_given(tmp_path: Path) -> None:
    for tool in TOOLS:
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    done = bootstrap("install", path=str(tmp_path))
    assert done.returncode == 1
    assert "error: no known package manager" in done.stderr
    assert "libnbd-dev" in done.stderr.split()


def test_ci_runs_the_tests_by_bootstrap_alone() -> None:
    lines = (project.ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "exec ./bootstrap test"
