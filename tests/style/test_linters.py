# SPDX-License-Identifier: MIT
"""The linters and type checkers find nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers import project

_EXCEPTION = re.compile(r"# noqa\b(?!: \(|\\b)")
_WITH_REASON = re.compile(r"# noqa: ([A-Z]+\d+(, )?)+ - \S+ \S+")
N_PROCESSES = len(os.sched_getaffinity(0))
# These are the options of the meson.build files.
DEFINES = ["-D_GNU_SOURCE", '-DGHOSTBOX_VERSION="0"']
INCLUDES = ["-I.", "-Icommon", "-Iqemu", "-Iqemu/pager", "-Iqemu/proto"]


def _run(*argv: str | Path) -> None:
    done = subprocess.run(
        [str(word) for word in argv], cwd=project.ROOT, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]


def test_python_is_formatted() -> None:
    _run(sys.executable, "-m", "ruff", "format", "--check", "--diff", "ghostbox", "tests", "docs")


def test_python_has_no_lint() -> None:
    _run(sys.executable, "-m", "ruff", "check", "ghostbox", "tests", "docs")


def test_every_exception_from_lint_says_why() -> None:
    found = [(path, line) for path in project.with_suffix(".py") for line in _exceptions(path)]
    assert found
    silent = [f"{project.shown(path)}: {line}" for path, line in found if not _WITH_REASON.search(line)]
    assert not silent, "\n".join(silent)


def test_python_types_hold() -> None:
    _run(sys.executable, "-m", "mypy", "ghostbox", "tests")


def test_c_is_formatted() -> None:
    # pyproject.toml names the release, which is installed beside this Python: the distribution's release may be older.
    program = Path(sysconfig.get_path("scripts")) / "clang-format"
    _run(program, "--dry-run", "-Werror", *project.with_suffix(".c", ".h"))


def test_c_has_no_lint_of_clang_tidy() -> None:
    # A process of its own reads each file: as many at a time as there are processors.
    program = _installed("clang-tidy")
    sources = [path for path in project.with_suffix(".c") if "kvm_guest" not in path.parts]  # a 32-bit program
    parts = [sources[i::N_PROCESSES] for i in range(N_PROCESSES)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda part: _run(program, "--quiet", *part, "--", "-std=gnu11", *DEFINES, *INCLUDES), parts))


def test_c_has_no_lint_of_cppcheck() -> None:
    options = [
        "--quiet",
        "--enable=warning,performance,portability",
        "--std=c11",
        "--error-exitcode=1",
        "--template=gcc",
    ]
    options += [f"-j{N_PROCESSES}", "--suppressions-list=.cppcheck-suppressions"]
    sources = [project.shown(path) for path in project.with_suffix(".c")]
    _run(_installed("cppcheck"), *options, *DEFINES, *INCLUDES, *sources)


def test_shell_scripts_parse() -> None:
    for path in _shell_scripts():
        _run("bash", "-n", path)


def test_shell_scripts_have_no_lint() -> None:
    _run(_installed("shellcheck"), *_shell_scripts())


def _exceptions(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if _EXCEPTION.search(line)]


def _installed(tool: str) -> str:
    """Return the path of a tool of a Debian package."""
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not installed")
    return found


def _shell_scripts() -> list[Path]:
    scripts = [path for path in project.files() if _is_shell(path)]
    assert scripts
    return scripts


def _is_shell(path: Path) -> bool:
    with path.open("rb") as stream:
        first = stream.readline()
    return first.startswith(b"#!") and first.rstrip().endswith(b"sh")
