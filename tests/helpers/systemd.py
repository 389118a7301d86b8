# SPDX-License-Identifier: MIT
"""Run a real systemd for tests: a user's manager in namespaces of its own, whatever init system the machine has."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from ghostbox.system.processes import wait_until

_MANAGER = Path("/usr/lib/systemd/systemd")
# systemd asks sd_booted(3), so the namespace has that directory. Its first process is the shell, which adopts orphans.
_START = f"""
mount -t tmpfs -o mode=755 tmpfs /run && mkdir -p /run/systemd/system /run/user/0
{_MANAGER} --user --log-target=console & wait
"""


@dataclass(frozen=True)
class Systemd:
    """Is a manager that runs; commands run beside it."""

    pid: int
    home: Path

    def run(self, *argv: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command that sees this systemd, and only the processes that it started."""
        own = {"HOME": str(self.home), "XDG_RUNTIME_DIR": "/run/user/0", "XDG_CONFIG_HOME": str(self.home / ".config")}
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "-p", *map(str, argv)],
            env={**os.environ, **own, **(env or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "--user", "show", "--value", f"--property={name}", unit).stdout.strip()


@contextlib.contextmanager
def user_systemd() -> Iterator[Systemd]:
    """Run root's user manager until the end of the block; all its processes end with it."""
    if os.geteuid() != 0:
        pytest.skip("cannot run here: namespaces need root")
    if not _MANAGER.exists() or shutil.which("systemctl") is None:
        pytest.skip("systemd is not installed")
    with tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp") as name:
        home = Path(name)
        argv = ["unshare", "-m", "-p", "-f", "--kill-child", "--mount-proc", "--propagation", "slave"]
        env = {**os.environ, "HOME": name, "XDG_RUNTIME_DIR": "/run/user/0", "XDG_CONFIG_HOME": f"{name}/.config"}
        with (
            (home / "log").open("w") as log,
            subprocess.Popen([*argv, "bash", "-c", _START], env=env, stdout=log, stderr=log) as unshare,
        ):
            try:
                children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
                wait_until(lambda: children.read_text().strip() != "", timeout_s=20, what="the namespace")
                made = Systemd(int(children.read_text().split()[0]), home)
                ask = ("systemctl", "--user", "is-system-running")
                wait_until(
                    lambda: made.run(*ask).stdout.strip() in ("running", "degraded"),
                    timeout_s=60,
                    what="systemd",
                    interval_s=0.1,
                )
                yield made
            finally:
                unshare.kill()
