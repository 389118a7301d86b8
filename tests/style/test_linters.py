# SPDX-License-Identifier: MIT
"""The linters and type checkers, run as tests."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

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
    # The release that pyproject.toml names, beside this Python: the distribution's own depends on the system's age.
    program = Path(sysconfig.get_path("scripts")) / "clang-format"
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
