# SPDX-License-Identifier: MIT
"""What this machine is called. The kernel takes any bytes for it, and none."""

from __future__ import annotations

import os
import re

_NO_NAME = "unnamed-host"
# What a donor's API takes for a holder, and what every terminal can show.
_ODD = re.compile(r"[^A-Za-z0-9._-]")
_MAX_CHARS = 63


def host_name(otherwise: str = _NO_NAME) -> str:
    """Return the host's name for other machines and for people: ASCII, no spaces; ``otherwise`` if it has none."""
    return _ODD.sub("-", os.uname().nodename).strip("-._")[:_MAX_CHARS] or otherwise
