# SPDX-License-Identifier: MIT
"""The load that ``ghostbox bench --vm`` runs in its guests does what its arguments say, also outside of a guest."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ghostbox import paths
from ghostbox.units import MIB

COUNTERS = {"pgpromote_success", "pgdemote_kswapd", "pgdemote_direct", "pgdemote_khugepaged", "pswpin", "pswpout"}


def load(*words: str | Path) -> subprocess.CompletedProcess[str]:
    program = paths.find().native / "ghostbox-guest-load"
    return subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=60)


def report(*words: str | Path) -> list[dict[str, Any]]:
    done = load(*words)
    assert done.returncode == 0, done.stderr
    begun, *lines = map(json.loads, done.stdout.splitlines())
    assert begun == {"begun": True}
    return lines


PACE = ("window_ms=5", "least_ms=30", "most_ms=60")


def test_load_does_each_phase_and_counts_it() -> None:
    hot = [f"{name}:2097152" for name in ("hot", "moved", "written", "scanned")]
    words = ["fill", "scan", "random", "zipf:0.9", "zipf:1.1", *hot, "check", "sort"]
    lines = report("memory", "bytes=8388608", *PACE, *words)
    found = {line["phase"]: line for line in lines if "phase" in line}
    assert list(found) == words
    assert found["fill"]["count"] == found["sort"]["count"] == 8 * MIB
    assert all(phase["per_s"] > 0 and set(phase["vmstat"]) >= COUNTERS for phase in found.values())
    for word in words[1:-2]:
        windows = [line for line in lines if line.get("window") == word]
        last = windows[-found[word]["windows"] :]
        rates = [window["count"] / window["seconds"] for window in last]
        assert len(last) == 4
        assert found[word]["per_s"] == pytest.approx(sum(rates) / 4, rel=1e-3)
        near = all(abs(rate / found[word]["per_s"] - 1) < 0.0501 for rate in rates)
        assert near or not found[word]["settled"]
        assert found[word]["seconds"] >= 0.03


def test_phase_ends_when_it_has_settled_and_says_when_that_was() -> None:
    *_, phase = report("memory", "bytes=1048576", "window_ms=50", "least_ms=1", "most_ms=20000", "fill", "hot:1048576")
    assert phase["settled"] is True
    assert phase["settled_s"] <= phase["seconds"] < 20


def test_what_is_not_as_it_was_written_is_found() -> None:
    """A sort moves all records."""
    done = load("memory", "bytes=1048576", *PACE, "fill", "sort", "check")
    assert done.returncode == 1
    assert re.search(r"record \d+ is not as it was written", done.stderr)


def test_phase_that_does_not_settle_is_measured_as_it_is() -> None:
    *_, phase = report("memory", "bytes=1048576", "window_ms=1", "least_ms=1", "most_ms=1", "fill", "scan")
    assert phase["settled"] or phase["settled_s"] == phase["seconds"]


def test_load_writes_and_reads_a_file(tmp_path: Path) -> None:
    done = load("file", f"path={tmp_path / 'weights'}", "bytes=1048576", *PACE, "write", "warm", "scan")
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
        (["memory", "bytes=4096", "zipf"], "phase 'zipf' takes an argument: NAME:NUMBER"),
        (["memory", "bytes=4096", "scan:1"], "phase 'scan' takes no argument"),
        (["memory", "bytes=4096", "zipf:x"], "Zipf's exponent is not a number up to 4"),
        (["memory", "bytes=4096", "hot:8192"], "the hot set is no number of bytes from 4096 to 4096"),
        (["file", "path=x", "bytes=4096", "sort"], "there is no phase 'sort'"),
        (["file", "path=/nonexistent/x", "bytes=4096", "scan"], "/nonexistent/x: No such file or directory"),
        (["memory", "bytes=4096", *["scan"] * 17], "more than 16 phases"),
    ],
)
def test_load_says_what_is_wrong(words: list[str], message: str) -> None:
    done = load(*words)
    assert done.returncode == 1
    assert message in done.stderr
