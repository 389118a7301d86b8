# SPDX-License-Identifier: MIT
"""Check that libvirt and QEMU can run the VM, and with hardware support."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ghostbox.doctor.model import Check, Machine, fail, ok, warn
from ghostbox.errors import GhostboxError, LibvirtDenied
from ghostbox.session import shim_copy
from ghostbox.system import hypervisor, processes
from ghostbox.system.hypervisor import accounts, kvm

_QEMU = "qemu-system-x86_64"
_OLDEST_QEMU = (7, 2)
_SYSTEMD = Path("/run/systemd/system")


def qemu(name: str, machine: Machine) -> Check:
    """Check that QEMU is installed, and not older than the versions that GhostBox is tested with."""
    if processes.which(_QEMU) is None:
        return fail(name, f"{_QEMU} is not installed", why="it runs the VM", fix="sudo apt install qemu-system-x86")
    text = processes.run([_QEMU, "--version"], timeout_s=20)
    match = re.search(r"version (\d+)\.(\d+)(\.\d+)?", text)
    if match is None:
        return warn(name, text.partition("\n")[0], why="its version cannot be read")
    if (int(match[1]), int(match[2])) < _OLDEST_QEMU:
        return warn(name, f"QEMU {match[0]}", why="GhostBox is tested with 7.2 and later", fix="install a newer QEMU")
    return ok(name, f"QEMU {match[0].removeprefix('version ')}")


def libvirt(name: str, machine: Machine) -> Check:
    """Check that the daemon answers, or that `ghostbox up` can start it."""
    uri = machine.config.libvirt.uri
    try:
        with hypervisor.connect(uri, start_daemon=False):
            return ok(name, f"{uri} answers")
    except LibvirtDenied as err:
        return fail(name, err.message, why=err.why or "", fix=err.hint)
    except GhostboxError as err:
        return _no_libvirt(name, uri, err)


def _no_libvirt(name: str, uri: str, err: GhostboxError) -> Check:
    why = err.why or err.message
    if not uri.endswith(":///system"):
        return fail(name, f"no answer at {uri}", why=why, fix=err.hint)
    if processes.which("libvirtd") is None and processes.which("virtqemud") is None:
        return fail(name, "libvirt is not installed", why=why, fix="sudo apt install libvirt-daemon-system")
    if os.geteuid() == 0:
        return ok(name, f"installed, does not run; `ghostbox up` starts it ({uri})")
    fix = "sudo usermod -aG libvirt $USER, then log in again"
    if not _SYSTEMD.is_dir():
        fix = "sudo virtlogd -d; sudo libvirtd -d; " + fix
    return fail(name, f"no answer at {uri}", why=why, fix=fix)


def kvm_access(name: str, machine: Machine) -> Check:
    """Check that this user and QEMU's user can open /dev/kvm (otherwise libvirt takes 76 s to start a domain)."""
    if not machine.kvm.exists():
        why = "no hardware virtualisation, or the kvm module is not loaded: the VM is emulated, about ten times slower"
        return warn(name, f"{machine.kvm} does not exist", why=why, fix="turn on VT-x or AMD-V in the firmware")
    account = hypervisor.qemu_user(machine.config.libvirt.uri)
    problem = kvm.access_problem(account, machine.kvm)
    if problem is None:
        return ok(name, f"{machine.kvm} can be opened, by user {account.name} too")
    why = "without it the VM is emulated, about ten times slower, and libvirt needs minutes to start it"
    return fail(name, problem, why=why, fix=kvm.problem_hint(problem))


def kvm_guest(name: str, machine: Machine) -> Check:
    """Check that a probe guest really runs under KVM."""
    usable, reason = hypervisor.kvm_usable(machine.config.libvirt.uri, anew=True)
    if usable:
        return ok(name, reason)
    why = "the VM is emulated (TCG): everything works, about ten times slower"
    return warn(name, reason, why=why, fix=kvm.problem_hint(reason))


def storage(name: str, machine: Machine) -> Check:
    """Check that QEMU's user can reach disks, images and sockets, and that a copy of the shim has a place."""
    account = hypervisor.qemu_user(machine.config.libvirt.uri)
    for place in (machine.paths.state, machine.paths.images, machine.paths.runtime):
        blocked = accounts.unreachable_part(place / "file", account)
        if blocked is not None:
            why = f"QEMU runs as user {account.name}, which may not pass {blocked}"
            fix = f"chmod o+x {blocked}, or set libvirt.uri to qemu:///session"
            return fail(name, f"QEMU cannot reach {place}", why=why, fix=fix)
    if (refusal := shim_copy.refusal(machine.paths, "any")) is not None:
        return fail(name, refusal.message, why=refusal.why or "", fix=refusal.hint)
    return ok(name, f"user {account.name} can reach {machine.paths.state}")


def security(name: str, machine: Machine) -> Check:
    """Report whether AppArmor or SELinux is on; `up` exempts the VM's domain from it, so that the shim is loaded."""
    active = []
    if _read(machine.sys / "module/apparmor/parameters/enabled") == "Y":
        active.append("AppArmor")
    if _read(machine.sys / "fs/selinux/enforce") == "1":
        active.append("SELinux")
    if active:
        return ok(name, f"{' and '.join(active)} on; the VM's domain is exempt from its profile, for the shim")
    return ok(name, "neither AppArmor nor SELinux confines QEMU")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
