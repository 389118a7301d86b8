# SPDX-License-Identifier: MIT
"""A copy on disk that falls behind is given up, filled anew, and read from when no other copy is left."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ghostbox.system.processes import wait_until
from helpers.pager import MemoryClient, RunningPager, memory_client, running_memserver, running_pager, short_dir

MIB = 1 << 20
PAGE_BYTES = 4096
PAGES = 4096
EXTENTS = 4
EXTENT_PAGES = PAGES // EXTENTS
OPTIONS: dict[str, Any] = {"pool": "16M", "extent": "4M", "cache": "2M", "readahead": "0", "slow_us": "60000000"}


@contextlib.contextmanager
def slow_disk(directory: Path, *, bytes_per_s: int) -> Iterator[str]:
    """Yield the URI of a qemu-nbd, as `pool.backup` has it, over a file on a disk with a write rate limit."""
    file = directory / "copy"
    with file.open("wb") as stream:
        stream.truncate(16 * MIB)
    with short_dir() as place:
        argv = ["qemu-nbd", "--shared=0", "--persistent", "--export-name=memory", f"--socket={place}/s"]
        argv += ["--discard=unmap", "--description=backup of a VM's memory, file 1"]
        argv += ["--object", f"throttle-group,id=disk,limits.bps-write={bytes_per_s}"]
        image = f"driver=throttle,throttle-group=disk,file.driver=raw,file.file.driver=file,file.file.filename={file}"
        with subprocess.Popen([*argv, "--image-opts", image]) as server:
            try:
                wait_until(lambda: (place / "s").exists() or server.poll() is not None, timeout_s=20, what="qemu-nbd")
                assert server.poll() is None
                yield f"nbd+unix:///memory?socket={place}/s"
            finally:
                server.kill()


def copies(pager: RunningPager, uri: str) -> dict[str, int]:
    """Return the number of extents of a donor for each state."""
    found: dict[str, int] = next(entry["copies"] for entry in pager.status()["donors"] if entry["uri"] == uri)
    return found


def complete(pager: RunningPager, uri: str) -> bool:
    """Tell whether the copy holds all extents in their latest state."""
    return copies(pager, uri) == {"current": EXTENTS, "filling": 0, "stale": 0}


# The pages that are written until the copy falls behind: all of the first two extents, or the first half of each.
WHOLE = [(0, 2 * EXTENT_PAGES)]
HALVES = [(0, EXTENT_PAGES // 2), (EXTENT_PAGES, EXTENT_PAGES // 2)]


def lag(
    client: MemoryClient,
    pager: RunningPager,
    uri: str,
    runs: list[tuple[int, int]],
    *,
    first_seed: int,
    n_extents: int = 1,
) -> int:
    """Write these runs of pages until the copy is behind in so many extents; return the seed of the last write."""
    for seed in range(first_seed, first_seed + 200):
        for first, n in runs:
            client.command("fill", seed=seed, first=first, n=n)
        if behind(pager, uri) >= n_extents:
            return seed
    raise AssertionError(f"it was waited for: {copies(pager, uri)}")


def behind(pager: RunningPager, uri: str) -> int:
    """Return the number of extents of which the copy lacks pages."""
    found = copies(pager, uri)
    return found["stale"] + found["filling"]


def leave_behind_for_good(client: MemoryClient, pager: RunningPager, uri: str, *, first_seed: int) -> int:
    """Write the halves so that at least half of one of them is on the donor alone; return the seed of the write.

    Meanwhile the copy would be filled anew, as fast as the disk is and the test is slow; at this rate an extent takes
    a quarter of an hour. An extent that is being filled takes writes, and one is filled at a time: so both extents have
    to be behind. Pages in the cache are not lost with the donor, so that the halves are evicted to it.
    """
    pager.command("set-rebuild-rate", bytes_per_s=PAGE_BYTES)
    seed = lag(client, pager, uri, HALVES, first_seed=first_seed, n_extents=2) + 1
    for first, n in HALVES:
        client.command("fill", seed=seed, first=first, n=n)
    pager.command("set-cache", cache_bytes=MIB)
    wait_until(lambda: pager.resident_bytes() <= MIB, timeout_s=60, what="the pages leaving for the donor")
    # When the donor has gone, pages of the cache that it alone held cannot be evicted: they need this room.
    pager.command("set-cache", cache_bytes=4 * MIB)
    assert copies(pager, uri)["stale"] > 0
    return seed


def test_a_backup_that_lags_is_filled_anew_and_serves_what_it_has_when_the_donor_is_gone(tmp_path: Path) -> None:
    with running_memserver(a="16M") as donor, slow_disk(tmp_path, bytes_per_s=MIB) as backup:
        options = OPTIONS | {"backup": backup, "on_donor_loss": "poison", "poison_after": "1"}
        with running_pager([donor.uri("a")], **options) as pager, memory_client("16M", pager) as client:
            client.command("fill", seed=1)
            before = lag(client, pager, backup, WHOLE, first_seed=2)
            assert pager.status()["health"] == "degraded"
            client.command("verify", seed=before, first=0, n=2 * EXTENT_PAGES)
            wait_until(lambda: complete(pager, backup), timeout_s=90, what="the copy on disk being filled anew")
            wait_until(lambda: pager.status()["health"] == "ok", timeout_s=30, what="all being well")
            written = leave_behind_for_good(client, pager, backup, first_seed=before + 1)
            assert behind(pager, backup) <= 2, "only what was written"
            # The loss comes in the middle of a fill that would go on for a quarter of an hour.
            wait_until(lambda: copies(pager, backup)["filling"] == 1, timeout_s=30, what="a slow fill")
            donor.process.send_signal(signal.SIGKILL)
            wait_until(lambda: "an older copy on donor" in pager.log(), timeout_s=30, what="the loss")
            client.command("verify", seed=1, first=2 * EXTENT_PAGES, n=2 * EXTENT_PAGES)
            for first, n in HALVES:
                client.command("verify", seed=before, first=first + n, n=n)
            pages = [page for first, n in HALVES for page in range(first, first + n, 8)]
            answers = [client.attempt("verify", seed=written, first=page, n=1) for page in pages]
            lost = [answer for answer in answers if answer.get("error") == "SIGBUS"]
            assert all(answer["ok"] for answer in answers if answer not in lost), "right, or not at all"
            assert lost
            assert pager.status()["health"] == "lost"
