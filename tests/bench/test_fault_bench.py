# SPDX-License-Identifier: MIT
"""The fault benchmark runs and has its ratios. No timing is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from helpers.devices import need_device

SCRIPT = Path(__file__).parent / "fault_bench.py"


def test_benchmark_gives_a_ratio_for_each_figure(tmp_path: Path) -> None:
    need_device("/dev/fuse")
    need_device("/dev/userfaultfd")
    result = tmp_path / "result.json"
    root = SCRIPT.parents[2]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--rounds", "1", "--count", "200", "--size", "8M", "--json", str(result)],
        env={**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    entries = json.loads(result.read_text())
    assert [entry["metric"] for entry in entries] == [
        "random 4 KiB fault, p50",
        "random 4 KiB fault, p99",
        "random 4 KiB fault, mean",
        "sequential read",
    ]
    for entry in entries:
        assert entry["ratio"]["min"] > 0
        assert entry["metric"] in done.stdout
