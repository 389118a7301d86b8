# SPDX-License-Identifier: MIT
"""Manage services of systemd: a donor that lends from the machine's start, and the VMs that start with the machine.

A service is the system's (root's default) or the user's own. Nothing is installed where systemd does not run, and a
unit that GhostBox has not written is never touched.
"""

from __future__ import annotations

import contextlib
import enum
import getpass
import logging
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import DeadlineExceeded, GhostboxError, ProgramError, Refused, hint_for
from ghostbox.paths import Paths
from ghostbox.system import process_table, processes, state_files

_log = logging.getLogger(__name__)
_BOOTED = Path("/run/systemd/system")  # sd_booted(3)
_SYSTEM_UNITS = Path("/etc/systemd/system")
_MARK = "# Written by `ghostbox service install`; `ghostbox service uninstall` removes it."
_TIMEOUT_S = 60.0


class Kind(enum.StrEnum):
    """Names what a service does."""

    DONOR = "donor"
    HOST = "host"


class Scope(enum.StrEnum):
    """Names whose systemd runs a service."""

    SYSTEM = "system"
    USER = "user"


@dataclass(frozen=True)
class Service:
    """Is a service that is, or may be, installed."""

    kind: Kind
    scope: Scope

    @property
    def unit(self) -> str:
        """Return the name of the unit."""
        return f"ghostbox-{self.kind}.service"

    @property
    def file(self) -> Path:
        """Return the path of the unit's file."""
        if self.scope is Scope.SYSTEM:
            return _SYSTEM_UNITS / self.unit
        return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd/user" / self.unit

    @property
    def journal(self) -> str:
        """Return the command that shows the service's log."""
        return f"journalctl{'' if self.scope is Scope.SYSTEM else ' --user'} -u {self.unit}"


@dataclass(frozen=True)
class ServiceStatus:
    """Holds systemd's view of a service. ``unit_file`` is None if it is not installed; ``at_boot``: it starts then."""

    kind: Kind
    scope: Scope
    unit: str
    unit_file: Path | None
    at_boot: bool
    state: str
    notes: tuple[str, ...] = ()


def service(kind: Kind, *, user: bool) -> Service:
    """Return the service of a kind: the user's own if that is asked for, or if the caller is not root."""
    return Service(kind, Scope.USER if user or os.geteuid() != 0 else Scope.SYSTEM)


def install(wanted: Service, arguments: Sequence[str], paths: Paths, *, keep_leases: bool = False) -> ServiceStatus:
    """Write the unit, enable it for the boot, and start it now (for a host, its VMs).

    Args:
        wanted: which service.
        arguments: of `ghostbox memserver`, or of `ghostbox autostart run`.
        paths: the directories that the service uses.
        keep_leases: a donor that runs is not stopped, which would wait for its leases: its control plane is killed, and
            the new one takes over the memory with all leases.

    Raises:
        Refused: systemd does not run here, or GhostBox did not write a unit of that name that exists.
        GhostboxError: the unit cannot be written; the former one stays.
        ProgramError: systemd does not accept or start the unit.
    """
    _check_systemd()
    write_unit(wanted, arguments, paths)
    _systemctl(wanted, "daemon-reload")
    _systemctl(wanted, "enable", wanted.unit)
    # systemd counts the starts of a unit, and refuses too many in too short a time. A user who installs means it.
    with contextlib.suppress(ProgramError):  # systemd does not know the unit: there are no starts to forget
        _systemctl(wanted, "reset-failed", wanted.unit)
    try:
        if keep_leases and _property(wanted, "ActiveState") == "active":
            _replace_control_plane(wanted)
        else:
            _tell_of_waiting(wanted)
            _systemctl(wanted, "restart", wanted.unit, timeout_s=None)
    except ProgramError as err:
        raise ProgramError(
            f"{wanted.unit} is installed and does not start", why=err.why, hint=f"{wanted.journal} -n 20"
        ) from err
    return status(wanted)


def write_unit(wanted: Service, arguments: Sequence[str], paths: Paths) -> None:
    """Write the unit as a whole, and make the directories that it names.

    Raises:
        Refused: GhostBox did not write a unit of that name that exists.
        GhostboxError: the unit cannot be written; the former one stays.
    """
    _check_ours(wanted.file)
    text = unit_text(wanted, arguments, paths)
    try:
        for place in (paths.state, wanted.file.parent):
            place.mkdir(parents=True, exist_ok=True)
        state_files.replace(wanted.file, text.encode(), mode=0o644)
    except OSError as err:
        raise GhostboxError(
            f"cannot write {wanted.file}: {err.strerror}", hint=hint_for(err, "see that its directory can be written")
        ) from err


def uninstall(wanted: Service) -> bool:
    """Stop a donor's service and remove the unit; return whether there was one. VMs run on.

    Raises:
        Refused: systemd does not run here, or GhostBox did not write the unit.
        ProgramError: systemd refuses.
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


def restarts(wanted: Service) -> int:
    """Return how often systemd has started a service again by itself."""
    return int(_property(wanted, "NRestarts") or 0)


def has_failed(wanted: Service) -> bool:
    """Tell whether systemd has given a service up."""
    return _property(wanted, "ActiveState") == "failed"


def last_words(wanted: Service, lines: int) -> str | None:
    """Return the last lines of a service's log; None if there are none."""
    words = [*wanted.journal.split(), "-n", str(lines), "-o", "cat", "--no-pager"]
    with contextlib.suppress(ProgramError):
        return processes.run(words, timeout_s=_TIMEOUT_S).strip() or None
    return None


