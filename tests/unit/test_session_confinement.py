# SPDX-License-Identifier: MIT
"""A QEMU has not loaded the shim: real processes show the reason, and the error names the least change that helps."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from ghostbox.session import confinement
from ghostbox.session.confinement import Findings
from ghostbox.system.hypervisor import QemuProcess
from ghostbox.system.hypervisor.accounts import Account

US = Account("us", os.geteuid(), frozenset())
NOTHING = Findings(None, False, "/s/shim.so", False, None, False, None)
SHIM = Path("/s/libghostbox-shim-0.so")


@pytest.mark.parametrize(
    ("changes", "why", "hint"),
    [
        ({"noexec": True, "label": "x"}, "/s is on a file system that is mounted noexec", "GHOSTBOX_STATE_DIR"),
        ({"closed": Path("/root")}, "the user that QEMU runs as may not pass /root", "chmod o+x /root"),
        (
            {"label": "libvirt-0d7a (enforce)", "apparmor": True},
            "AppArmor confines QEMU (profile libvirt-0d7a (enforce))",
            "echo '  /s/*.so mr,' | sudo tee -a /etc/apparmor.d/local/abstractions/libvirt-qemu",
        ),
        ({"label": "system_u:system_r:svirt_t:s0"}, "SELinux confines QEMU (system_u:", "audit2allow -M ghostbox-qemu"),
        ({"preload": ""}, "libvirt started QEMU without LD_PRELOAD in its environment", "ghostbox up --print xml"),
        ({"privileged": True, "label": "unconfined"}, "capabilities or a setuid bit", "sudo setcap -r"),
        ({"label": "unconfined", "apparmor": True}, "for a reason that was not found", "ghostbox logs --source qemu"),
        ({"said": "ERROR: ld.so: object 'x'"}, "QEMU's log: ERROR: ld.so: object 'x'", "ghostbox logs"),
    ],
)  # fmt: skip
def test_each_cause_has_its_own_cure_and_none_switches_security_off(
    changes: dict[str, object], why: str, hint: str
) -> None:
    error = confinement.explain(dataclasses.replace(NOTHING, **changes), 7, SHIM)  # type: ignore[arg-type]
    assert error.message == "QEMU (pid 7) runs without libghostbox-shim-0.so"
    assert why in str(error.why)
    assert hint in str(error.hint)
    assert "security_driver" not in str(error.hint)


def test_a_real_process_is_looked_at(tmp_path: Path) -> None:
    log, shim = tmp_path / "log", tmp_path / "libghostbox-shim-none.so"
    with log.open("w") as stream:
        child = subprocess.Popen(["sleep", "60"], env={"LD_PRELOAD": str(shim)}, stderr=stream, start_new_session=True)
        other = subprocess.Popen(["sleep", "60"], env={})
    try:
        while b"sleep" not in Path(f"/proc/{child.pid}/cmdline").read_bytes() or not log.read_text():
            assert child.poll() is None
        found = confinement.look(QemuProcess(child.pid), shim, US, log)
        assert QemuProcess(child.pid).maps(shim) is False
        assert confinement.look(QemuProcess(other.pid), shim, US, tmp_path / "none").preload == ""
    finally:
        for each in (child, other):
            each.kill()
            each.wait()
    assert (found.preload, found.privileged, found.noexec, found.closed) == (str(shim), False, False, None)
    assert "cannot be preloaded" in str(found.said)
