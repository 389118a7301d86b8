# SPDX-License-Identifier: MIT
"""Each program of tests/c, the unit tests in C, runs as one test."""

from __future__ import annotations

import re
import subprocess

import pytest

from helpers import project
from helpers.memserver import built_program

SOURCES = sorted((project.ROOT / "tests/c").glob("test_*.c"))


@pytest.mark.parametrize("unit", [path.stem.removeprefix("test_") for path in SOURCES])
def test_unit_in_c(unit: str) -> None:
    done = subprocess.run(
        [built_program(f"test-{unit}", "tests/c")], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = (project.ROOT / f"tests/c/test_{unit}.c").read_text(encoding="utf-8")
    assert re.findall(r"^passed (\w+)$", done.stdout, re.MULTILINE) == re.findall(r"TEST\((\w+)\),", text)


def test_every_function_of_a_unit_test_is_in_its_table() -> None:
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        tests = set(re.findall(r"^static void (\w+)\(void\)$", text, re.MULTILINE))
        assert tests == set(re.findall(r"TEST\((\w+)\),", text)), path.name
