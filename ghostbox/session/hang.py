# SPDX-License-Identifier: MIT
"""A guest kernel that hangs while it boots, because a timer interrupt was lost: seen on its console.

QEMU without KVM (7.2, two CPUs) loses one now and then: the CPU sleeps for ever, each wait for RCU takes the 21 s of a
stall warning, and the boot would take hours. The kernel says so itself.
"""

from __future__ import annotations

import re
from pathlib import Path

_BOOT = b"Linux version "
_LOGIN = b" login: "
_SIGN = b"kthread timer wakeup didn't happen for"
_WORDS = re.compile(b"|".join(map(re.escape, (_BOOT, _LOGIN, _SIGN))))
# One may be a host that was busy for 21 s; the second says that the first cured nothing.
_N_SIGNS = 2


def hangs(console_log: Path) -> bool:
    """Tell whether the guest's last boot hangs. One that got as far as a login prompt never counts as hanging."""
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
