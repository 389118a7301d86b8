# SPDX-License-Identifier: MIT
"""The benchmark of the memory server runs and has its ratios. No timing is asserted."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "memserver_bench.py"


@pytest.mark.parametrize("tool", ["fio", "lean"])
def test_benchmark_gives_a_ratio_to_each_reference(tool: str, tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    only = f"{tool} random read 4k depth 16 x1"
    argv = [sys.executable, str(SCRIPT), "--rounds", "1", "--seconds", "1", "--only", only, "--json", str(result)]
    root = SCRIPT.parents[2]
    env_path = f"{root}:{root / 'tests'}"
    done = subprocess.run(
        ["env", f"PYTHONPATH={env_path}", *argv], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    entry = json.loads(result.read_text())[0]
    for reference in ("nbdkit", "qemu-nbd"):
        assert entry["ratios"][reference]["iops"]["median"] > 0
        assert entry["servers"][reference]["cpu_us_per_request"]["median"] >= 0
    assert "ratio of CPU a request" in done.stdout
    assert only in done.stdout
