# SPDX-License-Identifier: MIT
"""Recognize, by its console, a guest kernel that hangs while it boots because a timer interrupt was lost.

QEMU without KVM (7.2, two CPUs) now and then loses a timer interrupt. The CPU then never wakes up, each wait for RCU
takes the 21 s of a stall warning, and the boot would take hours. The kernel reports this on its console.
"""

from __future__ import annotations

import re
from pathlib import Path

_BOOT = b"Linux version "
_LOGIN = b" login: "
_SIGN = b"kthread timer wakeup didn't happen for"
_WORDS = re.compile(b"|".join(map(re.escape, (_BOOT, _LOGIN, _SIGN))))
# A host that was busy for 21 s causes one such line; a second line says that the guest did not recover.
_N_SIGNS = 2


def hangs(console_log: Path) -> bool:
    """Tell whether the guest's last boot hangs. A boot that reached a login prompt does not."""
    try:
        text = console_log.read_bytes()
    except OSError:
        return False
    n_signs = 0
    booted = False
    for word in _WORDS.findall(text):
        if word == _BOOT:
            n_signs, booted = 0, False
        booted = booted or word == _LOGIN
        n_signs += word == _SIGN
    return n_signs >= _N_SIGNS and not booted
