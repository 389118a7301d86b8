# SPDX-License-Identifier: MIT
"""The KVM probe runs a guest, and each obstacle to KVM has a text of its own."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ghostbox.system import hypervisor
from ghostbox.system.hypervisor import accounts, kvm
from ghostbox.system.hypervisor.accounts import Account, unreachable_part


def test_probe_guest_reaches_64_bit_mode_and_says_so() -> None:
    """It must do so under emulation everywhere: a failure under KVM is then KVM's."""
    found = kvm.probe("tcg", timeout_s=60, cpu_s=60)
    assert (found.usable, found.reason, found.lasting) == (True, "a 64-bit probe guest ran", True)


def test_probe_with_an_accelerator_that_qemu_lacks() -> None:
    found = kvm.probe("nosuch")
    assert not found.usable and not found.lasting
    assert "a probe guest failed: " in found.reason
    assert "nosuch" in found.reason


@pytest.fixture
def qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a shell script into QEMU's place; it notes that it was run, and runs the commands that it is given."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    monkeypatch.setenv("GHOSTBOX_RUNTIME_DIR", str(tmp_path))
    script = place / kvm.QEMU

    def does(what: str) -> None:
        script.write_text(f"#!/bin/sh\necho >> {tmp_path}/runs\n{what}\n")
        script.chmod(0o755)

    return does


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text().splitlines())


def test_probe_that_hangs_is_known_by_its_processor_time(qemu: Callable[[str], None]) -> None:
    qemu("while :; do :; done")
    found = kvm.probe("kvm", timeout_s=60, cpu_s=1)
    assert (found.usable, found.lasting) == (False, True)
    assert found.reason == "a 64-bit guest does not run: it hung in the switch to 64-bit mode (kvm)"


def test_probe_that_does_not_come_to_run_has_shown_nothing(qemu: Callable[[str], None]) -> None:
    qemu("exec sleep 60")
    found = kvm.probe("kvm", timeout_s=0.5)
    assert (found.usable, found.lasting) == (False, False)
    assert found.reason.startswith("a probe guest did not end within 0 s: this machine is too busy, or ")


needs_kvm = pytest.mark.skipif(
    kvm.access_problem(accounts.qemu_user("qemu:///session")) is not None,
    reason="cannot run here: /dev/kvm cannot be opened",
)
RUNS = "exit 85"
BUSY = "echo 'ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy' >&2; exit 1"


@needs_kvm
def test_failure_is_forgotten_with_its_cause_and_success_is_kept(tmp_path: Path, qemu: Callable[[str], None]) -> None:
    qemu(BUSY)
    usable, reason = hypervisor.kvm_usable("qemu:///session")
    assert not usable
    busy = "another hypervisor uses the processor's virtualisation, such as VirtualBox or VMware"
    assert reason.endswith(f"Device or resource busy ({busy})")
    qemu(RUNS)
    assert hypervisor.kvm_usable("qemu:///session") == (True, "a 64-bit probe guest ran")
    n_before = runs(tmp_path)
    assert hypervisor.kvm_usable("qemu:///session")[0]
    assert runs(tmp_path) == n_before, "what lasts is kept"
    assert hypervisor.kvm_usable("qemu:///session", anew=True)[0]
    assert runs(tmp_path) == n_before + 1, "who asks for a probe gets one"


@needs_kvm
def test_verdict_does_not_outlast_what_it_was_made_with(tmp_path: Path, qemu: Callable[[str], None]) -> None:
    qemu(RUNS)
    assert hypervisor.kvm_usable("qemu:///session")[0]
    kept = json.loads((tmp_path / "kvm.json").read_text())
    (tmp_path / "kvm.json").write_text(json.dumps({**kept, "usable": False, "reason": "kept"}))
    assert hypervisor.kvm_usable("qemu:///session") == (False, "kept")
    qemu(RUNS + "  # another QEMU")
    assert hypervisor.kvm_usable("qemu:///session")[0]
    (tmp_path / "kvm.json").write_text(
        '{"boot_id": "another boot", "usable": false, "reason": "of an earlier version"}'
    )
    assert hypervisor.kvm_usable("qemu:///session")[0]


@needs_kvm
def test_missing_qemu_is_not_held_against_kvm(tmp_path: Path, qemu: Callable[[str], None]) -> None:
    qemu("exit 127")
    assert not hypervisor.kvm_usable("qemu:///session")[0]
    qemu(RUNS)
    assert hypervisor.kvm_usable("qemu:///session")[0]


def test_missing_device(tmp_path: Path) -> None:
    problem = kvm.access_problem(Account("x", 1, frozenset()), tmp_path / "kvm")
    assert problem == f"{tmp_path}/kvm does not exist: no hardware virtualisation, or the kvm module is not loaded"


def test_device_that_qemus_user_may_not_open(tmp_path: Path) -> None:
    device = tmp_path / "kvm"
    device.touch(0o660)
    device.chmod(0o660)
    group = device.stat().st_gid
    stranger = Account("libvirt-qemu", 64055, frozenset({group + 1}))
    problem = kvm.access_problem(stranger, device)
    assert problem == f"user libvirt-qemu, which QEMU runs as, may not open {device}"
    assert hypervisor.problem_hint(problem) == "sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm"
    assert kvm.access_problem(Account("libvirt-qemu", 64055, frozenset({group})), device) is None


def test_device_that_the_user_may_not_open_is_reported_with_the_cure() -> None:
    assert hypervisor.problem_hint("cannot open /dev/kvm: permission denied") == (
        "sudo usermod -aG kvm $USER, then log in again"
    )


def test_qemus_user_is_what_libvirts_configuration_says(tmp_path: Path) -> None:
    conf = tmp_path / "qemu.conf"
    conf.write_text('#user = "root"\nuser = "nobody"\n')
    assert hypervisor.qemu_user("qemu:///system", conf).name == "nobody"
    conf.write_text('user = "+0"\n')
    assert hypervisor.qemu_user("qemu:///system", conf).uid == 0
    assert hypervisor.qemu_user("qemu:///session", conf).uid == os.geteuid()


def test_directory_that_qemus_user_may_not_pass_is_found(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "deeper").mkdir(parents=True)
    tmp_path.chmod(0o711)
    closed.chmod(0o700)
    stranger = Account("libvirt-qemu", 64055, frozenset({64055}))
    found = unreachable_part(closed / "deeper" / "file", stranger)
    assert found is not None
    assert closed.is_relative_to(found)
    assert unreachable_part(closed / "deeper" / "file", Account("root", 0, frozenset())) is None
