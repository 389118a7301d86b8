# SPDX-License-Identifier: MIT
"""Each check of the doctor, provoked, tells what it found, why it matters, and the command that mends it."""

from __future__ import annotations

import dataclasses
import grp
import json
import os
import platform
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ghostbox import __version__, config, paths
from ghostbox.doctor import CHECKS, Check, Machine, Result, Role, run
from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.system import processes
from ghostbox.system.hypervisor import qemu_user
from helpers.donor import running_donor
from helpers.other_user import as_user

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="cannot run here: needs root to become another user")


def check(name: str, machine: Machine) -> Check:
    return next(function(name, machine) for found, _, function in CHECKS if found == name)


def machine_with(settings: dict[str, object] | None = None, **changes: object) -> Machine:
    found = Machine(config.load(settings or {}), paths.find())
    return dataclasses.replace(found, **changes)  # type: ignore[arg-type]


def as_nobody(name: str, machine: Machine) -> Check:
    """Run a check as a user without rights."""
    return as_user(lambda: check(name, machine))


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """Yield a directory that every user may pass (pytest's directories are for their owner only)."""
    with tempfile.TemporaryDirectory(prefix="ghostbox-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def make_device(path: Path, minor: int, mode: int, group: str) -> Path:
    """Make a device node as a kernel without a udev rule makes it."""
    try:
        os.mknod(path, stat.S_IFCHR | mode, os.makedev(10, minor))
        os.close(os.open(path, os.O_RDWR))
    except OSError as err:
        pytest.skip(f"cannot run here: no such device ({err})")
    path.chmod(mode)
    os.chown(path, 0, grp.getgrnam(group).gr_gid)
    return path


def needs_programs() -> None:
    if not paths.find().pager_program.exists():
        pytest.skip("the C programs are not built (GHOSTBOX_NATIVE_DIR)")


def script(path: Path, text: str) -> Path:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return path


def native(directory: Path, pager: str = f"echo ghostbox-pager {__version__}", version: str = __version__) -> Path:
    """Return stand-ins that answer like a real program of another version, or under another kernel."""
    script(directory / "ghostbox-memserver", f"echo ghostbox-memserver {version}\n")
    script(directory / "ghostbox-pager", pager)
    (directory / "libghostbox-shim.so").touch()
    return directory


def test_programs_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_NATIVE_DIR", str(tmp_path))
    found = check("programs", machine_with())
    assert (found.result, found.found) == (Result.FAIL, f"ghostbox-memserver is missing in {tmp_path}")
    assert found.fix == "./bootstrap install"


def test_programs_of_another_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_NATIVE_DIR", str(native(tmp_path, version="9.9.9")))
    found = check("programs", machine_with())
    assert found.result is Result.FAIL
    assert found.found == "ghostbox-memserver is another version: ghostbox-memserver 9.9.9"
    assert found.why == f"this command is version {__version__}"


def test_programs_that_do_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_NATIVE_DIR", str(native(tmp_path, pager="echo libnbd is missing >&2; exit 127")))
    found = check("programs", machine_with())
    assert (found.result, found.found) == (Result.FAIL, "ghostbox-pager does not run")
    assert found.why == "libnbd is missing"


def test_programs_that_were_built_are_well() -> None:
    needs_programs()
    assert check("programs", machine_with()).result is Result.OK


def test_no_userfaultfd(tmp_path: Path) -> None:
    found = check("userfaultfd", machine_with(userfaultfd=tmp_path / "none"))
    assert (found.result, found.found) == (Result.FAIL, f"{tmp_path}/none does not exist")
    assert "older than 6.1" in (found.why or "")
    assert found.fix == "boot Linux 6.1 or later"


@needs_root
def test_cure_for_a_userfaultfd_of_root_alone_is_a_udev_rule(open_dir: Path) -> None:
    device = make_device(open_dir / "userfaultfd", 257, 0o600, "root")
    found = as_nobody("userfaultfd", machine_with(userfaultfd=device))
    assert (found.result, found.found) == (Result.FAIL, f"cannot open {device}: permission denied")
    assert found.why == f"{device} is 0600 and belongs to group root"
    assert """echo 'KERNEL=="userfaultfd", GROUP="kvm", MODE="0660"' | sudo tee /etc/udev/""" in (found.fix or "")


@needs_root
def test_cure_for_a_userfaultfd_of_the_group_kvm_is_to_join_it(open_dir: Path) -> None:
    device = make_device(open_dir / "userfaultfd", 257, 0o660, "kvm")
    found = as_nobody("userfaultfd", machine_with(userfaultfd=device))
    assert found.fix == "sudo usermod -aG kvm $USER, then log in again"


def test_userfaultfd_that_is_something_else(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    found = check("userfaultfd", machine_with(userfaultfd=tmp_path / "directory"))
    assert found.found == f"cannot open {tmp_path}/directory: Is a directory"


@pytest.mark.parametrize(
    ("answer", "result", "found", "why"),
    [
        ({"missing": [], "dirty_tracking": "wp-async"}, Result.OK, "all there, dirty tracking by wp-async", None),
        ({"missing": [], "dirty_tracking": "wp-fault"}, Result.WARN, "dirty tracking by wp-fault", "no WP_ASYNC"),
        (
            {"missing": ["minor_shmem"], "dirty_tracking": "wp-fault"},
            Result.FAIL,
            "the kernel's userfaultfd lacks 1 features",
            "the pager cannot work without: minor_shmem",
        ),
    ],
)
def test_userfaultfd_features(
    answer: dict[str, object],
    result: Result,
    found: str,
    why: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GHOSTBOX_NATIVE_DIR", str(native(tmp_path, pager=f"echo '{json.dumps(answer)}'")))
    shown = check("userfaultfd-features", machine_with())
    assert (shown.result, shown.found) == (result, found)
    assert (why or "") in (shown.why or "")


def test_userfaultfd_features_without_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_NATIVE_DIR", str(native(tmp_path, pager="echo cannot open it >&2; exit 1")))
    found = check("userfaultfd-features", machine_with())
    assert (found.result, found.why) == (Result.FAIL, "cannot open it")
    assert found.found == "ghostbox-pager --probe gives no answer"


def test_no_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = check("qemu", machine_with())
    assert (found.result, found.found) == (Result.FAIL, "qemu-system-x86_64 is not installed")
    assert found.fix == "sudo apt install qemu-system-x86"


@pytest.mark.parametrize(
    ("text", "found", "why"),
    [
        ("QEMU emulator version 5.2.0 (Debian)", "QEMU version 5.2.0", "GhostBox is tested with 7.2 and later"),
        ("something else", "something else", "its version cannot be read"),
    ],
)
def test_qemu_that_is_old_or_unknown(
    text: str, found: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "qemu-system-x86_64", f"echo '{text}'")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    shown = check("qemu", machine_with())
    assert (shown.result, shown.found, shown.why) == (Result.WARN, found, why)


def test_libvirt_that_does_not_answer(tmp_path: Path) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path}/none"
    found = check("libvirt", machine_with({"libvirt.uri": uri}))
    assert (found.result, found.found) == (Result.FAIL, f"no answer at {uri}")
    assert "none" in (found.why or "")


def test_no_kvm(tmp_path: Path) -> None:
    found = check("kvm", machine_with(kvm=tmp_path / "kvm"))
    assert (found.result, found.found) == (Result.WARN, f"{tmp_path}/kvm does not exist")
    assert "ten times slower" in (found.why or "")


@needs_root
def test_kvm_that_qemu_may_not_open(open_dir: Path) -> None:
    device = make_device(open_dir / "kvm", 232, 0o600, "root")
    account = qemu_user("qemu:///system")
    found = check("kvm", machine_with(kvm=device))
    assert found.found == f"user {account.name}, which QEMU runs as, may not open {device}"
    assert (found.result, found.fix) == (Result.FAIL, "sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm")


@needs_root
def test_kvm_that_the_user_may_not_open(open_dir: Path) -> None:
    device = make_device(open_dir / "kvm", 232, 0o660, "kvm")
    found = as_nobody("kvm", machine_with(kvm=device))
    assert (found.result, found.found) == (Result.FAIL, f"cannot open {device}: permission denied")
    assert found.fix == "sudo usermod -aG kvm $USER, then log in again"


@pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed")
def test_whether_kvm_runs_a_guest_is_tried(ghostbox_dirs: Path) -> None:
    found = check("kvm-guest", machine_with())
    assert found.result in (Result.OK, Result.WARN)
    assert (found.why is None) == (found.result is Result.OK)


@needs_root
def test_storage_that_qemu_cannot_reach(open_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account = qemu_user("qemu:///system")
    if account.uid == 0:
        pytest.skip("cannot run here: QEMU runs as root")
    private = open_dir / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setenv("GHOSTBOX_STATE_DIR", str(private / "state"))
    found = check("storage", machine_with())
    assert (found.result, found.found) == (Result.FAIL, f"QEMU cannot reach {private}/state")
    assert found.why == f"QEMU runs as user {account.name}, which may not pass {private}"
    assert found.fix == f"chmod o+x {private}, or set libvirt.uri to qemu:///session"


def test_storage_from_which_no_shim_can_be_loaded(open_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("STATE", "RUNTIME"):
        (open_dir / f"{kind} x").mkdir(mode=0o711)
        monkeypatch.setenv(f"GHOSTBOX_{kind}_DIR", str(open_dir / f"{kind} x"))
    monkeypatch.setenv("GHOSTBOX_NATIVE_DIR", str(open_dir))
    monkeypatch.setenv("GHOSTBOX_CACHE_DIR", str(open_dir))
    found = check("storage", machine_with())
    assert (found.result, found.found) == (Result.FAIL, "there is no directory from which QEMU could load the shim")
    assert "its name has a space, which LD_PRELOAD cannot express" in (found.why or "")


@needs_root
def test_programs_in_roots_home_are_no_fault_since_qemu_has_copies(
    open_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = open_dir / "private"
    private.mkdir(mode=0o700)
    monkeypatch.setenv("GHOSTBOX_STATE_DIR", str(open_dir / "state"))
    monkeypatch.setenv("GHOSTBOX_NATIVE_DIR", str(private / "native"))
    assert check("storage", machine_with()).result is Result.OK


def test_security_drivers_are_named(tmp_path: Path) -> None:
    assert check("security", machine_with(sys=tmp_path)).found == "neither AppArmor nor SELinux confines QEMU"
    for name, text in (("module/apparmor/parameters/enabled", "Y\n"), ("fs/selinux/enforce", "1")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    found = check("security", machine_with(sys=tmp_path)).found
    assert found == "AppArmor and SELinux on; the VM's domain is exempt from its profile, for the shim"


def test_a_vm_larger_than_the_machine() -> None:
    found = check("memory-host", machine_with({"vm.memory": "100TiB", "pool.cache": "2GiB"}))
    assert found.result is Result.WARN
    assert found.why == "the VM needs 100 TiB here: 100 TiB (vm.memory) and 2 GiB (pool.cache)"


def test_more_to_lend_than_there_is() -> None:
    found = check("memory-donor", machine_with({"memserver.size": "100T"}))
    assert found.result is Result.FAIL
    assert "100 TiB" in (found.why or "")
    assert "available" in found.found


def dead_port() -> int:
    """Return a port of 127.0.0.1 at which no process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_donor_that_answers_and_one_that_does_not_are_both_named(tmp_path: Path) -> None:
    needs_programs()
    dead = f"127.0.0.1:{dead_port()}"
    with running_donor(tmp_path, size="64M") as donor:
        well = check("donors", machine_with({"pool.donors": [donor.address]}))
        found = check("donors", machine_with({"pool.donors": [donor.address, dead]}))
    answer = f"{donor.address} has 64 MiB free of 64 MiB"
    assert (well.result, well.found) == (Result.OK, answer)
    assert (found.result, found.found) == (Result.WARN, f"{answer}, {dead} does not answer")
    assert found.why == f"cannot reach donor {dead}: connection refused: nothing listens on that port"
    assert (found.fix or "").startswith("start a memserver there: ghostbox memserver")


def test_donor_that_is_draining_is_said_to_be(tmp_path: Path) -> None:
    needs_programs()
    with running_donor(tmp_path, drain_timeout="1m") as donor:
        with DonorClient(donor.address) as client:
            client.create_lease("held", 1 << 20, Holder("here", "box"))
            donor.interrupt()
            processes.wait_until(lambda: client.status().draining, timeout_s=20, what="the donor drains")
        found = check("donors", machine_with({"pool.donors": [donor.address]}))
    assert (found.result, found.found) == (Result.WARN, f"{donor.address} is draining")
    assert found.why == "a donor that is draining wants its memory back and gives no new lease"


def test_no_donor_in_the_configuration_is_well() -> None:
    found = check("donors", machine_with())
    assert found.result is Result.OK
    assert found.found == "none in the configuration (pool.donors); name them with `ghostbox up --donor`"


def proc_with(directory: Path, text: str) -> Path:
    (directory / "meminfo").write_text(text)
    return directory


def test_huge_pages_and_swap(tmp_path: Path) -> None:
    text = "SwapTotal: 2097152 kB\nHugePages_Free: 512\nHugepagesize: 2048 kB\n"
    machine = machine_with(proc=proc_with(tmp_path, text))
    pages, swap = check("hugepages", machine), check("swap", machine)
    assert (pages.result, pages.found) == (Result.WARN, "1 GiB reserved as huge pages")
    assert (swap.result, swap.found) == (Result.WARN, "2 GiB of swap")


def test_no_huge_pages_and_no_swap(tmp_path: Path) -> None:
    machine = machine_with(proc=proc_with(tmp_path, "SwapTotal: 0 kB\nHugePages_Free: 0\nHugepagesize: 2048 kB\n"))
    assert [check(name, machine).found for name in ("hugepages", "swap")] == ["none reserved", "none"]


@pytest.mark.parametrize(("name", "key"), [("nbd-port", "memserver.port"), ("control-port", "memserver.control_port")])
def test_a_port_that_is_taken(name: str, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = check(name, machine_with({key: port}))
    assert (found.result, found.found) == (Result.FAIL, f"127.0.0.1 port {port} cannot be listened on")
    assert (found.why or "").startswith("Address already in use")
    assert found.fix == f"ss -ltnp 'sport = :{port}' shows the program that listens; or choose another {key}"
    assert check(name, machine_with({key: port})).found == f"127.0.0.1 port {port} is free"


@needs_root
def test_a_port_for_root_alone() -> None:
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) < 2:
        pytest.skip("cannot run here: every user may use every port")
    found = as_nobody("nbd-port", machine_with({"memserver.port": 1}))
    assert found.found == "127.0.0.1 port 1: permission denied"
    assert found.fix == "set memserver.port above 1023"


def test_an_address_of_another_machine() -> None:
    found = check("nbd-port", machine_with({"memserver.bind": "192.0.2.1"}))
    assert (found.why or "").startswith("Cannot assign requested address")


def test_versions_are_shown() -> None:
    assert check("kernel", machine_with()).found == f"Linux {platform.release()}"
    assert check("python", machine_with()).found == f"Python {platform.python_version()}, ghostbox {__version__}"


def test_a_check_that_cannot_be_made_is_a_failed_check(tmp_path: Path) -> None:
    found = {each.name: each for each in run(machine_with(proc=tmp_path), [Role.DONOR])}
    assert (found["swap"].result, found["swap"].why) == (Result.FAIL, "the check itself failed")
    assert "meminfo" in found["swap"].found


def test_a_role_has_its_own_checks() -> None:
    donor = {name for name, roles, _ in CHECKS if Role.DONOR in roles}
    host = {name for name, roles, _ in CHECKS if Role.HOST in roles}
    assert {"nbd-port", "memory-donor"} <= donor - host
    assert {"userfaultfd", "libvirt", "kvm"} <= host - donor


def test_the_command_says_what_failed_and_exits_5(quick_cli: Cli, tmp_path: Path) -> None:
    env = {"GHOSTBOX_NATIVE_DIR": str(tmp_path / "none"), "GHOSTBOX_MEMSERVER_RESERVE": "1M"}
    done = quick_cli("doctor", "--role", "donor", "--json", env=env)
    assert done.returncode == 5
    report = json.loads(done.stdout)
    failed = [each["name"] for each in report["checks"] if each["result"] == "fail"]
    assert (report["ok"], failed[0]) == (False, "programs")
    assert "userfaultfd" not in {each["name"] for each in report["checks"]}
    assert json.loads(done.stderr)["error"]["message"].endswith(f"failed: {', '.join(failed)}")

    shown = quick_cli("doctor", "--role", "donor", env=env)
    assert "fail  programs" in shown.stdout
    assert "      fix: ./bootstrap install" in shown.stdout


@pytest.mark.parametrize(
    ("lines", "result", "told"),
    [
        ('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\nVERSION_ID="12"', Result.OK, None),
        ('PRETTY_NAME="Debian GNU/Linux 13 (trixie)"\nID=debian\nVERSION_ID="13"', Result.OK, None),
        ('PRETTY_NAME="Debian GNU/Linux forky/sid"\nID=debian', Result.WARN, "./bootstrap test runs"),
        (
            'PRETTY_NAME="Ubuntu 24.04.3 LTS"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"',
            Result.WARN,
            "bootstrap test",
        ),
        ('PRETTY_NAME="Fedora Linux 43"\nID=fedora\nVERSION_ID=43', Result.WARN, "unverified names"),
        ("", Result.WARN, "unverified names"),
    ],
)
def test_the_two_releases_are_known_and_others_are_named(
    tmp_path: Path, lines: str, result: Result, told: str | None
) -> None:
    (tmp_path / "os-release").write_text(lines)
    found = check("system", machine_with(os_release=tmp_path / "os-release"))
    assert found.result is result
    if result is Result.WARN:
        assert found.why is not None
        assert found.fix is not None
        assert "GhostBox is tested on Debian 12 (bookworm), 13 (trixie)" in found.why
        assert str(told) in found.fix
    if lines:
        assert found.found in lines


def test_a_system_without_os_release_is_not_known(tmp_path: Path) -> None:
    found = check("system", machine_with(os_release=tmp_path / "nothing"))
    assert (found.result, found.found) == (Result.WARN, f"no distribution is named in {tmp_path}/nothing")
