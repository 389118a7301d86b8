# SPDX-License-Identifier: MIT
"""What the fuzzers found worth keeping is played again in every run, with sanitizers watching."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from helpers.memserver import built_program
from helpers.sanitized import sanitized_program

ROOT = Path(__file__).resolve().parents[2]
# Program, and the directory of its corpus.
TARGETS = [
    ("memserver/memserver-replay", "memserver/fuzz/corpus"),
    ("qemu/pager/wire-replay", "qemu/pager/fuzz/corpus"),
    ("qemu/pager/link-replay", "qemu/pager/fuzz/link/corpus"),
    ("common/control-replay", "common/fuzz/corpus"),
]


def play(program: str, inputs: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *inputs],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize(("target", "corpus"), TARGETS)
@pytest.mark.parametrize("sanitized", [False, True], ids=["plain", "asan"])
def test_corpus_breaks_nothing(target: str, corpus: str, sanitized: bool) -> None:
    inputs = sorted(str(path) for path in (ROOT / corpus).iterdir())
    assert len(inputs) > 15
    directory, _, name = target.rpartition("/")
    env: Mapping[str, str] = {}
    if sanitized:
        path, env = sanitized_program("asan", target)
        program = str(path)
    else:
        program = built_program(name, directory)
    done = play(program, inputs, env)
    assert (done.returncode, done.stdout) == (0, f"{len(inputs)} inputs played\n"), done.stderr


@pytest.mark.parametrize("target", [target for target, _ in TARGETS])
def test_replay_says_what_it_cannot_read(target: str) -> None:
    directory, _, name = target.rpartition("/")
    done = play(built_program(name, directory), ["/no/such/input"], {})
    assert done.returncode == 1
    assert done.stderr == "/no/such/input: No such file or directory\n"
