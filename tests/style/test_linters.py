# SPDX-License-Identifier: MIT
"""The linters and type checkers find nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers import linted, project

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


def test_python_types_hold() -> None:
    _run(sys.executable, "-m", "mypy", "ghostbox", "tests")


def test_python_is_formatted() -> None:
    _run(sys.executable, "-m", "ruff", "format", "--check", "--diff", "ghostbox", "tests", "docs")


def test_python_has_no_lint() -> None:
    _run(sys.executable, "-m", "ruff", "check", "ghostbox", "tests", "docs")


def test_every_exception_from_lint_says_why() -> None:
    found = [(path, line) for path in project.with_suffix(".py") for line in _exceptions(path)]
    assert found
    silent = [f"{project.shown(path)}: {line}" for path, line in found if not _WITH_REASON.search(line)]
    assert not silent, "\n".join(silent)


def test_c_is_formatted() -> None:
    # pyproject.toml names the release, which is installed beside this Python: the distribution's release may be older.
    program = Path(sysconfig.get_path("scripts")) / "clang-format"
    _run_on_new([program, "--dry-run", "-Werror"], project.with_suffix(".c", ".h"), also=[_settings(".clang-format")])


def test_c_has_no_lint_of_clang_tidy() -> None:
    sources = [path for path in project.with_suffix(".c") if "kvm_guest" not in path.parts]  # a 32-bit program
    argv = [_installed("clang-tidy"), "--quiet"]
    also = [_settings(".clang-tidy"), *project.with_suffix(".h")]
    _run_on_new(argv, sources, "--", "-std=gnu11", *DEFINES, *INCLUDES, also=also)


def test_c_has_no_lint_of_cppcheck() -> None:
    argv = [
        _installed("cppcheck"),
        "--quiet",
        "--enable=warning,performance,portability",
        "--std=c11",
        "--error-exitcode=1",
        "--template=gcc",
        "--suppressions-list=.cppcheck-suppressions",
        # One process alone would also guess across files, which finds what is none.
        f"-j{max(2, N_PROCESSES)}",
        *DEFINES,
        *INCLUDES,
    ]
    also = [_settings(".cppcheck-suppressions"), *project.with_suffix(".h")]
    _run_on_new(argv, project.with_suffix(".c"), also=also, n_parts=1)


def test_shell_scripts_parse() -> None:
    for path in _shell_scripts():
        _run("bash", "-n", path)


def test_shell_scripts_have_no_lint() -> None:
    scripts = _shell_scripts()
    _run_on_new([_installed("shellcheck")], scripts, also=[_settings(".shellcheckrc"), *scripts])


def _run_on_new(
    argv: Sequence[str | Path],
    files: Sequence[Path],
    *last: str,
    also: Sequence[Path],
    n_parts: int = N_PROCESSES,
) -> None:
    """Run a linter on those files that it has not found clean before, ``n_parts`` of them at a time.

    ``also`` are the files that its answer depends on besides.
    """
    assert files
    clean = linted.Clean(argv[0], [*map(str, argv[1:]), *last], also)
    new = clean.unknown(files)
    parts = [part for part in (new[i::n_parts] for i in range(n_parts)) if part]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda part: _run(*argv, *map(project.shown, part), *last), parts))
    clean.note(new)


def _settings(name: str) -> Path:
    return project.ROOT / name


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