def _tell_of_waiting(wanted: Service) -> None:
    """Log why the next step may take long: a running donor is stopped."""
    if wanted.kind is Kind.DONOR and _property(wanted, "ActiveState") in ("active", "deactivating"):
        _log.warning("%s stops once no host holds its memory; to see the holders: %s", wanted.unit, wanted.journal)


def _replace_control_plane(wanted: Service) -> None:
    """Kill the control plane; systemd starts the new one (Restart=), which adopts the data plane.

    Raises:
        ProgramError: systemd does not start it again.
    """
    before = int(_property(wanted, "MainPID"))
    process_table.send(before, signal.SIGKILL, lambda: int(_property(wanted, "MainPID")) == before)
    try:
        processes.wait_until(
            lambda: int(_property(wanted, "MainPID")) not in (0, before), timeout_s=_TIMEOUT_S, what="its next start"
        )
    except DeadlineExceeded as err:
        raise ProgramError(f"{wanted.unit} was not started again", why=err.message) from err


def _property(wanted: Service, name: str) -> str:
    return _systemctl(wanted, "show", wanted.unit, "--value", f"--property={name}").strip()


def status(wanted: Service) -> ServiceStatus:
    """Return systemd's view of a service.

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
    """Return the unit's text: see systemd.unit(5), systemd.service(5), systemd.exec(5)."""
    is_donor = wanted.kind is Kind.DONOR
    words = ["memserver"] if is_donor else ["autostart", "run"]
    # GhostBox is run as a module: a script's first line cannot hold every path. -P keeps the working directory out.
    argv = processes.own(*words, *arguments)
    line = " ".join(_quoted(str(word)).replace("$", "$$") for word in argv)
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
    """Return the text that a machine which shuts down shows while it waits ("A stop job is running for …")."""
    return f"lends memory, stops when no host holds any (holders: {wanted.journal})"


# Pagers and supervisors stay in the service's control group, and do not end with it.
_HOST = ("Type=oneshot", "RemainAfterExit=yes", "TimeoutStartSec=infinity", "KillMode=process", "SendSIGKILL=no")


def _donor_lines(paths: Paths, scope: Scope) -> list[str]:
    """Return the settings of a donor's service. The data plane has the memory and outlives the watched process."""
    written = f"ReadWritePaths={_quoted(str(paths.state))} {_quoted(str(paths.runtime.parent))}"
    return [
        "Type=exec",
        # When the control plane ends, the data plane runs on, and the next control plane adopts it.
        "KillMode=process",
        "SendSIGKILL=no",
        "Restart=on-failure",
        "RestartSec=2",
        # The donor stops once no host holds its memory. After any time limit, running VMs would lose memory.
        # A machine that shuts down names the donor on its console meanwhile; systemd forces the end after 30 minutes
        # (JobTimeoutSec= of poweroff.target and reboot.target), and a user's own systemd after 2 (user@.service).
        "TimeoutStopSec=infinity",
        # A user's systemd may not change the mounts and the privileges of the programs that it starts.
        *((written, *_HARDENING, *_HARDENING_BY_ROOT) if scope is Scope.SYSTEM else _HARDENING),
    ]


# A donor opens only sockets, memfds and files in its own directories.
_HARDENING = (
    "NoNewPrivileges=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "SystemCallArchitectures=native",
    # The memory server asks the kernel to allow it fewer calls once it serves, and is killed if it may not ask.
    "SystemCallFilter=@system-service seccomp",
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
    """Return the variables that name the directories of this installation."""
    values = {"STATE": paths.state, "RUNTIME": paths.runtime, "CACHE": paths.cache, "NATIVE": paths.native}
    return [f"Environment={_quoted(f'GHOSTBOX_{kind}_DIR={place.absolute()}')}" for kind, place in values.items()]


def _quoted(word: str) -> str:
    """Return a word in systemd's quotes, without specifiers or splitting."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("\n", "\\n")
    return f'"{plain}"'


def _notes(wanted: Service) -> tuple[str, ...]:
    name = getpass.getuser()
    if wanted.scope is Scope.SYSTEM or Path("/var/lib/systemd/linger", name).exists():
        return ()
    return (f"it starts when {name} logs in; to start it with the machine: sudo loginctl enable-linger {name}",)


def _check_systemd() -> None:
    if not _BOOTED.is_dir() or shutil.which("systemctl") is None:
        raise Refused(
            "systemd does not run on this machine: there are no services here",
            why="systemctl is not installed" if _BOOTED.is_dir() else f"{_BOOTED} does not exist",
            hint="let this machine's init system start `ghostbox memserver` or `ghostbox autostart run`",
        )


def _check_ours(file: Path) -> None:
    """Refuse a unit that GhostBox did not write. An empty file is what earlier versions left on a full disk."""
    if os.path.lexists(file) and (file.is_symlink() or not _is_ours(file)):
        raise Refused(f"{file} was not written by ghostbox", hint="move it away, or manage that service by hand")


def _is_ours(file: Path) -> bool:
    try:
        content = file.read_bytes()
    except OSError as err:
        raise GhostboxError(f"cannot read {file}: {err.strerror}", hint="move it away") from err
    return content == b"" or content.startswith(_MARK.encode())


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
