# SPDX-License-Identifier: MIT
"""A VM is defined once, and has its definition again after everything that a day brings.

The tests are the hours of one day, in their order; each leaves the VM as the next test needs it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from ghostbox.system import processes
from ghostbox.units import GIB, MIB
from helpers.donor import RunningDonor, running_donor
from helpers.machine import leases_at
from helpers.ports import free_port
from helpers.rebootable import Rebootable, rebootable

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

VM = "gbt-day"
LOCAL_GIB = 5
LESS_GIB = 4  # so that two of the boots take less long
NOTE = "written in the morning"
CHANGED = "changed at noon"
BOOT = "8m"


@dataclass
class Day:
    """Hold the VM, its host and its donors."""

    host: Rebootable
    donors: list[RunningDonor]
    remote_gib: int

    def cli(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command; there is only one VM, so that its name may be left out."""
        return self.host.cli(*words, check=check, timeout_s=600)

    def json(self, *words: str) -> Any:
        """Return the output of a command with --json."""
        return json.loads(self.cli(*words, "--json", check=False).stdout)

    def guest(self, command: str) -> str:
        """Run a command in the guest; return its output."""
        return self.cli("shell", "--", command).stdout

    def boot_id(self) -> str:
        """Return an id that changes at each boot of the guest, or "" while the guest does not answer."""
        asked = ("shell", "--", "cat /proc/sys/kernel/random/boot_id")
        try:
            return self.host.cli(*asked, check=False, timeout_s=60).stdout
        except subprocess.TimeoutExpired:  # it was reset while ssh logged in: ssh would wait for ten minutes
            return ""

    def total_gib(self) -> float:
        """Return the total of `free` in the guest, in GiB."""
        return int(self.guest("free -k").splitlines()[1].split()[1]) / (1 << 20)

    def leases(self) -> list[int]:
        """Return the number of leases of each donor."""
        return [leases_at(donor) for donor in self.donors]


@pytest.fixture(scope="module")
def remote_gib() -> int:
    """Return 32 GiB if a donor may lend half of it (unused memory takes no RAM), or less on a smaller machine."""
    return 32 if psutil.virtual_memory().available > 17 * GIB else 8


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory, remote_gib: int) -> Iterator[Day]:
    with rebootable() as host, contextlib.ExitStack() as stack:
        donors = [
            stack.enter_context(
                running_donor(
                    tmp_path_factory.mktemp("donor"), size=f"{remote_gib // 2}G", name=f"gbt-day-{number}",
                    bind=f"127.0.1.{number + 1}", port=str(free_port()), control_port=str(free_port()),
                )
            )
            for number in range(2)
        ]  # fmt: skip
        yield Day(host, donors, remote_gib)


def test_morning_a_vm_is_defined_with_most_of_its_memory_elsewhere(day: Day) -> None:
    (day.host.root / "ghostbox.yaml").write_text("pool: {slow: 1m}\n")
    sizes = ["--memory", f"{LOCAL_GIB}G", "--remote-memory", f"{day.remote_gib}G", "--cache", "256M", "--disk", "6G"]
    where = [word for donor in day.donors for word in ("--donor", donor.address)]
    day.cli("up", VM, *sizes, *where, "--timeout", BOOT)
    assert 0.97 * (LOCAL_GIB + day.remote_gib - 1) < day.total_gib() < LOCAL_GIB + day.remote_gib
    assert day.leases() == [1, 1]
    day.guest(f"echo {NOTE} > note; sync")


def test_it_is_stopped_and_gives_its_memory_back_and_starts_as_it_was_from_elsewhere(day: Day) -> None:
    day.cli("stop")
    assert day.leases() == [0, 0]
    day.cli("snapshot", "create", "morning")
    (day.host.root / "ghostbox.yaml").write_text("vm: {memory: 1G}\npool: {donors: [elsewhere]}\n")
    done = day.cli("up", VM, "--no-wait")
    assert (
        f"note: VM '{VM}' stays as it is defined; other values for vm.memory, pool.donors do not apply to it"
        in done.stderr
    )
    info = day.json("info")
    assert (info["memory_bytes"], info["remote_memory_bytes"]) == (LOCAL_GIB * GIB, day.remote_gib * GIB)
    assert day.leases() == [1, 1]


