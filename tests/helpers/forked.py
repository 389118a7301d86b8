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

_WIDTH = {"COLUMNS": "200", "NO_COLOR": "1"}


def load_commands() -> None:
    """Import all commands, so that no fork has to."""
    for name in main.commands():
        main.cli.get_command(click.Context(main.cli), name)


def run(*args: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command without a terminal or input; return what it printed and its exit code."""
    words = [str(word) for word in args]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        pid = os.fork()
        if pid == 0:
            _child(words, cwd, {**_WIDTH, **(env or {})}, out, err)
        _, status = os.waitpid(pid, 0)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, os.waitstatus_to_exitcode(status), out.read(), err.read())


def _child(words: list[str], cwd: Path, env: dict[str, str], out: IO[str], err: IO[str]) -> NoReturn:
    code = 99
    try:
        os.chdir(cwd)
        os.environ.update(env)
        for descriptor, stream in ((1, out), (2, err)):
            os.dup2(stream.fileno(), descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
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
