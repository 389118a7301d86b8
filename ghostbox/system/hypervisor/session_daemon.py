# SPDX-License-Identifier: MIT
"""Find the session libvirt of a login environment.

``su``, ``sudo -u`` and cron each give an environment of their own, and with it another daemon, which does not know what
the first one started.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from ghostbox.errors import GhostboxError
from ghostbox.system import processes

_log = logging.getLogger(__name__)
_SOCKETS = ("virtqemud-sock", "libvirt-sock")
_START_TIMEOUT_S = 60.0
_OPEN = "import libvirt, sys; libvirt.open(sys.argv[1]).close()"


def directory(environment: Mapping[str, str]) -> Path:
    """Return the directory of libvirt's session daemon (virGetUserRuntimeDirectory, which follows GLib's rules)."""
    runtime = environment.get("XDG_RUNTIME_DIR")
    return (Path(runtime) if runtime else caches(environment)[0]) / "libvirt"


def caches(environment: Mapping[str, str]) -> list[Path]:
    """Return the cache directories of that login: the chosen one, if any, then the usual one."""
    chosen = environment.get("XDG_CACHE_HOME")
    usual = Path(environment.get("HOME") or Path.home()) / ".cache"
    return [Path(chosen), usual] if chosen else [usual]


def is_another(environment: Mapping[str, str]) -> bool:
    """Tell whether an environment's session daemon is another one than this login's."""
    return directory(environment) != directory(os.environ)


def sockets(environment: Mapping[str, str]) -> list[Path]:
    """Return the sockets that exist."""
    return [path for name in _SOCKETS if (path := directory(environment) / name).exists()]


def uri_of(uri: str, path: Path) -> str:
    """Return the URI of a connection through a given socket."""
    return f"{uri.replace(':///', '+unix:///')}?socket={quote(str(path))}"


def start(uri: str, environment: Mapping[str, str]) -> bool:
    """Let libvirt's library start the daemon, in a process with that environment; return whether it could."""
    if not directory(environment).parent.is_dir():
        return False  # this directory went with the login, which has ended
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
