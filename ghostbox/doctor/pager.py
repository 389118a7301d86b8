# SPDX-License-Identifier: MIT
"""Check that the pager can work: /dev/userfaultfd, and the features of the kernel's userfaultfd."""

from __future__ import annotations

import grp
import json
import os

from ghostbox.doctor.model import Check, Machine, fail, ok, warn
from ghostbox.errors import GhostboxError
from ghostbox.system import processes

_UDEV = (
    """echo 'KERNEL=="userfaultfd", GROUP="kvm", MODE="0660"' | sudo tee /etc/udev/rules.d/60-ghostbox.rules"""
    " && sudo chgrp kvm {device} && sudo chmod 660 {device} && sudo usermod -aG kvm $USER, then log in again"
)
_JOIN = "sudo usermod -aG kvm $USER, then log in again"


def device(name: str, machine: Machine) -> Check:
    """Check that the pager can open /dev/userfaultfd (QEMU need not)."""
    path = machine.userfaultfd
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        why = "the kernel is older than 6.1, or was built without CONFIG_USERFAULTFD; in a container: not passed in"
        return fail(name, f"{path} does not exist", why=why, fix="boot Linux 6.1 or later")
    except PermissionError:
        status = path.stat()
        mode = f"{path} is {status.st_mode & 0o777:04o} and belongs to group {_group_name(status.st_gid)}"
        in_kvm_group = _group_name(status.st_gid) == "kvm" and status.st_mode & 0o060 == 0o060
        fix = _JOIN if in_kvm_group else _UDEV.format(device=path)
        return fail(name, f"cannot open {path}: permission denied", why=mode, fix=fix)
    except OSError as err:
        return fail(name, f"cannot open {path}: {err.strerror}", why="it is not the kernel's userfaultfd device")
    return ok(name, f"{path} can be opened")


def features(name: str, machine: Machine) -> Check:
    """Check what `ghostbox-pager --probe` says of this kernel."""
    try:
        answer = processes.run([machine.paths.pager_program, "--probe"], timeout_s=20)
        probed = json.loads(answer)
    except (GhostboxError, ValueError) as err:
        why = err.why if isinstance(err, GhostboxError) and err.why else str(err)
        return fail(name, "ghostbox-pager --probe gives no answer", why=why, fix="see the checks above")
    missing = probed.get("missing", [])
    if missing:
        why = "the pager cannot work without: " + ", ".join(missing)
        return fail(name, f"the kernel's userfaultfd lacks {len(missing)} features", why=why, fix="boot a newer kernel")
    if probed.get("dirty_tracking") != "wp-async":
        why = "the kernel has no WP_ASYNC (Linux 6.7), so a first write to a page costs about 10 µs instead of 1 µs"
        return warn(name, "dirty tracking by wp-fault", why=why, fix="boot Linux 6.7 or later for more speed")
    return ok(name, "all there, dirty tracking by wp-async")


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
