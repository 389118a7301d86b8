# SPDX-License-Identifier: MIT
"""Pager, shim, memserver and client run under AddressSanitizer with UBSan, and under ThreadSanitizer: none reports."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox.system.processes import wait_until
from helpers import gnutls
from helpers.nbd import flip
from helpers.pager import (
    Build,
    MemoryClient,
    RunningPager,
    memory_client,
    nbdkit_memory,
    run_client,
    running_memserver,
    running_pager,
)
from helpers.sanitized import COMPLAINTS, sanitized_build
from helpers.takeover import pager_line


@pytest.fixture(params=["asan", "tsan"], scope="module")
def build(request: pytest.FixtureRequest) -> Build:
    """Return the programs that are built with a sanitizer."""
    return sanitized_build(str(request.param))


@contextlib.contextmanager
def watched(build: Build, tmp_path: Path, **options: str) -> Iterator[tuple[RunningPager, MemoryClient]]:
    """Yield a pager, two donors and a client; no sanitizer may have reported anything at the end."""
    with (
        running_memserver(a="16M", build=build) as donor,
        nbdkit_memory("16M") as other,
        running_pager([donor.uri("a"), other], cache="4M", build=build, place=tmp_path, **options) as pager,
        memory_client("32M", pager, stderr=tmp_path / "client") as client,
    ):
        yield pager, client
    assert pager.process.returncode == 0, pager.log()
    assert donor.process.returncode == 0
    said = pager.log() + (tmp_path / "client").read_text()
    assert not [word for word in COMPLAINTS if word in said], said


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stress_over_tls(build: Build, place: Path, tmp_path: Path) -> None:
    keys = gnutls.key_file(tmp_path / "keys.psk", a="a1" * 32)
    with (
        running_memserver(a="48M", build=build, options=("--tls-psk", str(keys))) as donor,
        running_pager([f"nbds://{donor.address}/a?tls-psk-file={keys}"], cache="4M", build=build, place=place) as pager,
        memory_client("32M", pager, stderr=place / "client") as client,
    ):
        client.command("stress", threads=8, seconds=4, discards=100, seed=1, timeout_s=120)
    assert pager.process.returncode == 0, pager.log()
    assert donor.process.returncode == 0
    said = pager.log() + (place / "client").read_text()
    assert not [word for word in COMPLAINTS if word in said], said


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("hidden", ["poison", "wp_async,wp_unpopulated,continue_wp"])
def test_stress_with_discards(build: Build, hidden: str, place: Path) -> None:
    with watched(build, place, hide_features=hidden) as (pager, client):
        answer = client.command("stress", threads=8, seconds=4, discards=100, seed=1, timeout_s=120)
        assert answer["words_verified"] > 100_000
        pager.command("set-cache", cache_bytes=2 << 20)
        client.command("stress", threads=16, seconds=2, discards=300, seed=2, n=700, fresh=0, timeout_s=120)
        assert pager.status()["evictions"]["dirty"] > 100


@pytest.mark.slow
def test_regions_come_and_go(build: Build, place: Path) -> None:
    with watched(build, place) as (pager, client):
        client.command("fill", n=2048)
        client.command("unmap")
        for _ in range(5):
            wait_until(lambda: not pager.status()["regions"], timeout_s=20, what="end of the region")
            index = client.command("map", bytes="8M")["index"]
            client.command("fill", region=index)
            client.command("verify", region=index)
            client.command("discard", region=index, n=100)
            client.command("unmap", region=index)
        wait_until(lambda: not pager.status()["regions"], timeout_s=20, what="end of the region")
        with memory_client("8M", pager) as other:
            other.command("fill")


@pytest.mark.slow
def test_takeovers(build: Build, tmp_path: Path) -> None:
    err = tmp_path / "client"
    with (
        running_memserver(a="16M", build=build) as donor,
        pager_line([donor.uri("a")], build=build) as line,
        memory_client("16M", line.listen, build=build, stderr=err) as client,
    ):
        client.start("stress", threads=8, seconds=600, discards=200, seed=3)
        for in_order in (False, True, False, True):
            assert client.answers_nothing("stress", for_s=1.0)
            if in_order:
                line.command("hand-over")
                assert line.process.wait(20) == 0, line.log()
            else:
                line.kill()
            line.resume()
            line.wait_served(client)
        client.command("stress-stop")
        assert client.result("stress", timeout_s=120)["ok"]
        client.kill()
        line.command("stop", force=True)
        assert line.process.wait(20) == 0, line.log()
        said = line.log() + err.read_text()
    assert not [word for word in COMPLAINTS if word in said], said


@pytest.mark.slow
def test_refusals(build: Build, place: Path) -> None:
    with watched(build, place) as (pager, _):
        done = run_client("64M", "read", listen=pager.listen, build=build)
        assert done.returncode == 1
        assert "the pager refuses: the region has 64 MiB" in done.stderr


@pytest.mark.slow
def test_copies_are_made_anew(build: Build, place: Path) -> None:
    """Donors are added, drained, lie and die, with two copies of each extent and a third one that is written later."""
    options: dict[str, Any] = {"replicas": "2", "allow_same_host": "", "pool": "16M", "rebuild_after": "0"}
    with (
        running_memserver(a="16M", build=build) as one,
        running_memserver(a="16M") as two,
        running_memserver(a="16M") as three,
        nbdkit_memory("16M") as backup,
    ):
        uris = [one.uri("a"), two.uri("a"), three.uri("a")]
        with (
            running_pager(
                uris[:2], cache="2M", extent="1M", backup=backup, build=build, place=place, **options
            ) as pager,
            memory_client("16M", pager, stderr=place / "client") as client,
        ):
            client.start("stress", threads=4, seconds=600, seed=1, discards=100)
            pager.command("add-donor", uri=uris[2])
            flip(uris[0], {page * 4096: 0x20 for page in range(0, 2048, 16)})
            pager.command("drain-donor", uri=uris[0])
            wait_until(lambda: pager.status()["donors"][0]["used_slots"] == 0, timeout_s=60, what="the drain")
            pager.command("remove-donor", uri=uris[0])
            pager.command("add-donor", uri=uris[0])
            wait_until(lambda: pager.status()["donors"][4]["used_slots"] > 5, timeout_s=60, what="the balance")
            two.process.kill()
            wait_until(lambda: pager.status()["donors"][1]["used_slots"] == 0, timeout_s=60, what="new copies")
            assert pager.status()["pages"]["poisoned"] == 0
            client.command("stress-stop")
            assert client.result("stress", timeout_s=120)["ok"]
        assert pager.process.returncode == 0, pager.log()
        said = pager.log() + (place / "client").read_text()
    assert not [word for word in COMPLAINTS if word in said], said


@pytest.mark.slow
def test_files_that_are_removed_are_made_anew_under_stress(build: Build, place: Path) -> None:
    with watched(build, place, state=str(place / "state")) as (pager, client):
        client.start("stress", threads=4, seconds=600, discards=50, fresh=0)
        files = (place / "state", pager.listen, pager.control)
        for _ in range(5):
            for file in files:
                file.unlink()
            pager.process.send_signal(signal.SIGUSR1)
            wait_until(lambda: all(file.exists() for file in files), timeout_s=60, what="the pager's files")
        client.command("stress-stop", timeout_s=120)
        assert client.result("stress", timeout_s=120)["ok"]
