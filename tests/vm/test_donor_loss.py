# SPDX-License-Identifier: MIT
"""A booted guest has two donors and two copies of everything: its disk fills up, one donor dies, then the other."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ghostbox import demo
from ghostbox.errors import DeadlineExceeded
from ghostbox.system import processes
from helpers import netns
from helpers.donor import RunningDonor, running_donor
from helpers.lab import Host, Run, lab
from helpers.limits import BoundedDisk, bounded_disk

pytestmark = [pytest.mark.vm, pytest.mark.timeout(400)]

VM = "gbt-loss"
WORKLOAD_MIB = 144


@dataclass
class Machine:
    """Hold the VM under test and its donors."""

    host: Host
    donors: list[RunningDonor]
    disk: BoundedDisk

    def cli(self, command: str, *words: str, check: bool = True) -> Run:
        return self.host.cli(command, VM, *words, check=check)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.cli("status", "--json", check=False).stdout))

    def pager(self) -> dict[str, Any]:
        return dict(self.status()["pager"])

    def donor(self, number: int) -> dict[str, Any]:
        """Return the pager's status of a donor."""
        address = self.donors[number].nbd_address
        return next(dict(entry) for entry in self.pager()["donors"] if address in entry["uri"])


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    with netns.machines(2) as machines, contextlib.ExitStack() as stack:
        donors = [
            stack.enter_context(
                running_donor(
                    tmp_path_factory.mktemp("donor"), size="320M", name=f"gbt-loss-{number}", bind=place.address,
                    port="10809", control_port="10810", insecure="", prefix=place.prefix,
                )
            )
            for number, place in enumerate(machines)
        ]  # fmt: skip
        host = stack.enter_context(lab(GHOSTBOX_POOL_INSECURE="true"))
        # Emulated: a thread that touches lost memory waits for ever, also a kernel thread that moves hot pages.
        (host.root / "ghostbox.yaml").write_text('guest: {tiering: "off"}\n')
        disk = stack.enter_context(bounded_disk(host.paths.state))
        stack.callback(host.cli, "delete", VM, "-y", "--force")
        sizes = ["--memory", "768M", "--remote-memory", "256M", "--cache", "48M", "--cpus", "2", "--disk", "6G"]
        where = [word for donor in donors for word in ("--donor", donor.address)]
        host.cli("up", VM, *sizes, *where, "--replicas", "2", "--image", "debian", "--timeout", "4m", check=True)
        program = Path(demo.__file__).with_name("workload.py").read_text()
        host.cli("shell", VM, "--", "cat > w.py", stdin=program, check=True)
        yield Machine(host, donors, disk)


# The file must come back from the disk as written, without a kernel error. (Only this file is dropped from the cache.)
WRITE_AND_READ = """
head -c 24M /dev/urandom | tee big | sha256sum > sum && sync && dd if=big iflag=nocache count=0 &&
sha256sum < big | cmp - sum && ! sudo dmesg | grep -i "I/O error"
"""


def said(done: Run) -> str:
    """Return a command's output on one line."""
    return " ".join((done.stdout + done.stderr).split())


def test_vm_whose_disk_has_no_room_is_paused_and_goes_on_by_itself_with_nothing_lost(machine: Machine) -> None:
    machine.disk.leave(6 << 20)
    work = machine.host.start("shell", VM, "--", WRITE_AND_READ)
    processes.wait_until(
        lambda: machine.status()["disk_problem"] is not None, timeout_s=90, what="the pause", interval_s=0.2
    )
    files = machine.host.paths.vm(VM)
    trouble = f"the VM is paused: no space for its disk {files.disk} to grow, "
    shown = machine.cli("status", check=False)
    assert shown.returncode == 6
    assert re.search(r"state +paused until its disk can be written", shown.stdout)
    free = rf"[\d.]+ [KMG]?i?B are free in {files.state} do: make space there: the VM resumes by itself"
    assert re.search(f"warning: {re.escape(trouble)}{free}", said(shown))
    listed = said(machine.host.cli("list"))
    assert f"VM '{VM}' is paused, its disk cannot be written: ghostbox status {VM}" in listed
    assert trouble in said(machine.cli("info"))
    refused = machine.cli("shell", "--", "true", check=False)
    assert refused.returncode == 3
    assert f"error: VM '{VM}' is paused why: {trouble}" in said(refused)
    assert work.poll() is None
    machine.disk.grow()
    _, problems = work.communicate(timeout=200)
    assert work.returncode == 0, problems
    shown_events = "disk-resumed     the VM's disk can be written again: the VM runs again"
    processes.wait_until(
        lambda: shown_events in machine.cli("logs", "--source", "events").stdout, timeout_s=20, what="the event"
    )
    assert (machine.status()["state"], machine.status()["disk_problem"]) == ("running", None)


# When a workload does not page, the guest's kernel shows what the workload waits for.
WHY_NOT = """
uptime; ps axo pid,stat,pcpu,time,wchan:24,args --sort=-pcpu | head -15
for p in $(pgrep -f w.py); do sudo cat /proc/$p/stack; grep -E 'State|VmRSS' /proc/$p/status; done
grep -E 'Node 1|free |min |managed' /proc/zoneinfo | head -40
grep -E 'allocstall|pgscan|compact_stall|oom_kill' /proc/vmstat
sudo dmesg | tail -5
"""


