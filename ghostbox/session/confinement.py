# SPDX-License-Identifier: MIT
"""Find out why QEMU runs without the shim, and the smallest change that mends that.

The evidence is collected while that QEMU process still exists (its CPUs never ran): its environment, the security
module that confines it, and its log.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import HypervisorError
from ghostbox.session.shim_copy import is_noexec
from ghostbox.system.hypervisor import QemuProcess
from ghostbox.system.hypervisor.accounts import Account, unreachable_part

_LOADER = "ld.so: object "
_APPARMOR_RULES = Path("/etc/apparmor.d/local/abstractions/libvirt-qemu")
_UNCONFINED = ("unconfined", "kernel", "")


@dataclass(frozen=True)
class Findings:
    """Holds the evidence. None means that a value could not be read.

    ``label`` is the process's security label (/proc/PID/attr/current); ``apparmor`` tells whether AppArmor is the
    module that gave it. ``preload`` is LD_PRELOAD in QEMU's environment, empty if it is not set. ``noexec``: the shim's
    file system is mounted noexec. ``closed`` is the directory that QEMU's user may not pass. ``said`` is the dynamic
    loader's message in QEMU's log. ``privileged``: the program file has capabilities or a setuid or setgid bit.
    """

    label: str | None
    apparmor: bool
    preload: str | None
    noexec: bool
    closed: Path | None
    privileged: bool
    said: str | None


def look(qemu: QemuProcess, shim: Path, account: Account, log: Path) -> Findings:
    """Collect evidence why ``shim`` is not mapped in ``qemu``."""
    place = Path(f"/proc/{qemu.pid}")
    return Findings(
        label=_label(place),
        apparmor=Path("/sys/kernel/security/apparmor").is_dir(),
        preload=_preload(place),
        noexec=is_noexec(shim),
        closed=unreachable_part(shim, account),
        privileged=_is_privileged(place / "exe"),
        said=_loader_message(log),
    )


def explain(found: Findings, pid: int, shim: Path) -> HypervisorError:
    """Return the error for the most certain cause, with what mends that cause."""
    why, hint = _cause(found, shim)
    if found.said is not None:
        why = f"{why}\nQEMU's log: {found.said}"
    return HypervisorError(f"QEMU (pid {pid}) runs without {shim.name}", why=why, hint=hint)


def _cause(found: Findings, shim: Path) -> tuple[str, str]:
    place = shim.parent
    if found.noexec:
        return (
            f"{place} is on a file system that is mounted noexec",
            "mount it without noexec, or set GHOSTBOX_STATE_DIR to a directory on another one",
        )
    if found.closed is not None:
        return f"the user that QEMU runs as may not pass {found.closed}", f"chmod o+x {found.closed}"
    if found.label is not None and found.label.split(" ")[0] not in _UNCONFINED:
        return _confined(found, place)
    if found.preload == "":
        return (
            "libvirt started QEMU without LD_PRELOAD in its environment",
            "is <emulator> a wrapper that clears the environment? ghostbox up --print xml shows the domain;"
            " ghostbox logs --source qemu what libvirt started",
        )
    if found.privileged:
        return (
            "the QEMU program has capabilities or a setuid bit of its own, and the loader then ignores LD_PRELOAD",
            "QEMU needs none for GhostBox: getcap and ls -l on the program show them; sudo setcap -r PROGRAM",
        )
    if found.said is not None:
        return "the dynamic loader did not load it", "ghostbox logs --source qemu"
    return "the dynamic loader did not load it, for a reason that was not found", "ghostbox logs --source qemu"


def _confined(found: Findings, place: Path) -> tuple[str, str]:
    if found.apparmor:
        rules = f"{place}/*.so mr,"
        return (
            f"AppArmor confines QEMU (profile {found.label}), whose rules do not let it load files from there",
            f"add that one rule: echo '  {rules}' | sudo tee -a {_APPARMOR_RULES}",
        )
    return (
        f"SELinux confines QEMU ({found.label}), and its policy does not let it load files from there",
        "allow what was denied, and no more: sudo ausearch -m avc -ts recent -c qemu | audit2allow -M ghostbox-qemu,"
        " read ghostbox-qemu.te, then sudo semodule -i ghostbox-qemu.pp",
    )


def _label(place: Path) -> str | None:
    try:
        return (place / "attr" / "current").read_text(errors="replace").strip("\0\n ")
    except OSError:  # EINVAL: no security module labels processes
        return None


def _preload(place: Path) -> str | None:
    try:
        words = (place / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((os.fsdecode(word[11:]) for word in words if word.startswith(b"LD_PRELOAD=")), "")


def _is_privileged(program: Path) -> bool:
    """Tell whether the loader runs the program in secure-execution mode (ld.so(8))."""
    try:
        if program.stat().st_mode & 0o6000:
            return True
        return bool(os.getxattr(program, "security.capability"))
    except OSError:
        return False


def _loader_message(log: Path) -> str | None:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return None
    return next((line for line in reversed(lines) if _LOADER in line), None)
