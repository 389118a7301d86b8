# SPDX-License-Identifier: MIT
"""Start libvirt's daemons if none answers: by systemd, or directly where systemd is not PID 1."""

from __future__ import annotations

import logging
from pathlib import Path

from ghostbox.errors import HypervisorError, ProgramError
from ghostbox.system import processes

_log = logging.getLogger(__name__)
_SYSTEMD = Path("/run/systemd/system")
_LOCKS = Path("/run/lock")
_UNITS = ("libvirtd.socket", "libvirtd.service", "virtqemud.socket")


def start() -> None:
    """Start the system's libvirt.

    Raises:
        HypervisorError: libvirt is not installed, or does not start (usually: the caller is not root).
    """
    if _SYSTEMD.is_dir():
        _start_units()
    else:
        _start_directly()


def _start_units() -> None:
    failures = []
    for unit in _UNITS:
        try:
            processes.run(["systemctl", "start", unit], timeout_s=60)
        except ProgramError as err:
            failures.append(f"{unit}: {err.why or err.message}")
        else:
            return
    raise HypervisorError("cannot start libvirt", why="\n".join(failures), hint="sudo systemctl start libvirtd")


def _start_directly() -> None:
    """Start virtlogd, then libvirtd, which passes consoles to it; without systemd nothing else starts it.

    The daemons serve the whole machine and outlive this command, so they do not get its environment.
    """
    if processes.which("libvirtd") is None:
        raise HypervisorError(
            "cannot start libvirt: libvirtd is not installed",
            hint="install libvirt-daemon-system (Debian) or libvirt (others)",
        )
    make_lock_directory(_LOCKS)
    for daemon in ("virtlogd", "libvirtd"):
        try:
            processes.run([daemon, "-d"], timeout_s=60, env={"PATH": processes.search_path()}, inherit_env=False)
        except ProgramError as err:
            if not _already_running(err):
                raise HypervisorError(
                    f"cannot start {daemon}", why=err.why, hint=f"run `{daemon} -d` as root and read its messages"
                ) from err
        _log.info("started %s", daemon)


def make_lock_directory(path: Path) -> None:
    """Make the directory that systemd makes (tmpfiles.d/debian.conf) behind /var/lock: libvirt locks consoles there."""
    try:
        path.mkdir()
        path.chmod(0o1777)
    except FileExistsError:
        return
    except OSError as err:
        _log.debug("cannot make %s: %s", path, err.strerror)


def _already_running(err: ProgramError) -> bool:
    return "pid file" in (err.why or "").lower()