def wait_for_paging(machine: Machine, work: subprocess.Popen[str]) -> None:
    """Wait until pages have gone to both donors and come back.

    The test asks the pager's own socket: a GhostBox command takes a second of a processor, which the emulated guest
    needs.
    """
    control = machine.host.paths.vm(VM).pager_control
    before = processes.control_request(control, "status")
    seen: dict[str, Any] = {}

    def paged() -> bool:
        assert work.poll() is None, work.communicate()
        pager = processes.control_request(control, "status")
        seen["fetched"] = pager["faults"]["missing_fetch"] - before["faults"]["missing_fetch"]
        seen["dirty evictions"] = pager["evictions"]["dirty"] - before["evictions"]["dirty"]
        seen["zero-filled"] = pager["faults"]["zero_filled"] - before["faults"]["zero_filled"]
        seen["pages"], seen["donors"] = pager["pages"], [donor["state"] for donor in pager["donors"]]
        return bool(seen["fetched"] > 100 and seen["dirty evictions"] > 1000)

    try:
        processes.wait_until(paged, timeout_s=120, what="eviction and fetches", interval_s=0.2)
    except DeadlineExceeded as err:
        guest = machine.cli("shell", "--", WHY_NOT, check=False)
        raise AssertionError(f"{err}: {seen}\n{guest.stdout}{guest.stderr}") from err


def test_donor_killed_under_a_workload_with_two_copies_and_no_byte_is_wrong(machine: Machine) -> None:
    again = f"numactl --membind=1 python3 w.py {WORKLOAD_MIB << 20} 8 || exit 1"
    work = machine.host.start("shell", VM, "--", f"until test -e enough; do {again}; done; {again}")
    wait_for_paging(machine, work)
    dead = machine.donors[0]
    data_plane = dead.data_plane_pid
    dead.kill_control_plane()
    os.kill(data_plane, signal.SIGKILL)
    processes.wait_until(
        lambda: machine.donor(0)["state"] != "up", timeout_s=20, what="the donor's death seen", interval_s=0.1
    )
    machine.host.cli("shell", VM, "--", "touch enough", check=True)
    said, problems = work.communicate(timeout=200)
    assert work.returncode == 0, f"{said}{problems}\n{machine.cli('shell', '--', 'sudo dmesg | tail -n 40').stdout}"
    assert {json.loads(line)["wrong_pages"] for line in said.splitlines()} == {0}
    pager = machine.pager()
    assert (pager["pages"]["poisoned"], pager["pool"]["lost_pages"]) == (0, 0)
    assert pager["health"] == "degraded"
    assert pager["pool"]["missing_copies"] > 0


# This program is bound to node 1, with its heap in single pages, too, of which khugepaged would make huge pages.
IDLE = f"""
import mmap, pathlib, time
heap = [bytes(1000) for _ in range(8 << 10)]
memory = mmap.mmap(-1, {WORKLOAD_MIB} << 20)
for at in range(0, {WORKLOAD_MIB} << 20, 4096):
    memory[at : at + 8] = at.to_bytes(8, "big")
pathlib.Path("filled").touch()
time.sleep(1000)
"""
# By default khugepaged looks for such memory every 10 s.
ALIVE = "head -c 64M /dev/zero | sha256sum; for i in 1 2 3 4 5; do sleep 5; cat /proc/loadavg; done"


def test_memory_of_which_no_copy_is_left_is_named_and_the_guest_lives_on(machine: Machine) -> None:
    """Both donors come back empty, one after the other. Until then older copies might have served."""
    # Page cache of programs that were bound to node 1 may be lost, too: other programs read the files again.
    others = "head -c 1M /dev/zero | sha256sum; sleep 0; numactl -H; python3 -c 'import mmap, pathlib, time'"
    machine.cli("shell", "--", f"rm -f filled; sync; sudo sysctl vm.drop_caches=3; {others}; cat /proc/loadavg")
    machine.host.cli("shell", VM, "--", "cat > idle.py", stdin=IDLE, check=True)
    idle = machine.host.start("shell", VM, "--", "numactl --membind=1 python3 idle.py")
    try:
        machine.cli("shell", "--", "until test -e filled; do sleep 0.2; done")
        dead, last = machine.donors
        uris = {donor["uri"] for donor in machine.pager()["donors"]}
        os.kill(last.data_plane_pid, signal.SIGKILL)
        processes.wait_until(
            lambda: "older copy on donor" in machine.cli("logs", "--source", "pager").stdout,
            timeout_s=30, what="the older copies", interval_s=0.2,
        )  # fmt: skip
        assert machine.pager()["health"] == "degraded", "the dead one might come back"
        dead.restart()
        processes.wait_until(
            lambda: "memory-lost" in machine.cli("logs", "--source", "events").stdout,
            timeout_s=60, what="the loss among the events", interval_s=0.2,
        )  # fmt: skip
        assert machine.pager()["health"] == "lost"
        done = machine.cli("status", check=False)
        assert done.returncode == 6
        [uri] = [each for each in uris if dead.nbd_address in each]
        alone = rf"(\d[\d.]*) MiB were on {re.escape(uri)} alone, which came back without its memory"
        found = re.search(alone, said(done)) or re.search(
            rf"\({re.escape(uri)}\) came back without its memory: (\d[\d.]*) MiB had no other copy", said(done)
        )
        assert found is not None, said(done)
        assert WORKLOAD_MIB / 2 < float(found[1]) < 256
        assert re.search(r"warning: [\d.]+ MiB of the VM's memory are lost: ", said(done))
        assert f"do: save what matters, then ghostbox down {VM} and ghostbox up {VM}" in said(done)
        assert machine.status()["state"] == "running"
        # The guest lives: its kernel has no page on the donors, and programs that touch no lost page go on.
        alive = machine.host.cli("shell", VM, "--", ALIVE, timeout_s=200, check=True)
        assert alive.stdout.startswith(hashlib.sha256(bytes(64 << 20)).hexdigest())
        assert idle.poll() is None
    finally:
        idle.kill()
        idle.communicate()