def test_what_is_set_counts_now_or_after_a_restart(day: Day) -> None:
    before = day.json("status")["pager"]
    applied = {
        each["key"]: each["applies"]
        for each in day.json("set", "cache=384M", "readahead=64K", "memory=4G", f"remote_memory={LESS_GIB}G")["changes"]
    }
    later = dict.fromkeys(("vm.memory", "vm.remote_memory"), "at the next start")
    assert applied == {**later, "pool.cache": "now", "pager.readahead": "now"}
    after = day.json("status")["pager"]
    assert (before["cache_bytes"], after["cache_bytes"]) == (256 * MIB, 384 * MIB)
    assert before["pid"] != after["pid"], "another pager has taken over, with the new readahead"
    refused = day.cli("up", "--disk", "5G", "--cache", "512M", check=False)
    assert (refused.returncode, "cannot shrink to 5 GiB" in refused.stderr) == (5, True)
    assert day.json("status")["pager"]["cache_bytes"] == 384 * MIB, "nothing half done"
    day.cli("restart", "--force", "--timeout", BOOT)
    assert 0.97 * (3 + LESS_GIB) < day.total_gib() < 4 + LESS_GIB
    assert day.json("status")["pager"]["cache_bytes"] == 384 * MIB
    assert day.guest("cat note").strip() == NOTE


def test_files_are_copied_in_and_out(day: Day) -> None:
    changed, back = day.host.root / "changed", day.host.root / "back"
    changed.write_text(CHANGED)
    day.cli("cp", changed, ":note")
    day.guest("sync")
    day.cli("cp", f"{VM}:note", back)
    assert back.read_text() == CHANGED


def test_a_reboot_from_inside_keeps_memory_and_disk(day: Day) -> None:
    first, pager = day.boot_id(), day.json("status")["pager"]["pid"]
    # No connection is closed: ssh notices that the guest has forgotten this one.
    ended = day.cli("shell", "--", "sync; echo b | sudo tee /proc/sysrq-trigger; sleep 900", check=False)
    assert (ended.returncode, "the SSH connection to VM 'gbt-day' broke" in ended.stderr) == (1, True), ended.stderr
    processes.wait_until(
        lambda: day.boot_id() not in ("", first), timeout_s=360, what="the guest's second boot", interval_s=2.0
    )
    assert day.guest("cat note") == CHANGED
    assert (day.json("status")["pager"]["pid"], day.leases()) == (pager, [1, 1])


def test_a_poweroff_from_inside_gives_the_memory_back(day: Day) -> None:
    day.cli("shell", "--", "sudo systemctl poweroff", check=False)
    day.cli("wait", "--for", "stopped", "--timeout", "3m")
    assert day.leases() == [0, 0]
    assert day.json("list")[0]["state"] == "stopped"


def test_what_was_in_the_morning_is_put_back(day: Day) -> None:
    info = day.json("info")
    assert (info["memory_bytes"], info["remote_memory_bytes"]) == (4 * GIB, LESS_GIB * GIB)
    assert [each["name"] for each in day.json("snapshot", "list")] == ["morning"]
    day.cli("snapshot", "restore", "morning", "-y")
    assert day.json("config", "show", "--vm", VM)["vm.memory"] == f"{LOCAL_GIB}GiB"


def test_after_a_power_cut_it_starts_by_itself_though_a_donor_comes_late(day: Day) -> None:
    day.cli("autostart", "on")
    day.cli("start", "--no-wait")
    day.host.reboot()
    assert day.host.run("ls", "/run").split() == []
    late = day.donors[1]
    late.kill_control_plane()
    running = day.host.start("autostart", "run", "--timeout", "5m", "--json")
    assert running.stderr is not None
    said = ""
    while "is tried again" not in said:
        line = running.stderr.readline()
        assert line, said
        said += line
    late.restart()
    out, err = running.communicate(timeout=300)
    assert running.returncode == 0, said + err
    assert json.loads(out) == [{"name": VM, "state": "running", "error": None}]
    assert day.leases() == [1, 1]
    day.cli("wait", "--timeout", BOOT)
    assert day.guest("cat note").strip() == NOTE, "the morning's, not the noon's"
    assert day.total_gib() > 4 + day.remote_gib, "the morning's definition, too"


def test_night_it_is_deleted_and_nothing_is_left(day: Day) -> None:
    day.cli("delete", "-y", "--force")
    assert day.leases() == [0, 0]
    assert not list((day.host.root / "s" / "vms").iterdir())
    assert not [path for path in (day.host.root / "r").rglob("*") if path.is_file() and path.name != "kvm.json"]
    assert day.host.run("virsh", "-c", "qemu:///system", "list", "--all", "--name").split() == []
    assert not list(day.host._processes())
