# SPDX-License-Identifier: MIT
"""A machine has a name, whatever name the kernel was given; the tests set it in a namespace of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from helpers import project

SCRIPT = """
import socket, sys
from ghostbox.donors.client import host_name
from ghostbox.memserver.opening import default_name
from ghostbox.session.record import lease_name
for name in sys.argv[1:]:
    socket.sethostname(bytes.fromhex(name))
    print(host_name(), default_name(), lease_name("work").split("-")[1])
"""
NAMES = [
    (b"tower", "tower tower work"),
    (b"", "unnamed donor work"),
    (b"\xff\xfe", "\ufffd\ufffd donor work"),
    (b"my \xc3\xbc host", "my ü host my---host work"),
    (b"a\x1b[2Jb", "a?[2Jb a--2Jb work"),
]


def test_any_bytes_or_none_make_a_name_that_everybody_can_take() -> None:
    argv = ["unshare", "--uts", sys.executable, "-c", SCRIPT, *(name.hex() for name, _ in NAMES)]
    env = {**os.environ, "PYTHONPATH": str(project.ROOT), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(argv, capture_output=True, text=True, env=env, check=False)
    if "unshare failed" in done.stderr:
        pytest.skip(f"cannot run here: {done.stderr.strip()}")
    assert done.stdout.splitlines() == [expected for _, expected in NAMES], done.stderr
