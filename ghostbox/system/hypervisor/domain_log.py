# SPDX-License-Identifier: MIT
"""Find the log of a domain's QEMU, which libvirt writes (virQEMUDriverConfigNew())."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ghostbox.system.hypervisor import session_daemon

_SYSTEM = Path("/var/log/libvirt/qemu")


def qemu_log(uri: str, domain: str, environment: Mapping[str, str] | None = None) -> Path:
    """Return the log's path, whether or not the log exists.

    ``environment`` is of the login whose session libvirt is meant; None means this login. That libvirt may have been
    started in another environment of the same login: if the log is not at the place that the environment names, the
    usual place is returned.
    """
    if "/session" not in uri:
        return _SYSTEM / f"{domain}.log"
    places = session_daemon.caches(os.environ if environment is None else environment)
    found = [place / "libvirt/qemu/log" / f"{domain}.log" for place in places]
    return next((file for file in found if file.exists()), found[0])
