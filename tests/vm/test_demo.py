# SPDX-License-Identifier: MIT
"""``ghostbox demo`` proves remote memory to a new user, and ``--down`` leaves nothing behind."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ghostbox.donors import pairings
from ghostbox.session import Book
from ghostbox.session.record import LeaseRecord
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers.lab import Host, Run, lab

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

NAME = "gbt-demo"


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with lab() as made:
        yield made
        made.cli("demo", "--down", "--name", NAME)


@pytest.fixture(scope="module")
def first(host: Host) -> Run:
    return host.cli("demo", "--name", NAME, "--json", timeout_s=500)


@pytest.fixture(scope="module")
def result(first: Run) -> dict[str, Any]:
    assert first.returncode == 0, first.stderr
    return dict(json.loads(first.stdout))


def memservers(host: Host) -> list[str]:
    """Return the processes of memservers that use this host's directories."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "memserver" in line and (f"{NAME}-" in line or str(host.root) in line):
            found.append(line)
    return found


def test_every_byte_came_back_and_was_remote(result: dict[str, Any]) -> None:
    assert result["problems"] == []
    assert result["over_tls"] is True
    assert result["wrong_pages"] == 0
    assert result["bytes_checked"] > 2 * result["cache_bytes"] == 256 * MIB
    beyond_cache = result["bytes_checked"] - result["cache_bytes"]
    assert result["traffic"]["written_bytes"] > 0.9 * beyond_cache
    assert result["traffic"]["read_bytes"] > 0.9 * beyond_cache
    assert len(result["donor_bytes"]) == 2
    assert all(held > beyond_cache / 4 for held in result["donor_bytes"].values())


def test_guest_sees_both_nodes_in_two_tiers(result: dict[str, Any]) -> None:
    assert "available: 2 nodes (0-1)" in result["numa"]
    assert list(result["tiers"].values()) == ["0", "1"]


def test_second_run_uses_what_runs_and_shows_a_summary(host: Host, result: dict[str, Any]) -> None:
    book = Book(host.paths.vm(NAME))
    record = book.need(NAME, host.paths)
    gone = LeaseRecord("127.0.0.1:1", f"{NAME}-gone", MIB)  # left by an earlier demo, which was killed with its donors
    book.save(replace(record, leases=(*record.leases, gone)))
    done = host.cli("demo", "--name", NAME, "--output", "table", check=True)
    assert "boot " not in done.stderr
    for text in (
        "every byte came back right",
        "to the donors, over TLS",
        "came back",
        f"ghostbox shell {NAME}",
        f"demo --down --name {NAME}",
    ):
        assert text in done.stdout


# The program takes so many MiB in single pages, and then so many pages that need a page table each.
BOUND = """
import mmap, sys
dense, sparse = int(sys.argv[1]) << 20, int(sys.argv[2]) << 21
memory = mmap.mmap(-1, dense)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for at in range(0, dense, 1 << 20):
    memory[at : at + (1 << 20)] = bytes(1 << 20)
memory.close()
memory = mmap.mmap(-1, sparse, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for at in range(0, sparse, 2 << 20):
    memory[at] = 1
tables = next(line for line in open("/proc/self/status") if line.startswith("VmPTE"))
print(int(tables.split()[1]) // 1024)
"""


def test_program_bound_to_node_1_may_use_nearly_all_of_it(host: Host, result: dict[str, Any]) -> None:
    """The program's page tables obey the policy as well, if the node has memory that may hold them: node 1 has none."""
    host.cli("shell", NAME, "--", "cat > bound.py", stdin=BOUND, check=True)
    done = host.cli("shell", NAME, "--", "numactl --membind=1 python3 bound.py 1984 12000", check=True)
    assert int(done.stdout) >= 12000 * 4 // 1024
    zones = host.cli("shell", NAME, "--", "cat /proc/zoneinfo", check=True).stdout
    others = re.findall(r"^Node 1, zone +(?!Movable)\w+\n(?: .*\n)*? +present +(\d+)", zones, re.MULTILINE)
    assert {int(present) for present in others} <= {0}


def test_clock_is_right_again_after_the_vm_was_paused(host: Host, result: dict[str, Any]) -> None:
    """A silent donor, the user or the host's sleep may have paused it."""

    def late_s() -> float:
        """Return how far the guest's clock is behind the host's, at least, in seconds (the command takes a while)."""
        return time.time() - float(host.cli("shell", NAME, "--", "date +%s.%N", check=True).stdout)

    before_s = late_s()
    subprocess.run(["virsh", "-q", "suspend", f"ghostbox-{NAME}"], check=True)
    stopped_s = 15.0
    time.sleep(stopped_s)
    subprocess.run(["virsh", "-q", "resume", f"ghostbox-{NAME}"], check=True)
    processes.wait_until(lambda: late_s() < before_s + stopped_s / 2, timeout_s=90, what="the right time", interval_s=1)
    log = host.cli("shell", NAME, "--", "journalctl -q -u ghostbox-clock -o cat", check=True).stdout
    assert re.search(r"this machine stood still for 1[4-7] s: its clock is set forward", log), log


def test_ssh_command_of_the_result_works(result: dict[str, Any]) -> None:
    done = subprocess.run(
        [*shlex.split(result["ssh_command"]), "hostname"], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == NAME, done.stderr


def test_down_leaves_nothing(host: Host, result: dict[str, Any]) -> None:
    assert len(memservers(host)) == 4
    host.cli("demo", "--down", "--name", NAME, check=True)
    left = host.belongings()
    assert (left.processes, left.domains, left.files, left.vms) == (frozenset(),) * 4
    assert memservers(host) == []
    assert pairings.load(host.paths) == ()
    assert f"VM '{NAME}' is gone already" in host.cli("demo", "--down", "--name", NAME, check=True).stderr


def test_demo_without_its_programs_says_so(tmp_path: Path) -> None:
    with lab() as empty:
        bare = replace(empty, env={**empty.env, "GHOSTBOX_NATIVE_DIR": str(tmp_path)})
        done = bare.cli("demo", "--name", f"{NAME}-2")
        assert done.returncode == 1
        assert "error: a memserver of 1 GiB does not start\nwhy: cannot run " in done.stderr
        assert empty.belongings().vms == frozenset()
