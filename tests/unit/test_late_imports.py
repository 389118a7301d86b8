# SPDX-License-Identifier: MIT
"""A command loads no library that takes longer to load than the command takes, unless it needs that library."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = {"email.mime.text", "fastapi", "httpx", "matplotlib", "numpy", "paramiko", "zeroconf"}


@pytest.mark.parametrize(
    ("module", "needs"), [("ghostbox.cli.lifecycle", set()), ("ghostbox.memserver.service", {"fastapi", "zeroconf"})]
)
def test_module_loads_no_slow_library_that_it_may_not_need(module: str, needs: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({SLOW} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == needs
