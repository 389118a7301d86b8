# SPDX-License-Identifier: MIT
"""The KVM probe runs a guest, and each way that KVM cannot be used has a text of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ghostbox import hypervisor
from ghostbox.hypervisor import accounts, kvm
from ghostbox.hypervisor.accounts import Account, unreachable_part


def test_probe_guest_reaches_64_bit_mode_and_says_so() -> None:
    """Under emulation it must, everywhere: so a failure under KVM is KVM's."""
    assert kvm.probe("tcg", timeout_s=30) == (True, "a 64-bit probe guest ran")


def test_probe_that_hangs_is_ended_and_called_so() -> None:
    usable, reason = kvm.probe("tcg", timeout_s=0.001)
    assert not usable
    assert reason.startswith("a 64-bit guest does not run: it hung")


def test_probe_with_an_accelerator_that_qemu_lacks() -> None:
    usable, reason = kvm.probe("nosuch")
    assert not usable
    assert "a probe guest failed: " in reason
    assert "nosuch" in reason


def test_verdict_is_kept_until_the_next_boot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kvm.access_problem(accounts.qemu_user("qemu:///session")) is not None:
        pytest.skip("cannot run here: /dev/kvm cannot be opened")
    monkeypatch.setenv("GHOSTBOX_RUNTIME_DIR", str(tmp_path))
    first = hypervisor.kvm_usable("qemu:///session")
    assert "\n" not in first[1]
    kept = {**json.loads((tmp_path / "kvm.json").read_text()), "reason": "kept"}
    (tmp_path / "kvm.json").write_text(json.dumps(kept))
    assert hypervisor.kvm_usable("qemu:///session") == (first[0], "kept")
    (tmp_path / "kvm.json").write_text('{"boot_id": "another boot", "usable": true, "reason": "old"}')
    assert hypervisor.kvm_usable("qemu:///session") == first


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


def test_device_that_we_may_not_open_says_how_to_mend_it() -> None:
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
