# SPDX-License-Identifier: MIT
"""Services of systemd: a donor that lends from the machine's start on, and the VMs that start with it.

They are the system's (root's default) or the user's own. Nothing is installed where systemd does not run, and no unit
is touched that we have not written.
"""

from __future__ import annotations

import enum
import getpass
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ghostbox import processes
from ghostbox.errors import ProgramError, Refused
from ghostbox.paths import Paths

_log = logging.getLogger(__name__)
_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_SYSTEM_UNITS = Path("/etc/systemd/system")
_MARK = "# Written by `ghostbox service install`; `ghostbox service uninstall` removes it."
_TIMEOUT_S = 60.0


class Kind(enum.StrEnum):
    """What a service does."""

    DONOR = "donor"
    HOST = "host"


class Scope(enum.StrEnum):
    """Whose systemd runs it."""

    SYSTEM = "system"
    USER = "user"


@dataclass(frozen=True)
class Service:
    """A service that is, or may be, installed."""

    kind: Kind
    scope: Scope

    @property
    def unit(self) -> str:
        """The name systemd knows it by."""
        return f"ghostbox-{self.kind}.service"

    @property
    def file(self) -> Path:
        """Where its unit is."""
        if self.scope is Scope.SYSTEM:
            return _SYSTEM_UNITS / self.unit
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd/user" / self.unit

    @property
    def journal(self) -> str:
        """The command that shows what it said."""
        return f"journalctl{'' if self.scope is Scope.SYSTEM else ' --user'} -u {self.unit}"


@dataclass(frozen=True)
class ServiceStatus:
    """What systemd says of a service. ``unit_file`` is None if it is not installed; ``at_boot``: it starts then."""

    kind: Kind
    scope: Scope
    unit: str
    unit_file: Path | None
    at_boot: bool
    state: str
    notes: tuple[str, ...] = ()


def service(kind: Kind, *, user: bool) -> Service:
    """Return the service of a kind: the user's own if asked for, or if the caller is not root."""
    return Service(kind, Scope.USER if user or os.geteuid() != 0 else Scope.SYSTEM)


def install(wanted: Service, arguments: Sequence[str], paths: Paths) -> ServiceStatus:
    """Write the unit, have it started at boot, and start it now (a host's VMs with it).

    Args:
        wanted: which service.
        arguments: of `ghostbox memserver`, or of `ghostbox autostart run`.
        paths: the directories that the service uses, too.

    Raises:
        Refused: systemd does not run here, or a unit of that name is not ours.
        ProgramError: systemd does not take or start it.
    """
    _check_systemd()
    _check_ours(wanted.file)
    for place in (paths.state, wanted.file.parent):
        place.mkdir(parents=True, exist_ok=True)
    wanted.file.write_text(unit_text(wanted, arguments, paths), encoding="utf-8")
    _systemctl(wanted, "daemon-reload")
    _systemctl(wanted, "enable", wanted.unit)
    try:
        _tell_of_waiting(wanted)
        _systemctl(wanted, "restart", wanted.unit, timeout_s=None)
    except ProgramError as err:
        raise ProgramError(
            f"{wanted.unit} is installed and does not start", why=err.why, hint=f"{wanted.journal} -n 20"
        ) from err
    return status(wanted)


def uninstall(wanted: Service) -> bool:
    """Stop a donor's service, forget the unit; tell whether there was one. VMs go on running.

    Raises:
        Refused: systemd does not run here, or the unit is not ours.
        ProgramError: systemd does not do it.
    """
    _check_systemd()
    if not os.path.lexists(wanted.file):
        return False
    _check_ours(wanted.file)
    if wanted.kind is Kind.DONOR:
        _tell_of_waiting(wanted)
        _systemctl(wanted, "stop", wanted.unit, timeout_s=None)
    _systemctl(wanted, "disable", wanted.unit)
    wanted.file.unlink(missing_ok=True)
    _systemctl(wanted, "daemon-reload")
    return True


def _tell_of_waiting(wanted: Service) -> None:
    """Say why what comes next may take long: a donor that runs is stopped."""
    if wanted.kind is Kind.DONOR and _property(wanted, "ActiveState") in ("active", "deactivating"):
        _log.warning("%s stops once no host holds its memory; who does: %s", wanted.unit, wanted.journal)


def _property(wanted: Service, name: str) -> str:
    return _systemctl(wanted, "show", wanted.unit, "--value", f"--property={name}").strip()


def status(wanted: Service) -> ServiceStatus:
    """Ask systemd for a service.

    Raises:
        Refused: systemd does not run here.
    """
    _check_systemd()
    said = _systemctl(wanted, "show", wanted.unit, "--property=ActiveState,SubState,UnitFileState")
    values = dict(line.partition("=")[::2] for line in said.splitlines())
    installed = wanted.file.exists()
    at_boot = values.get("UnitFileState") == "enabled"
    return ServiceStatus(
        wanted.kind,
        wanted.scope,
        wanted.unit,
        wanted.file if installed else None,
        at_boot,
        f"{values.get('ActiveState', 'unknown')} ({values.get('SubState', 'unknown')})",
        _notes(wanted) if at_boot else (),
    )


