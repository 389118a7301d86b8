# SPDX-License-Identifier: MIT
"""Run the command in a fork of the test's process: in a process of its own, without Python's start and imports."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NoReturn

import click

from ghostbox.cli import main
from helpers.project import ROOT

_WIDTH = {"COLUMNS": "200", "NO_COLOR": "1"}


def load_commands() -> None:
    """Import all commands, so that no fork has to."""
    for name in main.commands():
        main.cli.get_command(click.Context(main.cli), name)


def run(
    *args: str | Path, cwd: Path, env: Mapping[str, str] | None = None, whole_env: bool = False, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command without a terminal; return what it printed and its exit code.

    ``env`` is added to this process's environment; with ``whole_env`` it stands in its place.
    """
    words = [str(word) for word in args]
    with (
        tempfile.TemporaryFile("w+") as given,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        given.write(stdin)
        given.seek(0)
        pid = os.fork()
        if pid == 0:
            if whole_env:
                os.environ.clear()
            _child(words, cwd, {**_WIDTH, **(env or {})}, (given, out, err))
        _, status = os.waitpid(pid, 0)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, os.waitstatus_to_exitcode(status), out.read(), err.read())


def run_with(env: Mapping[str, str], *words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command with this environment and no other, as `run` does.

    With other modules on its PYTHONPATH than this process has, the command is a process of its own.
    """
    if env.get("PYTHONPATH", str(ROOT)) != str(ROOT):
        argv = [sys.executable, "-m", "ghostbox", *words]
        return subprocess.run(argv, env=env, input=stdin, capture_output=True, text=True, timeout=120, check=False)
    load_commands()
    return run(*words, cwd=Path.cwd(), env=env, whole_env=True, stdin=stdin)


def _child(words: list[str], cwd: Path, env: dict[str, str], streams: tuple[IO[str], IO[str], IO[str]]) -> NoReturn:
    code = 99
    try:
        os.chdir(cwd)
        os.environ.update(env)
        for descriptor, stream in enumerate(streams):
            os.dup2(stream.fileno(), descriptor)
        sys.stdin = os.fdopen(0, "r")
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        sys.argv = ["ghostbox", *words]
        code = main.run(words)
    except SystemExit as ended:  # this variable is for click's completion
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
