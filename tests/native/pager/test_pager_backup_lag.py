# SPDX-License-Identifier: MIT
"""A copy on disk that cannot keep up: it is left behind, filled anew, and used for what it has when nothing else is."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostbox.processes import wait_until
from helpers.pager import MemoryClient, RunningPager, memory_client, running_memserver, running_pager, short_dir

MIB = 1 << 20
PAGES = 4096
OPTIONS: dict[str, Any] = {"pool": "16M", "extent": "1M", "cache": "2M", "readahead": "0", "slow_us": "60000000"}


@dataclass(frozen=True)
class Backup:
    """The server of a copy on disk."""

    uri: str
    server: subprocess.Popen[bytes]

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """Take nothing until the end of the block: what the copy lacks then, it goes on lacking."""
        self.server.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.server.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def slow_disk(directory: Path, *, bytes_per_s: int) -> Iterator[Backup]:
    """A qemu-nbd, as `pool.backup` has it, over a file on a disk that writes no faster."""
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
                yield Backup(f"nbd+unix:///memory?socket={place}/s", server)
            finally:
                server.kill()


def copies(pager: RunningPager, uri: str) -> dict[str, int]:
    """Return how many extents a donor has in which state."""
    found: dict[str, int] = next(entry["copies"] for entry in pager.status()["donors"] if entry["uri"] == uri)
    return found


def complete(pager: RunningPager, uri: str) -> bool:
    """Tell whether it has all, as it is now."""
    return copies(pager, uri) == {"current": 16, "filling": 0, "stale": 0}


def lag(client: MemoryClient, pager: RunningPager, uri: str, *, first_seed: int) -> int:
    """Write to half of the memory until the copy is left behind; return the seed of what was written last."""
    for seed in range(first_seed, first_seed + 50):
        client.command("fill", seed=seed, first=0, n=PAGES // 2)
        if behind(pager, uri):
            return seed
    raise AssertionError("it was waited for")


def behind(pager: RunningPager, uri: str) -> int:
    """Return in how many extents the copy lacks something."""
    found = copies(pager, uri)
    return found["stale"] + found["filling"]


def is_down(pager: RunningPager, uri: str) -> bool:
    """Tell whether a donor is without any connection."""
    return any(entry["uri"] == uri and entry["state"] == "down" for entry in pager.status()["donors"])


def test_a_backup_that_lags_is_filled_anew_and_serves_what_it_has_when_the_donor_is_gone(tmp_path: Path) -> None:
    with running_memserver(a="16M") as donor, slow_disk(tmp_path, bytes_per_s=2 * MIB) as backup:
        options = OPTIONS | {"backup": backup.uri, "on_donor_loss": "poison", "poison_after": "1"}
        with running_pager([donor.uri("a")], **options) as pager, memory_client("16M", pager) as client:
            client.command("fill", seed=1)
            written = lag(client, pager, backup.uri, first_seed=2)
            assert pager.status()["health"] == "degraded"
            client.command("verify", seed=written, first=0, n=PAGES // 2)
            wait_until(lambda: complete(pager, backup.uri), timeout_s=90, what="the copy on disk being filled anew")
            wait_until(lambda: pager.status()["health"] == "ok", timeout_s=30, what="all being well")
            with backup.standing_still():  # a slow disk would catch up before the donor is missed
                written = lag(client, pager, backup.uri, first_seed=written + 1)
                assert behind(pager, backup.uri) <= 8, "only what was written"
                donor.process.send_signal(signal.SIGKILL)
                wait_until(lambda: is_down(pager, donor.uri("a")), timeout_s=30, what="the donor being missed")
            wait_until(lambda: "an older one on donor" in pager.log(), timeout_s=60, what="the loss")
            answers = [client.attempt("verify", seed=written, first=page, n=1) for page in range(0, PAGES // 2, 8)]
            lost = [answer for answer in answers if answer.get("error") == "SIGBUS"]
            assert all(answer["ok"] for answer in answers if answer not in lost), "right, or not at all"
            assert lost, "the copy lacked some of what was written"
            client.command("verify", seed=1, first=PAGES // 2, n=PAGES // 2)
            assert pager.status()["health"] == "lost"
