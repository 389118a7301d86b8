# SPDX-License-Identifier: MIT
"""A Debian guest boots and works on the memory of two donors, each a machine (namespace) of its own.

One boot (tests/vm/conftest.py) serves all tests of this file and of test_shell_and_files.py; the last tests here stop
the VM, start it again, and break it on purpose.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from ghostbox import demo
from ghostbox.session import supervisor
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers import outside, scatter
from helpers.donor import RunningDonor, running_donor
from helpers.lab import lab
from helpers.machine import (
    Machine,
    broken,
    leases_at,
    same_but_for_state,
    unsupervised,
    wait_for_paging,
    watched_pid,
)
from helpers.main_vm import CACHE_MIB, CLOUD_INIT_CHANGED, VM, WORKLOAD_MIB
from helpers.takeover import other_format

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

GROWN_DISK = "7G"


def test_up_names_its_stages_with_the_time_each_took(machine: Machine) -> None:
    ended = re.findall(r"^(\S+) +done +(\d[\d.]* (?:s|min \d+ s))", machine.up.stderr, re.MULTILINE)
    stages = ["image", "donors", "leases", "pager", "domain", "boot", "ssh", "cloud-init"]
    assert [name for name, _ in ended] == stages


def test_up_says_when_there_is_no_kvm(machine: Machine) -> None:
    virt = json.loads(machine.up.stdout)["virt"]
    assert ("warning: no KVM, so the VM is emulated and slow: " in machine.up.stderr) == (virt == "tcg")


def test_up_again_says_that_it_runs_and_returns_0(machine: Machine) -> None:
    done = machine.cli("up")
    assert f"VM '{VM}' runs already" in done.stdout
    assert done.returncode == 0


def test_free_shows_local_plus_remote_memory(machine: Machine) -> None:
    total_kib = int(machine.guest("free -k").splitlines()[1].split()[1])
    assert 0.88 * (768 + 512) < total_kib / 1024 < 768 + 512


def test_guest_sees_two_nodes_and_the_remote_one_in_a_lower_tier(machine: Machine) -> None:
    table = machine.guest("numactl --hardware")
    assert "available: 2 nodes (0-1)" in table
    assert re.search(r"^node 1 cpus:\s*$", table, re.MULTILINE)
    zones = machine.guest("cat /proc/zoneinfo")
    movable = re.search(r"^Node 1, zone +Movable\n(?: .*\n)*? +present +(\d+)", zones, re.MULTILINE)
    assert movable is not None
    assert int(movable[1]) * 4096 == 512 * MIB, "all that is remote is memory that the guest's kernel needs not"
    tiers = machine.guest("grep . /sys/devices/virtual/memory_tiering/memory_tier*/nodelist")
    tier_of_node = {node: int(tier) for tier, node in re.findall(r"tier(\d+)/nodelist:(\d)", tiers)}
    assert tier_of_node["1"] > tier_of_node["0"]


def test_guest_kernel_demotes_and_promotes(machine: Machine) -> None:
    assert machine.guest("cat /proc/sys/kernel/numa_balancing /sys/kernel/mm/numa/demotion_enabled").split() == [
        "2",
        "true",
    ]


def test_promotion_over_a_link_that_was_not_measured_is_limited_and_info_says_so(machine: Machine) -> None:
    limit = int(machine.guest("cat /proc/sys/kernel/numa_balancing_promote_rate_limit_MBps"))
    assert limit == (4 if json.loads(machine.up.stdout)["virt"] == "tcg" else 10)
    info = machine.cli("info").stdout
    shown = rf"^tiering +NUMA balancing: guest.tiering is numa; promotes at most {limit} MiB/s *$"
    assert re.search(shown, info, re.MULTILINE), info


def test_users_cloud_init_is_merged(machine: Machine) -> None:
    assert machine.guest("cat /etc/theirs").strip() == "merged"


def test_workload_over_the_cache_verifies_and_went_through_both_donors(machine: Machine) -> None:
    program = Path(demo.__file__).with_name("workload.py").read_text()
    machine.host.cli("shell", VM, "--", "cat > w.py", stdin=program, check=True)
    before = {donor["uri"]: donor for donor in machine.status()["pager"]["donors"]}
    report = json.loads(machine.guest(f"numactl --membind=1 python3 w.py {WORKLOAD_MIB << 20} 7"))
    assert report["wrong_pages"] == 0
    assert report["pages_by_node"] == {"1": report["pages"]}
    status = machine.status()["pager"]
    for donor in status["donors"]:
        for way in ("read_bytes", "written_bytes"):
            assert donor[way] - before[donor["uri"]][way] > 20 << 20, f"{way} of {donor['uri']}"
    assert len(status["donors"]) == 2
    assert status["pages"]["resident"] + status["pages"]["inactive"] <= (CACHE_MIB << 20) / 4096


def test_pager_killed_under_a_workload_is_followed_by_another_and_no_byte_is_wrong(machine: Machine) -> None:
    """Four new pagers serve one workload.

    They start after a kill -9 (by the supervisor, by `recover` and by `status`), and in order.
    """
    again = f"numactl --membind=1 python3 w.py {WORKLOAD_MIB << 20} 8 || exit 1"
    work = machine.host.start("shell", VM, "--", f"until test -e enough; do {again}; done")
    killed = wait_for_paging(machine, work)
    os.kill(killed, signal.SIGKILL)
    processes.wait_until(lambda: watched_pid(machine) not in (None, killed), timeout_s=20, what="another pager")
    said = machine.cli("logs", "--source", "events").stdout
    assert f"pager-recovered  the pager (pid {killed}) had died: another one serves the VM" in said
    with unsupervised(machine):
        os.kill(wait_for_paging(machine, work), signal.SIGKILL)
        processes.wait_until(lambda: broken(machine), timeout_s=20, what="the VM shown as broken")
        listed = machine.host.cli("list", check=True)
        assert f"VM '{VM}' is frozen since its pager died: ghostbox recover {VM}" in listed.stderr
        first = json.loads(machine.cli("recover", "--json").stdout)
        assert (first["action"], first["pager_pid"]) == ("recovered", machine.pager_pid())
        os.kill(wait_for_paging(machine, work), signal.SIGKILL)
        processes.wait_until(lambda: broken(machine), timeout_s=20, what="the VM shown as broken")
        done = machine.cli("status")
        assert f"the pager of VM '{VM}' had died: another one (pid " in " ".join(done.stderr.split())
        wait_for_paging(machine, work)
    with other_format(machine.host.paths.vm(VM).pager_state):
        refused = machine.cli("recover", "--restart", check=False)
    assert refused.returncode == 5
    assert f"error: VM '{VM}' keeps its pager: the new pager cannot resume from the page map" in refused.stderr
    assert "it has format 9, this pager reads format " in " ".join(refused.stderr.split())
    third = json.loads(machine.cli("recover", "--restart", "--json").stdout)
    assert third["action"] == "restarted"
    assert len({killed, first["pager_pid"], third["pager_pid"]}) == 3
    wait_for_paging(machine, work)
    machine.guest("touch enough")
    said, problems = work.communicate(timeout=200)
    assert work.returncode == 0, problems
    assert {json.loads(line)["wrong_pages"] for line in said.splitlines()} == {0}
    status = machine.status()["pager"]
    assert status["pid"] == third["pager_pid"]
    assert (status["pages"]["poisoned"], status["surprises"]["vanished_pages"]) == (0, 0)
    assert "is well" in machine.cli("recover").stdout


def test_donors_come_and_go_under_a_workload(machine: Machine, tmp_path: Path) -> None:
    """One donor is drained to the host and back, another is added and ends; a workload checks every word meanwhile."""
    first, _ = (donor.address for donor in machine.donors)
    again = f"numactl --membind=1 python3 w.py {WORKLOAD_MIB << 20} 9 || exit 1"
    work = machine.host.start("shell", VM, "--", f"rm -f enough; until test -e enough; do {again}; done")
    refused = machine.host.cli("donor", "drain", first, "--vm", VM)
    assert refused.returncode == 5
    assert f"error: what donor {first} holds does not fit on the others\nwhy: " in refused.stderr
    assert "offers 192 MiB, the VM needs 512 MiB and has 256 MiB" in refused.stderr
    assert f"ghostbox donor drain {first} --vm {VM} --to-host" in refused.stderr
    moved = json.loads(machine.host.cli("donor", "drain", first, "--vm", VM, "--to-host", "--json", check=True).stdout)
    assert [lease["donor"] for lease in moved["borrowed"]] == ["this-host"] and not leases_at(machine.donors[0])
    machine.host.cli("donor", "add", first, "--vm", VM, check=True)
    machine.host.cli("donor", "drain", "this-host", "--vm", VM, check=True)
    assert leases_at(machine.donors[0]) == 1
    with running_donor(tmp_path, size="256M", name="gbt-third") as third:
        machine.host.cli("donor", "add", third.address, "--vm", VM, "--size", "128M", check=True)
        assert leases_at(third) == 1
        third.interrupt()
        assert third.wait(120) == 0, "it ends when the VM's host has moved all away"
    machine.guest("touch enough")
    said, problems = work.communicate(timeout=200)
    assert work.returncode == 0, problems
    assert {json.loads(line)["wrong_pages"] for line in said.splitlines()} == {0}
    assert machine.cli("status").returncode == 0
    events = machine.cli("logs", "--source", "events").stdout
    for donor in (first, "this-host", third.address):
        assert f"donor-removed    {donor} holds nothing of this VM any more" in events
    gone = machine.host.cli("donor", "keep", third.address, "--vm", VM)
    assert (gone.returncode, f"VM '{VM}' has no memory from donor {third.address}" in gone.stderr) == (4, True)


def test_supervisor_that_is_killed_hurts_nobody_and_the_next_command_starts_another(machine: Machine) -> None:
    files = machine.host.paths.vm(VM)
    [first] = supervisor.find(files)
    second = machine.host.start("supervise", VM, "--lock", str(files.supervisor_lock))
    assert second.wait(20) == 0, "there is one already"
    second.communicate()
    os.kill(first, signal.SIGKILL)
    processes.wait_until(lambda: not processes.pid_alive(first), timeout_s=10, what="its end")
    pager = watched_pid(machine)
    assert supervisor.find(files) == [], "who only looks starts none"
    assert machine.pager_pid() == pager
    processes.wait_until(lambda: len(supervisor.find(files)) == 1, timeout_s=20, what="another supervisor")


def test_memory_that_the_guest_frees_goes_back_to_the_donors(machine: Machine) -> None:
    """By free page reporting the memory of the workload is trimmed some seconds after its end."""
    processes.wait_until(
        lambda: machine.kept_by_donors_bytes() < WORKLOAD_MIB << 19,
        timeout_s=60,
        what="memory given back to the donors",
        interval_s=0.5,
    )


def test_free_memory_in_small_pieces_goes_back_to_the_donors_too(machine: Machine) -> None:
    """By default a guest's kernel reports pageblocks (2 MiB) only, and in use its free memory is in smaller pieces."""
    set_at_boot = "/sys/module/page_reporting/parameters/page_reporting_order /proc/sys/vm/compaction_proactiveness"
    assert machine.guest(f"cat {set_at_boot}").split() == ["5", "0"]
    with scatter.scattered(machine):
        scatter.wait_for_reports(machine)
        before = scatter.discarded_pages(machine)
        scatter.free_every_second_piece(machine)
        scatter.wait_until_given_back(machine, before, scatter.FREED_PAGES // 3)


def test_shell_returns_the_exit_code_of_the_guests_command(machine: Machine) -> None:
    done = machine.cli("shell", "--", "echo out; echo err >&2; exit 42", check=False)
    assert (done.returncode, done.stdout, done.stderr) == (42, "out\n", "err\n")


def test_shell_runs_all_that_follows_the_name_and_each_word_is_one_argument(machine: Machine) -> None:
    """Without a name the command follows --, and runs in the VM that the configuration names."""
    assert "Mem:" in machine.cli("shell", "free", "-h").stdout
    assert machine.cli("shell", "printf", "[%s]", "a  b", "-h", "--").stdout == "[a  b][-h][--]"
    done = machine.host.cli("shell", "free", "-h")
    assert (done.returncode, "error: no VM named 'free'\nwhy: there are: " in done.stderr) == (4, True)
    assert f"fix: to run a command in a VM: ghostbox shell {VM} free -h" in done.stderr


def test_ssh_config_lets_the_systems_ssh_in_without_a_question(machine: Machine) -> None:
    command = shlex.split(json.loads(machine.up.stdout)["ssh_command"])
    done = subprocess.run([*command, "-o", "BatchMode=yes", "hostname"], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == VM, done.stderr


def test_forwarded_port_leads_into_the_guest_from_loopback_only(machine: Machine) -> None:
    machine.guest("echo hello > index.html; nohup python3 -m http.server 8000 >/dev/null 2>&1 &")
    url = f"http://127.0.0.1:{machine.web_port}/index.html"

    def answer() -> bytes:
        with contextlib.suppress(OSError):
            return bytes(urllib.request.urlopen(url, timeout=5).read())
        return b""

    processes.wait_until(lambda: answer() == b"hello\n", timeout_s=60, what="the guest's web server", interval_s=0.2)
    listening = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout
    assert re.findall(rf"\s(\S+):{machine.web_port}\s", listening) == ["127.0.0.1"]


def test_status_shows_the_vm_and_its_memory(machine: Machine) -> None:
    done = machine.cli("status")
    for pattern in (
        r"state +running, up for \d",
        r"remote +512 MiB, [\d.]+ [KM]iB in use",
        r"cache +[\d.]+ [KM]iB resident",
        r"fetch time +p50 \d+ µs",
        r"198\.51\.100\.\d+:\d+ +up +insecure +\d",
    ):
        assert re.search(pattern, done.stdout), f"{pattern}: {done.stdout}"
    assert machine.status()["qemu_pid"] == machine.status()["pager"]["regions"][0]["pid"]


def test_list_and_info_know_the_vm(machine: Machine) -> None:
    listed = machine.host.cli("list", check=True).stdout
    assert re.search(rf"^{VM} +running +ok +2 +768 MiB +512 MiB", listed, re.MULTILINE)
    assert json.loads(machine.host.cli("list", "--json", check=True).stdout)[0]["state"] == "running"
    info = json.loads(machine.cli("info", "-o", "json").stdout)
    assert info["remote_memory_bytes"] == 512 << 20
    assert sum(lease["size_bytes"] for lease in info["leases"]) >= 512 << 20
    assert {lease["donor"] for lease in info["leases"]} == {donor.address for donor in machine.donors}
    assert info["forwards"] == [f"127.0.0.1:{machine.web_port} -> 8000"]
    assert re.search(r"image +debian", machine.cli("info").stdout)


def test_logs_of_each_source(machine: Machine) -> None:
    assert "login:" in machine.cli("logs").stdout
    assert "of its memory are now served" in machine.cli("logs", "--source", "pager").stdout
    assert "-uuid" in machine.cli("logs", "--source", "qemu").stdout
    assert len(machine.cli("logs", "--source", "qemu", "-n", "2").stdout.splitlines()) == 2
    missing = machine.cli("logs", "--source", "memserver", check=False)
    assert missing.returncode == 4
    assert "error: no memserver of this machine has a log" in missing.stderr


def test_logs_can_be_followed(machine: Machine) -> None:
    follower = machine.host.start("logs", VM, "-f", "-n", "0")
    assert follower.stdout is not None
    try:
        time_up = time.monotonic() + 60
        seen = ""
        while "followed-by-a-test" not in seen and time.monotonic() < time_up:
            machine.guest("echo followed-by-a-test | sudo tee /dev/ttyS0 >/dev/null")
            while select.select([follower.stdout], [], [], 1.0)[0]:
                seen += os.read(follower.stdout.fileno(), 4096).decode()
                if "followed-by-a-test" in seen:
                    break
        assert "followed-by-a-test" in seen
        follower.send_signal(signal.SIGINT)
        assert follower.wait(10) == 130
    finally:
        follower.kill()
        follower.communicate()


def test_wait_returns_when_the_vm_is_ready(machine: Machine) -> None:
    done = machine.cli("wait", "--timeout", "1m", "--for", "ready")
    assert re.search(r"^cloud-init +done", done.stderr, re.MULTILINE)


def test_console_is_the_guests_serial_line_and_the_user_is_logged_in_there(machine: Machine) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("env", ["env", *machine.host.argv("console", VM)], dict(machine.host.env))
    try:
        seen, deadline = "", time.monotonic() + 60
        while "root-of-gbt-main" not in seen and time.monotonic() < deadline:
            if "Escape character" in seen:
                os.write(terminal, b"\rsudo -n sh -c 'echo $(whoami)-of-$(hostname)'\r")
            if not select.select([terminal], [], [], 1.0)[0]:
                continue
            try:
                seen += os.read(terminal, 4096).decode(errors="replace")
            except OSError:  # the process has ended
                break
        assert "root-of-gbt-main" in seen, seen
    finally:
        os.write(terminal, b"\x1d")
        os.kill(pid, signal.SIGTERM)
        read_until_it_ends(pid, terminal)
        os.close(terminal)


def read_until_it_ends(pid: int, terminal: int) -> None:
    """Wait for a process and read its output meanwhile: the process waits for that before it restores its terminal."""
    deadline = time.monotonic() + 30
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline, "it does not end"
        if select.select([terminal], [], [], 0.1)[0]:
            with contextlib.suppress(OSError):
                os.read(terminal, 4096)


def test_second_command_on_the_same_vm_is_refused(machine: Machine) -> None:
    with (machine.host.paths.vm(VM).lock).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = machine.cli("down", check=False)
    assert done.returncode == 5
    assert f"error: another command is at work on VM '{VM}' (pid " in done.stderr


def test_delete_of_a_running_vm_is_refused(machine: Machine) -> None:
    done = machine.cli("delete", "-y", check=False)
    assert done.returncode == 5
    assert f"error: VM '{VM}' is running\nfix: ghostbox down {VM}, or: ghostbox delete --force {VM}" in done.stderr


def test_delete_asks_first(machine: Machine) -> None:
    done = machine.cli("delete", check=False)
    assert done.returncode == 2
    assert "cannot be asked without a terminal" in done.stderr


def test_domain_name_that_another_installation_uses_is_refused(machine: Machine) -> None:
    with lab(GHOSTBOX_POOL_INSECURE="true") as other:
        sizes = ["--memory", "256M", "--remote-memory", "128M", "--cache", "16M"]
        done = other.cli("up", VM, *sizes, "--donor", machine.donors[0].address, "--no-wait")
        assert done.returncode == 1
        assert f"error: libvirt has a domain named ghostbox-{VM} already, and it is not this VM's" in done.stderr
    assert machine.status()["state"] == "running"


def test_guest_whose_kernel_panics_starts_again_by_itself_with_all_its_memory(machine: Machine) -> None:
    boot = "cat /proc/sys/kernel/random/boot_id"
    before = machine.cli("shell", "--", boot).stdout
    machine.cli("shell", "--", "nohup sudo sh -c 'sleep 1; echo c > /proc/sysrq-trigger' > /dev/null 2>&1 &")
    console = machine.host.paths.vm(VM).console_log
    processes.wait_until(
        lambda: "Kernel panic" in console.read_text(errors="replace"), timeout_s=60, what="the panic", interval_s=0.2
    )
    machine.cli("wait", "--timeout", "4m")
    assert machine.cli("shell", "--", boot).stdout != before
    assert "available: 2 nodes (0-1)" in machine.cli("shell", "--", "numactl -H").stdout


def test_down_leaves_nothing_behind_but_the_state_directory(machine: Machine) -> None:
    done = machine.cli("down", "--timeout", "2m")
    assert f"VM '{VM}' is stopped" in done.stderr
    assert same_but_for_state(machine.outside(), machine.before)
    assert machine.cli("status", check=False).returncode == 3
    assert re.search(rf"^{VM} +stopped", machine.host.cli("list", check=True).stdout, re.MULTILINE)
    assert "login:" in machine.cli("logs").stdout


def test_down_of_a_stopped_vm_says_so_and_returns_0(machine: Machine) -> None:
    assert f"VM '{VM}' does not run" in machine.cli("down").stderr


def test_shell_into_a_stopped_vm_is_refused(machine: Machine) -> None:
    done = machine.cli("shell", "--", "true", check=False)
    assert done.returncode == 3
    assert f"error: VM '{VM}' is stopped\nfix: ghostbox up {VM}" in done.stderr


def test_other_image_for_a_vm_that_has_a_disk_is_refused(machine: Machine) -> None:
    done = machine.host.cli("up", VM, *machine.options, "--image", "other")
    assert done.returncode == 5
    assert f"error: VM '{VM}' was made from image 'debian', not 'other'" in done.stderr


def test_smaller_disk_for_a_vm_that_has_one_is_refused_and_undone(machine: Machine) -> None:
    done = machine.host.cli("up", VM, *machine.options, "--disk", "5G")
    assert done.returncode == 5
    assert f"error: the disk of VM '{VM}' has 6 GiB and cannot shrink to 5 GiB" in done.stderr
    assert same_but_for_state(machine.outside(), machine.before)


def start_again(machine: Machine) -> None:
    more = ["--disk", GROWN_DISK, "--on-donor-loss", "pause", "--no-wait"]
    done = machine.host.cli("up", VM, *machine.options, *more, check=True)
    assert "boot" not in done.stderr
    assert machine.status()["state"] == "running"


def test_interrupt_while_it_boots_keeps_the_vm_and_says_how_to_go_on(machine: Machine) -> None:
    machine.cli("down", "--force")
    (machine.host.root / "extra.yaml").write_text(CLOUD_INIT_CHANGED)
    machine.cli("set", "--unset", "guest.tiering")
    command = machine.host.start("up", VM, *machine.options, "--disk", GROWN_DISK, "--host-access")
    assert command.stderr is not None
    said = ""
    while "boot" not in said:
        line = command.stderr.readline()
        assert line, said
        said += line
    command.send_signal(signal.SIGINT)
    _, rest = command.communicate(timeout=60)
    assert command.returncode == 130
    assert f"error: interrupted while waiting for boot: VM '{VM}' keeps running" in rest
    assert f"ghostbox wait {VM} or ghostbox down {VM}" in rest
    assert machine.status()["state"] == "running"


def test_wait_that_takes_too_long_says_why(machine: Machine) -> None:
    shell = machine.cli("shell", "true", check=False)
    assert (shell.returncode, f"error: VM '{VM}' still boots: its SSH server does not" in shell.stderr) == (1, True)
    assert f"fix: ghostbox wait {VM}, or: ghostbox shell --wait {VM}" in shell.stderr
    done = machine.cli("wait", "--timeout", "1s", check=False)
    assert done.returncode == 124
    assert re.search(rf"error: VM '{VM}', stage boot: the guest's SSH server does not answer", done.stderr)
    assert "why: the guest's console" in done.stderr


def test_changed_cloud_init_reaches_the_vm_whose_disk_and_host_key_stay(machine: Machine) -> None:
    """The login needs the pinned host key; the first file is from the first boot, and is on the grown disk."""
    machine.cli("wait", "--timeout", "4m")
    assert machine.guest("cat /etc/theirs /etc/theirs-changed") == "merged\nmerged\n"
    assert machine.guest("sort .ssh/authorized_keys | uniq --repeated") == ""
    assert machine.guest("sudo sort /etc/sudoers.d/90-cloud-init-users | grep -v '^#' | uniq --repeated").strip() == ""
    assert int(machine.guest("df --output=size -BG / | tail -n 1").strip().rstrip("G")) >= 6


def test_program_in_a_guest_with_host_access_is_a_stranger_to_donors(
    machine: Machine, secure_donor: RunningDonor, tmp_path: Path
) -> None:
    asked = outside.routes(tmp_path)
    assert outside.look_from_guest(machine, secure_donor, asked) == outside.expected(asked)


def test_tiering_auto_is_by_damon(machine: Machine) -> None:
    settings = machine.guest("cat /proc/sys/kernel/numa_balancing /sys/kernel/mm/numa/demotion_enabled").split()
    assert settings == ["0", "true"]
    assert machine.guest("cat /run/ghostbox/tiering").strip() == "DAMON"
    shown = re.search("^tiering +(.*)$", machine.cli("info").stdout, re.MULTILINE)
    assert shown is not None
    assert re.match("DAMON: (KVM|emulated); promotes at most", shown[1])


def test_forced_down_is_immediate_and_leaves_nothing_behind(machine: Machine) -> None:
    machine.cli("down", "--force")
    assert same_but_for_state(machine.outside(), machine.before)


def test_paused_vm_is_shown_as_such(machine: Machine) -> None:
    start_again(machine)
    subprocess.run(["virsh", "-q", "suspend", f"ghostbox-{VM}"], check=True, capture_output=True)
    assert machine.cli("status", check=False).returncode == 3
    assert "virsh -c qemu:///system resume" in machine.cli("shell", "--", "true", check=False).stderr
    subprocess.run(["virsh", "-q", "resume", f"ghostbox-{VM}"], check=True, capture_output=True)


def test_vm_is_paused_while_a_donor_is_silent_and_goes_on_when_it_answers(machine: Machine) -> None:
    silent, pid = machine.donors[0].address, machine.donors[0].data_plane_pid
    os.kill(pid, signal.SIGSTOP)
    try:
        processes.wait_until(lambda: machine.status()["state"] == "paused", timeout_s=30, what="the pause")
        done = machine.cli("status", check=False)
        assert done.returncode == 6
        assert "paused until its donor is back" in done.stdout
        assert re.search(rf"warning: donor {silent} has not answered for [\d.]+ s: .+; it holds 256 MiB", done.stderr)
        assert "do: start the donor again, or check its network" in done.stderr
        listed = machine.host.cli("list", check=True)
        assert f"the memory of VM '{VM}' is degraded: ghostbox status {VM}" in listed.stderr
        shell = machine.cli("shell", "--", "true", check=False)
        assert f"fix: the supervisor resumes the VM when its donor is back: ghostbox status {VM}" in shell.stderr
    finally:
        os.kill(pid, signal.SIGCONT)
    processes.wait_until(lambda: machine.status()["state"] == "running", timeout_s=60, what="the end of the pause")
    events = machine.cli("logs", "--source", "events").stdout
    assert f"paused           the VM is paused until {silent} is back" in events
    assert "resumed          the VM runs again" in events


def test_down_of_a_guest_that_does_not_listen_gives_up_and_keeps_it(machine: Machine) -> None:
    """The guest was started a moment ago, and does not react to its power button."""
    done = machine.cli("down", "--timeout", "1s", check=False)
    assert done.returncode == 124
    assert (
        f"error: VM '{VM}' did not shut down within 1.0 s; it still runs\nfix: ghostbox down {VM} --timeout 10m"
        in done.stderr
    )


def test_recover_of_a_vm_that_does_not_run_says_so(machine: Machine) -> None:
    machine.cli("down", "--force")
    done = machine.cli("recover", check=False)
    assert done.returncode == 3
    assert f"error: VM '{VM}' is stopped: it needs no pager\nfix: ghostbox up {VM}" in done.stderr
    start_again(machine)


def test_guest_that_ended_by_itself_is_cleaned_up_by_the_next_command(machine: Machine) -> None:
    waiting = machine.host.start("wait", VM, "--for", "stopped", "--timeout", "1m")
    subprocess.run(["virsh", "-q", "destroy", f"ghostbox-{VM}"], check=True, capture_output=True)
    assert waiting.wait(60) == 0
    waiting.communicate()
    assert re.search(rf"^{VM} +stopped", machine.host.cli("list", check=True).stdout, re.MULTILINE)
    assert same_but_for_state(machine.outside(), machine.before)


def test_vm_whose_pager_died_is_broken_and_can_be_taken_down(machine: Machine) -> None:
    start_again(machine)
    with unsupervised(machine):
        os.kill(machine.pager_pid(), signal.SIGKILL)
        processes.wait_until(lambda: broken(machine), timeout_s=20, what="the VM shown as broken")
        done = machine.cli("up", "--no-recover", check=False)
        assert f"error: VM '{VM}' is broken: its pager is gone, so the guest is frozen" in done.stderr
        assert f"fix: ghostbox recover {VM}" in done.stderr
        again = machine.cli("up")
        assert f"VM '{VM}' runs already" in again.stdout
        os.kill(machine.pager_pid(), signal.SIGKILL)
        machine.host.paths.vm(VM).pager_state.unlink()
        done = machine.cli("recover", check=False)
        assert f"error: VM '{VM}' cannot be recovered: its pager left no page map" in done.stderr
        assert f"fix: ghostbox down --force {VM}, then ghostbox up {VM}" in done.stderr
    machine.cli("down", "--force")
    assert same_but_for_state(machine.outside(), machine.before)


def test_vm_is_recovered_after_a_reboot_of_the_host(machine: Machine) -> None:
    """After a reboot the record says running; domain, pager and /run are gone; the donors still have the leases."""
    start_again(machine)
    pager = machine.pager_pid()
    supervisor.stop(machine.host.paths.vm(VM))
    subprocess.run(["virsh", "-q", "destroy", f"ghostbox-{VM}"], check=True, capture_output=True)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pager, signal.SIGKILL)
    for file in machine.host.paths.vm(VM).runtime.glob("*"):
        file.unlink()
    assert machine.outside().leases, "the leases are still there"
    assert machine.cli("status", check=False).returncode == 3
    assert same_but_for_state(machine.outside(), machine.before)


def test_delete_removes_the_vm_with_its_disk(machine: Machine) -> None:
    machine.cli("delete", "-y")
    assert machine.outside() == machine.before
    assert VM not in machine.host.cli("list", check=True).stdout
