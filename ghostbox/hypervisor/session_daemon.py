# SPDX-License-Identifier: MIT
"""Where the session libvirt of a login environment listens.

``su``, ``sudo -u`` and cron give an environment of their own, and with it another daemon, which knows nothing of what
the first one started.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from ghostbox import processes
from ghostbox.errors import GhostboxError

_log = logging.getLogger(__name__)
_SOCKETS = ("virtqemud-sock", "libvirt-sock")
_START_TIMEOUT_S = 60.0
_OPEN = "import libvirt, sys; libvirt.open(sys.argv[1]).close()"


def directory(environment: Mapping[str, str]) -> Path:
    """Return where libvirt's library looks for its session daemon (virGetUserRuntimeDirectory, on GLib's rules)."""
    runtime = environment.get("XDG_RUNTIME_DIR")
    return (Path(runtime) if runtime else caches(environment)[0]) / "libvirt"


def caches(environment: Mapping[str, str]) -> list[Path]:
    """Return where caches of that login are: the place that it chose, if it chose one, then the usual one."""
    chosen = environment.get("XDG_CACHE_HOME")
    usual = Path(environment.get("HOME") or Path.home()) / ".cache"
    return [Path(chosen), usual] if chosen else [usual]


def is_another(environment: Mapping[str, str]) -> bool:
    """Tell whether an environment's session daemon is another one than ours."""
    return directory(environment) != directory(os.environ)


def sockets(environment: Mapping[str, str]) -> list[Path]:
    """Return the sockets that are there."""
    return [path for name in _SOCKETS if (path := directory(environment) / name).exists()]


def uri_of(uri: str, path: Path) -> str:
    """Return the URI of a connection by a given socket."""
    return f"{uri.replace(':///', '+unix:///')}?socket={quote(str(path))}"


def start(uri: str, environment: Mapping[str, str]) -> bool:
    """Let libvirt's library start the daemon, in a process of that environment; tell whether it could."""
    if not directory(environment).parent.is_dir():
        return False  # it is the login's, and the login is over
    names = ("HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")
    ours = {name: value for name, value in os.environ.items() if name not in names}
    try:
        processes.run(
            [sys.executable, "-P", "-c", _OPEN, uri],
            timeout_s=_START_TIMEOUT_S, env={**ours, **environment}, inherit_env=False,
        )  # fmt: skip
    except GhostboxError as err:
        _log.debug("%s: %s", err.message, err.why)
        return False
    return True