def unit_text(wanted: Service, arguments: Sequence[str], paths: Paths) -> str:
    """Return the unit. systemd.unit(5), systemd.service(5), systemd.exec(5)."""
    is_donor = wanted.kind is Kind.DONOR
    words = ["memserver"] if is_donor else ["autostart", "run"]
    # As a module: the script's first line cannot hold every path, and -P keeps the working directory out.
    argv = [sys.executable, "-P", "-m", "ghostbox", *words, *arguments]
    line = " ".join(_quoted(word).replace("$", "$$") for word in argv)
    after = "" if is_donor else " libvirtd.service virtqemud.service"
    sections = {
        "Unit": [
            f"Description=GhostBox: {_about_donor(wanted) if is_donor else 'the VMs that start with this machine'}",
            "Wants=network-online.target",
            f"After=network-online.target{after}",
        ],
        "Service": [
            f"ExecStart={line}",
            *_environment(paths),
            *(_donor_lines(paths, wanted.scope) if is_donor else _HOST),
        ],
        "Install": [f"WantedBy={'multi-user' if wanted.scope is Scope.SYSTEM else 'default'}.target"],
    }
    text = "\n\n".join("\n".join((f"[{name}]", *lines)) for name, lines in sections.items())
    return f"{_MARK}\n{text}\n"


def _about_donor(wanted: Service) -> str:
    """Return what a machine that shuts down shows while it waits ("A stop job is running for …")."""
    return f"lends memory, stops when no host holds any (who does: {wanted.journal})"


# Pagers and supervisors stay in the service's control group, and do not end with it.
_HOST = ("Type=oneshot", "RemainAfterExit=yes", "TimeoutStartSec=infinity", "KillMode=process", "SendSIGKILL=no")


def _donor_lines(paths: Paths, scope: Scope) -> list[str]:
    """Return how a donor runs. Its memory is in the data plane, which outlives the process that systemd watches."""
    written = f"ReadWritePaths={_quoted(str(paths.state))} {_quoted(str(paths.runtime.parent))}"
    return [
        "Type=exec",
        # Whatever becomes of the control plane, the data plane goes on, and the next control plane takes it over.
        "KillMode=process",
        "SendSIGKILL=no",
        "Restart=on-failure",
        "RestartSec=2",
        # It stops once no host holds its memory: whatever limit there was, running VMs would lose theirs after it.
        # A machine that shuts down names it on its console meanwhile; systemd itself forces it after 30 minutes
        # (JobTimeoutSec= of poweroff.target and reboot.target), and a user's own systemd after 2 (user@.service).
        "TimeoutStopSec=infinity",
        # A user's systemd has no right to change the mounts and the privileges of what it starts.
        *((written, *_HARDENING, *_HARDENING_BY_ROOT) if scope is Scope.SYSTEM else _HARDENING),
    ]


# A donor opens sockets, memfds and its own directories, and nothing else.
_HARDENING = (
    "NoNewPrivileges=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "UMask=0077",
)
_HARDENING_BY_ROOT = (
    "CapabilityBoundingSet=",
    "ProtectSystem=strict",
    "ProtectHome=read-only",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "LimitMEMLOCK=infinity",
)


def _environment(paths: Paths) -> list[str]:
    """Return the directories of the installation that the service belongs to."""
    values = {"STATE": paths.state, "RUNTIME": paths.runtime, "CACHE": paths.cache, "NATIVE": paths.native}
    return [f"Environment={_quoted(f'GHOSTBOX_{kind}_DIR={place.absolute()}')}" for kind, place in values.items()]


def _quoted(word: str) -> str:
    """Return a word as systemd takes it for itself: without specifiers or splitting."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    return f'"{plain}"'


def _notes(wanted: Service) -> tuple[str, ...]:
    name = getpass.getuser()
    if wanted.scope is Scope.SYSTEM or Path("/var/lib/systemd/linger", name).exists():
        return ()
    return (f"it starts when {name} logs in; with the machine after: sudo loginctl enable-linger {name}",)


def _check_systemd() -> None:
    if not _BOOTED.is_dir() or shutil.which("systemctl") is None:
        raise Refused(
            "systemd does not run on this machine: there are no services here",
            why="systemctl is not installed" if _BOOTED.is_dir() else f"{_BOOTED} is not there",
            hint="start `ghostbox memserver` or `ghostbox autostart run` by what starts this machine's other programs",
        )


def _check_ours(file: Path) -> None:
    if os.path.lexists(file) and (file.is_symlink() or not file.read_text(encoding="utf-8").startswith(_MARK)):
        raise Refused(f"{file} was not written by ghostbox", hint="move it away, or manage that service by hand")


def _systemctl(wanted: Service, *words: str, timeout_s: float | None = _TIMEOUT_S) -> str:
    scope = [] if wanted.scope is Scope.SYSTEM else ["--user"]
    try:
        return processes.run(["systemctl", *scope, *words], timeout_s=timeout_s)
    except ProgramError as err:
        if wanted.scope is Scope.USER and "connect to bus" in (err.why or "").lower():
            name = getpass.getuser()
            hint = f"log in as {name} itself (not by su or sudo), or: sudo loginctl enable-linger {name}"
            raise ProgramError(f"the systemd of user {name} does not answer", why=err.why, hint=hint) from err
        raise
