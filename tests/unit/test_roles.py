# SPDX-License-Identifier: MIT
"""A donor runs without the Python packages that only a host needs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ghostbox
from helpers import project

PACKAGE_PARENT = str(Path(ghostbox.__file__).resolve().parent.parent)
OF_HOSTS = ("libvirt", "libvirtmod", "packaging", "paramiko", "pycdlib", "numpy", "matplotlib")
OF_DONORS = ("fastapi", "starlette", "uvicorn")
WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
RUN = "from ghostbox.cli.main import run\nraise SystemExit(run(sys.argv[1:]))"


def python(missing: tuple[str, ...], text: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a few lines of Python where some packages cannot be found."""
    argv = [sys.executable, "-c", WITHOUT.format(modules=set(missing)) + text, *words]
    env = {**os.environ, "PYTHONPATH": PACKAGE_PARENT}
    return subprocess.run(argv, capture_output=True, text=True, check=False, env=env, timeout=60)


@pytest.mark.parametrize(
    "words", [("--help",), ("memserver", "--help"), ("memserver", "drain", "--help"), ("service", "--help"), ("paths",)]
)
def test_a_donors_commands_need_no_package_of_a_host(words: tuple[str, ...]) -> None:
    done = python(OF_HOSTS, RUN, *words)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_module_of_the_memserver_is_imported_without_them() -> None:
    modules = sorted(name for name in project.package_modules() if name.startswith("ghostbox.memserver"))
    assert "ghostbox.memserver.service" in modules
    done = python(OF_HOSTS, "\n".join(f"import {name}" for name in [*modules, "ghostbox.cli.memserver"]))
    assert (done.returncode, done.stderr) == (0, "")


def test_doctor_checks_a_donor_and_says_that_a_host_lacks_libvirt() -> None:
    of_donor = python(OF_HOSTS, RUN, "doctor", "--role", "donor")
    assert "memory-donor" in of_donor.stdout
    assert "is not installed" not in of_donor.stdout
    of_host = python(OF_HOSTS, RUN, "doctor", "--role", "host")
    assert of_host.returncode == 5
    assert "fail  libvirt               the Python package libvirt is not installed\n" in of_host.stdout


@pytest.mark.parametrize(
    ("missing", "command", "package"), [(OF_HOSTS, "up", "libvirt"), (OF_DONORS, "memserver", "fastapi")]
)
def test_a_command_of_the_other_role_says_what_brings_it(missing: tuple[str, ...], command: str, package: str) -> None:
    done = python(missing, RUN, command)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: '{command}' needs the Python package {package}, which this installation lacks\n"
        "why: it was installed for another role (donor or host)\n"
        "fix: ./bootstrap install installs what both roles need\n"
    )
