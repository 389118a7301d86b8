# SPDX-License-Identifier: MIT
"""What the fuzzer found worth keeping is played again in every run."""

from __future__ import annotations

import subprocess
from pathlib import Path

from helpers.memserver import built_program

CORPUS = Path(__file__).resolve().parents[3] / "memserver" / "fuzz" / "corpus"


def test_corpus_breaks_nothing() -> None:
    inputs = sorted(str(path) for path in CORPUS.iterdir())
    assert len(inputs) > 15
    done = subprocess.run(
        [built_program("memserver-replay", "memserver"), *inputs],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, f"{len(inputs)} inputs played\n"), done.stderr


def test_replay_says_what_it_cannot_read() -> None:
    done = subprocess.run(
        [built_program("memserver-replay", "memserver"), "/no/such/input"],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert done.returncode == 1
    assert done.stderr == "/no/such/input: No such file or directory\n"
