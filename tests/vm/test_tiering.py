# SPDX-License-Identifier: MIT
"""A guest's kernel moves pages by DAMON: no byte is lost, under load and with a pager that is killed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from concurrent import futures

import pytest

from ghostbox import pager
from ghostbox.bench import vm_load
from ghostbox.bench.vm_load import Phase
from ghostbox.system import processes
from ghostbox.units import MIB, PAGE_BYTES
from helpers.donor import running_donor
from helpers.lab import Host, lab
from helpers.main_vm import NEVER_SLOW

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

VM = "gbt-tiers"
LOCAL_MIB = 320
SET_BYTES = LOCAL_MIB * 5 // 4 * MIB
HOT_BYTES = LOCAL_MIB * 2 // 5 * MIB
PROGRAM = "ghostbox-guest-load"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with lab() as made, running_donor(tmp_path_factory.mktemp("donor"), size="512M", name="gbt-tiers") as donor:
        (made.root / "ghostbox.yaml").write_text(NEVER_SLOW)
        sizes = ["--memory", "256M", "--remote-memory", "512M", "--cache", f"{LOCAL_MIB - 256}M"]
        made.cli("up", VM, *sizes, "--donor", donor.address, "--timeout", "4m", check=True)
        program = base64.b64encode((made.paths.native / PROGRAM).read_bytes()).decode()
        put = f"base64 -d > /tmp/{PROGRAM}; chmod 755 /tmp/{PROGRAM}"
        made.cli("shell", VM, "--", put, stdin=program, check=True)
        yield made
        made.cli("delete", VM, "--yes", "--force")


def load(host: Host, *words: str) -> dict[str, Phase]:
    """Run the load in the guest; return its phases by name."""
    argv = host.argv("shell", VM, "--", f"/tmp/{PROGRAM} memory bytes={SET_BYTES} {' '.join(words)}")
    done = subprocess.run(argv, env=dict(host.env), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return {phase.word: phase for phase in vm_load.collect((line, {}) for line in done.stdout.splitlines())}


def fetched(host: Host) -> int:
    """Return the number of pages that the pager has fetched so far."""
    status = pager.status(host.paths.vm(VM).pager_control)
    assert status is not None
    return status.faults.missing_fetch


def test_plan_and_guest_say_what_moves_pages(host: Host) -> None:
    tiering = json.loads(host.cli("info", VM, "--json", check=True).stdout)["tiering"]
    assert (tiering["on"], tiering["how"]) == (True, "damon")
    assert host.cli("shell", VM, "--", "cat /run/ghostbox/tiering", check=True).stdout == "DAMON\n"
    threads = host.cli("shell", VM, "--", "ps -e -o comm= | grep -c '^kdamond'", check=True).stdout
    assert threads.strip() == "2"


def test_pages_are_moved_under_load_and_every_byte_is_right(host: Host) -> None:
    """The load uses a hot set, then another one, then writes; a pager is killed meanwhile. At the end few pages move.

    The speed is a matter of the benchmark (``bench --vm``): here other tests run at the same time.
    """
    hot, moved, written = (f"{name}:{HOT_BYTES}" for name in ("hot", "moved", "written"))
    pace = ("window_ms=2000", "least_ms=30000", "most_ms=60000")
    with killed_meanwhile(host):
        found = load(host, *pace, "fill", hot, moved, written, "check")
    for word in (hot, moved, written):
        last = found[word].measured[-1]
        assert last.moved["migrated"] * PAGE_BYTES < SET_BYTES / 10, (word, found[word])
    assert sum(found[word].moved["migrated"] for word in (hot, moved)) * PAGE_BYTES > HOT_BYTES / 16


@contextlib.contextmanager
def killed_meanwhile(host: Host) -> Iterator[None]:
    """Kill the pager once the load has begun to fetch; the supervisor starts another one."""
    before = fetched(host)

    def kill() -> None:
        processes.wait_until(lambda: fetched(host) > before + 2000, timeout_s=120, what="fetches")
        status = pager.status(host.paths.vm(VM).pager_control)
        assert status is not None
        os.kill(status.pid, signal.SIGKILL)

    with futures.ThreadPoolExecutor(max_workers=1) as aside:
        killed = aside.submit(kill)
        yield
        killed.result()
