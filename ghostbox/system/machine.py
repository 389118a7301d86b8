# SPDX-License-Identifier: MIT
"""Identify the machine of a memserver or a host, as donors and hosts compare machines.

Two copies of a page on one machine are no better than one, so hosts must recognize two donors of one machine, whatever
their names and addresses. Such donors share the kernel, and fail with it. So a machine is identified by its kernel's
boot id, random(4), and not by /etc/machine-id: containers on one kernel have different machine ids, and cloned machines
often have the same. After a reboot the digest differs, and so does the memory. Virtual machines on one physical machine
have different kernels: their owner can name the physical machine (``memserver.machine``). Donors send a digest of the
boot id, which tells only whether two donors are on one machine.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def machine_digest(name: str | None = None, *, boot_id: Path = _BOOT_ID) -> str:
    """Return this machine's digest: 16 hexadecimal digits. ``name`` is the owner's name for the machine."""
    told_by = b"boot" + boot_id.read_bytes().strip() if name is None else b"name" + name.encode()
    return hashlib.sha256(b"ghostbox machine " + told_by).hexdigest()[:16]
