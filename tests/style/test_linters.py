# SPDX-License-Identifier: MIT
"""The linters and type checkers, run as tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import project


def _run(*argv: str | Path) -> None:
    done = subprocess.run(
        [str(word) for word in argv], cwd=project.ROOT, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


def test_python_is_formatted() -> None:
    _run(sys.executable, "-m", "ruff", "format", "--check", "--diff", "ghostbox", "tests")


def test_python_has_no_lint() -> None:
    _run(sys.executable, "-m", "ruff", "check", "ghostbox", "tests")


def test_python_types_hold() -> None:
    _run(sys.executable, "-m", "mypy", "ghostbox")


def test_c_is_formatted() -> None:
    program = shutil.which("clang-format")
    if program is None:
        pytest.skip("clang-format is not installed")
    _run(program, "--dry-run", "-Werror", *project.with_suffix(".c", ".h"))


def test_shell_scripts_parse() -> None:
    scripts = [path for path in project.files() if _is_shell(path)]
    assert scripts
    for path in scripts:
        _run("bash", "-n", path)


def _is_shell(path: Path) -> bool:
    with path.open("rb") as stream:
        first = stream.readline()
    return first.startswith(b"#!") and first.rstrip().endswith(b"sh")
