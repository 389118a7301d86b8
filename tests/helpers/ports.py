# SPDX-License-Identifier: MIT
"""Choose ports for servers of tests: none twice in one process, and in no two workers of pytest-xdist the same."""

from __future__ import annotations

import os

from ghostbox.system import ports

_N_SHARES = 16
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_not_ours = {port for port in ports.CHOSEN_FROM if port % _N_SHARES != _WORKER % _N_SHARES}


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is free."""
    port = ports.choose(frozenset(_not_ours))
    _not_ours.add(port)
    return port
