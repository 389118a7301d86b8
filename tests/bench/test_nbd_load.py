# SPDX-License-Identifier: MIT
"""The NBD load of ghostbox-bench-client does what its arguments say."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ghostbox import paths
from helpers import gnutls
from helpers.pager import RunningMemserver, running_memserver

MIB = 1 << 20


def load(server: RunningMemserver, **words: object) -> subprocess.CompletedProcess[str]:
    port = server.address.rpartition(":")[2]
    argv: list[str | Path] = [paths.find().native / "ghostbox-bench-client", "load", f"port={port}", "export=a"]
    return subprocess.run(
        [*argv, *(f"{key}={value}" for key, value in words.items())],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def result(server: RunningMemserver, **words: object) -> dict[str, Any]:
    done = load(server, **words)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_span_is_all_that_is_touched() -> None:
    with running_memserver(a="16M") as server:
        found = result(server, mode="write", pattern="sequential", bytes="256K", depth=4, span="2M", ms=50)
        assert found["count"] > 8
        assert server.resident_bytes("a") == 2 * MIB


@pytest.mark.parametrize("poll_us", [0, 50])
@pytest.mark.parametrize(("mode", "bytes", "depth"), [("read", "4096", 16), ("read", "1M", 3), ("write", "256K", 8)])
def test_with_keys_it_loads_an_export_over_tls(tmp_path: Path, poll_us: int, mode: str, bytes: str, depth: int) -> None:
    keys = gnutls.key_file(tmp_path / "keys.psk", a="a1" * 32)
    with running_memserver(a="16M", options=("--tls", "require", "--tls-psk", str(keys))) as server:
        result(server, keys=keys, mode="write", pattern="sequential", bytes="1M", ms=20)
        before = server.status()["counters"][f"{mode}s"]
        found = result(server, keys=keys, mode=mode, bytes=bytes, depth=depth, poll_us=poll_us, ms=50)
        assert found["count"] == found["latency"]["count"] == server.status()["counters"][f"{mode}s"] - before


def test_why_an_export_cannot_be_had_over_tls(tmp_path: Path) -> None:
    keys = gnutls.key_file(tmp_path / "keys.psk", a="a1" * 32)
    with running_memserver(a="1M") as server:
        assert "it offers no TLS" in load(server, keys=keys).stderr
        assert "/no/keys cannot be opened: No such file or directory" in load(server, keys="/no/keys").stderr
        others = gnutls.key_file(tmp_path / "others.psk", b="a1" * 32)
        assert "the key file has no key for this export" in load(server, keys=others).stderr
    wrong = gnutls.key_file(tmp_path / "wrong.psk", a="b2" * 32)
    with running_memserver(a="1M", options=("--tls-psk", str(keys))) as server:
        assert "the TLS handshake failed" in load(server, keys=wrong).stderr


@pytest.mark.parametrize("poll_us", [0, 50])
@pytest.mark.parametrize(("bytes", "depth"), [("4096", 1), ("4096", 16), ("256K", 8), ("1M", 3)])
def test_every_request_is_answered_and_counted_once(poll_us: int, bytes: str, depth: int) -> None:
    with running_memserver(a="16M") as server:
        result(server, mode="write", pattern="sequential", bytes="1M", ms=20)
        before = server.status()["counters"]["reads"]
        found = result(server, mode="read", bytes=bytes, depth=depth, poll_us=poll_us, ms=50)
        assert found["count"] == found["latency"]["count"] == server.status()["counters"]["reads"] - before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"bytes": "256K", "span": "4K"}, "span must hold a request"),
        ({"poll_us": 10001}, "poll_us=10001 is not a number from 0 to 10000"),
        ({"bytes": "32M"}, "the export is smaller than a request"),
    ],
)
def test_words_that_make_no_sense_are_refused(words: dict[str, object], message: str) -> None:
    with running_memserver(a="16M") as server:
        done = load(server, **words)
    assert done.returncode == 1
    assert message in done.stderr
