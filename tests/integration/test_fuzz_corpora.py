# SPDX-License-Identifier: MIT
"""Each run replays the inputs that the fuzzers found, with sanitizers."""

from __future__ import annotations

import importlib.util
import lzma
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from helpers.memserver import built_program
from helpers.sanitized import sanitized_program

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ["control", "link", "memserver", "secure", "wire"]


def load_corpus() -> ModuleType:
    """Return the program tests/fuzz/corpus.py as a module."""
    spec = importlib.util.spec_from_file_location("corpus", ROOT / "tests/fuzz/corpus.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


corpus = load_corpus()


def play(program: str, inputs: list[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program, *inputs],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **env},
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("sanitized", [False, True], ids=["plain", "asan"])
def test_corpus_breaks_nothing(target: str, sanitized: bool, tmp_path: Path) -> None:
    inputs = [str(path) for path in corpus.unpack(target, tmp_path / "inputs")]
    assert len(inputs) > 15
    env: Mapping[str, str] = {}
    if sanitized:
        path, env = sanitized_program("asan", f"tests/fuzz/{target}-replay")
        program = str(path)
    else:
        program = built_program(f"{target}-replay", "tests/fuzz")
    done = play(program, inputs, env)
    assert (done.returncode, done.stdout) == (0, f"{len(inputs)} inputs played\n"), done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_replay_says_what_it_cannot_read(target: str) -> None:
    done = play(built_program(f"{target}-replay", "tests/fuzz"), ["/no/such/input"], {})
    assert done.returncode == 1
    assert done.stderr == "/no/such/input: No such file or directory\n"


@pytest.mark.parametrize("target", TARGETS)
def test_inputs_without_a_name_are_in_the_archive_and_the_archive_is_reproducible(target: str) -> None:
    seeds = {path.name for path in corpus.seeds_of(target).iterdir()}
    assert not any(len(name) == 40 for name in seeds), "run tests/fuzz/corpus.py pack"
    inputs = corpus.archived(target)
    assert not seeds & set(inputs)
    if inputs:
        assert lzma.decompress(corpus.archive_of(target).read_bytes()) == corpus.tar_of(inputs)
