# SPDX-License-Identifier: MIT
"""The real programs get commands with absurd arguments: each command is answered, and no program breaks.

tests/fuzz/control/drive.c tests how lines are cut, parsed and answered.
"""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path
from typing import Any

import pytest

from helpers.pager import Build, running_memserver, running_pager, short_dir
from helpers.sanitized import COMPLAINTS, sanitized_build

COMMANDS = {
    "memserver": ("status", "export-add", "export-remove"),
    "pager": ("status", "page-map", "set-cache"),
}
KEYS = ("name", "size_bytes", "force", "cells", "cache_bytes", "id", "cmd2")
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    4096,
    4097,
    1 << 31,
    1 << 32,
    (1 << 63) - 1,
    -(1 << 63),
    1.5,
    1e308,
    "",
    "a",
    "../x",
    "é" * 200,
    "a\nb",
    "x" * 5000,
    [],
    [[]],
    {},
    {"name": "a"},
)


@pytest.fixture(scope="module")
def asan() -> Build:
    """Return the directory of programs that are built with AddressSanitizer and UBSan."""
    return sanitized_build("asan")


def say_anything(path: Path, commands: tuple[str, ...], seed: int, n: int) -> set[str]:
    """Send ``n`` requests and return the codes of the errors; every request must get an answer with its id."""
    rng = random.Random(seed)
    codes = set()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(path))
        answers = sock.makefile("rb")
        for number in range(n):
            request = {key: rng.choice(VALUES) for key in rng.sample(KEYS, rng.randrange(5))}
            request |= {"cmd": rng.choice(commands), "id": number}
            sock.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(answers.readline())
            assert answer["id"] == number, request
            if not answer["ok"]:
                assert answer["error"]["message"], request
                codes.add(answer["error"]["code"])
    return codes


@pytest.mark.slow
def test_memory_server_answers_every_command(asan: Build, capfd: pytest.CaptureFixture[str]) -> None:
    with running_memserver(a="1M", size="64M", build=asan) as server:
        codes = say_anything(server.control, COMMANDS["memserver"], 1, 12000)
        assert {"invalid", "not-found", "too-small"} <= codes
        assert server.status()["version"]
    assert server.process.returncode == 0
    said = capfd.readouterr().err
    assert not [word for word in COMPLAINTS if word in said], said[-3000:]


@pytest.mark.slow
def test_pager_answers_every_command(asan: Build) -> None:
    with short_dir() as place, running_memserver(a="16M") as server:
        with running_pager([server.uri("a")], build=asan, place=place) as pager:
            codes = say_anything(pager.control, COMMANDS["pager"], 2, 4000)
            assert "invalid" in codes
            assert pager.status()["cache_bytes"] > 0
        assert pager.process.returncode == 0
        assert not [word for word in COMPLAINTS if word in pager.log()], pager.log()[-3000:]
