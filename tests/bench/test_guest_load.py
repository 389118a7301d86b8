# SPDX-License-Identifier: MIT
"""The load that ``ghostbox bench --vm`` runs in its guests, outside of one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from ghostbox import paths
from ghostbox.units import MIB

COUNTERS = {"pgpromote_success", "pgdemote_kswapd", "pgdemote_direct", "pgdemote_khugepaged", "pswpin", "pswpout"}


def load(*words: str | Path) -> subprocess.CompletedProcess[str]:
    program = paths.find().native / "ghostbox-guest-load"
    return subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=60)


def test_load_does_each_phase_and_counts_it() -> None:
    done = load("memory", "bytes=8388608", "ms=20", "warm_ms=5", "fill", "scan", "random", "zipf", "sort")
    assert done.returncode == 0, done.stderr
    found = {phase["phase"]: phase for phase in map(json.loads, done.stdout.splitlines())}
    assert list(found) == ["fill", "scan", "random", "zipf", "sort"]
    assert found["fill"]["count"] == found["sort"]["count"] == 8 * MIB
    assert found["scan"]["seconds"] >= 0.02
    assert all(phase["per_s"] > 0 and set(phase["vmstat"]) >= COUNTERS for phase in found.values())


def test_load_writes_and_reads_a_file(tmp_path: Path) -> None:
    done = load("file", f"path={tmp_path / 'weights'}", "bytes=1048576", "ms=10", "write", "warm", "scan")
    assert done.returncode == 0, done.stderr
    data = (tmp_path / "weights").read_bytes()
    assert len(data) == MIB
    assert len({data[at : at + 4096] for at in range(0, MIB, 4096)}) == 256


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "usage: memory|file bytes=N"),
        (["disk"], "usage: memory|file bytes=N"),
        (["memory", "fill"], "bytes=N is needed, and path=FILE for a file"),
        (["file", "bytes=4096", "scan"], "bytes=N is needed, and path=FILE for a file"),
        (["memory", "bytes=1", "fill"], "bytes=1 is not a number from 4096 to"),
        (["memory", "bytes=-4096", "fill"], "bytes=-4096 is not a number from"),
        (["memory", "bytes=4096", "dance"], "there is no phase 'dance'"),
        (["file", "path=x", "bytes=4096", "sort"], "there is no phase 'sort'"),
        (["file", "path=/nonexistent/x", "bytes=4096", "scan"], "/nonexistent/x: No such file or directory"),
        (["memory", "bytes=4096", *["scan"] * 17], "more than 16 phases"),
    ],
)
def test_load_says_what_is_wrong(words: list[str], message: str) -> None:
    done = load(*words)
    assert done.returncode == 1
    assert message in done.stderr
