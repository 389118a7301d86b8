# SPDX-License-Identifier: MIT
"""Find where GhostBox keeps its files: state, sockets, images, and its own C programs.

For root these are ``/var/lib/ghostbox``, ``/run/ghostbox`` and ``/var/cache/ghostbox``, for other users the XDG
directories. ``GHOSTBOX_STATE_DIR``, ``GHOSTBOX_RUNTIME_DIR``, ``GHOSTBOX_CACHE_DIR`` and ``GHOSTBOX_NATIVE_DIR``
override them, if they are not empty.
"""

from __future__ import annotations

import os
import pwd
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import platformdirs

from ghostbox.errors import ConfigError, ProgramError

_ROOTS = {
    "STATE": Path("/var/lib/ghostbox"),
    "RUNTIME": Path("/run/ghostbox"),
    "CACHE": Path("/var/cache/ghostbox"),
}
_BREAKS = frozenset({"Cc", "Zl", "Zp"})  # categories of Unicode: control characters, line and paragraph separators


@dataclass(frozen=True)
class VmPaths:
    """Holds the files of one VM. ``state`` survives a reboot of the host, ``runtime`` does not."""

    state: Path
    runtime: Path

    @property
    def record(self) -> Path:
        """Return the record: what may exist of this VM, written before it is made."""
        return self.state / "vm.json"

    @property
    def definition(self) -> Path:
        """Return the definition: what the VM is to be, as YAML (`config.definition`)."""
        return self.state / "definition.yaml"

    @property
    def lock(self) -> Path:
        """Return the file that every command which changes the VM holds locked (flock)."""
        return self.state / "lock"

    @property
    def disk(self) -> Path:
        """Return the first disk, an overlay whose backing file is the image."""
        return self.state / "disk.qcow2"

    def more_disk(self, number: int) -> Path:
        """Return the VM's second disk (2), its third disk (3) and so on."""
        return self.state / f"disk{number}.qcow2"

    @property
    def base(self) -> Path:
        """Return the directory with the base image of an imported VM's disk."""
        return self.state / "base"

    @property
    def seed(self) -> Path:
        """Return the cloud-init NoCloud seed, an ISO image."""
        return self.state / "seed.iso"

    @property
    def network_rules(self) -> Path:
        """Return the file with addresses and ports that the guest may not reach; the shim in QEMU reads it."""
        return self.state / "network-rules"

    @property
    def lease_keys(self) -> Path:
        """Return the file with the keys of the VM's leases; the pager reads it."""
        return self.state / "lease-keys"

    @property
    def console_log(self) -> Path:
        """Return the log of the guest's serial console."""
        return self.state / "console.log"

    @property
    def pager_log(self) -> Path:
        """Return the log of ghostbox-pager."""
        return self.state / "pager.log"

    @property
    def supervisor_log(self) -> Path:
        """Return the supervisor's log."""
        return self.state / "supervisor.log"

    @property
    def supervisor_lock(self) -> Path:
        """Return the file that the supervisor holds locked (flock); its path is on the supervisor's command line."""
        return self.state / "supervisor.lock"

    @property
    def former_supervisor_lock(self) -> Path:
        """Return the lock of versions before 2026-11-29, which was lost with the runtime directory."""
        return self.runtime / "supervisor.lock"

    @property
    def events(self) -> Path:
        """Return the events of the VM's memory: a JSON object a line."""
        return self.state / "events.jsonl"

    @property
    def backup_socket(self) -> Path:
        """Return the socket at which the copy on disk is served."""
        return self.runtime / "backup.sock"

    @property
    def backup_log(self) -> Path:
        """Return the log of the server of the copy on disk."""
        return self.state / "backup.log"

    @property
    def client_key(self) -> Path:
        """Return the SSH private key by which GhostBox logs in to the guest."""
        return self.state / "id_ed25519"

    @property
    def host_key(self) -> Path:
        """Return the guest's SSH host key, which GhostBox makes and pins in ``known_hosts``."""
        return self.state / "ssh_host_ed25519_key"

    @property
    def known_hosts(self) -> Path:
        """Return the file with the pinned host key in OpenSSH's format."""
        return self.state / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """Return an OpenSSH configuration to ``Include``."""
        return self.state / "ssh_config"

    @property
    def answered(self) -> Path:
        """Return the file that is made when the guest has taken a login; it holds the VM's start time."""
        return self.runtime / "answered"

    @property
    def pager_socket(self) -> Path:
        """Return the socket at which the shim finds the pager."""
        return self.runtime / "pager.sock"

    @property
    def pager_control(self) -> Path:
        """Return the pager's control socket."""
        return self.runtime / "pager-control.sock"

    @property
    def pager_state(self) -> Path:
        """Return the page map, from which another pager can resume. It must be on a tmpfs and not survive a reboot."""
        return self.runtime / "pager.state"


@dataclass(frozen=True)
class Paths:
    """Holds all directories of one installation."""

    state: Path
    runtime: Path
    cache: Path
    config: Path
    native: Path

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variables with which a GhostBox command uses these directories."""
        return {
            "GHOSTBOX_STATE_DIR": str(self.state),
            "GHOSTBOX_RUNTIME_DIR": str(self.runtime),
            "GHOSTBOX_CACHE_DIR": str(self.cache),
            "GHOSTBOX_NATIVE_DIR": str(self.native),
        }

    @property
    def images(self) -> Path:
        """Return the directory of the guest images, which has a directory for each image."""
        return self.cache / "images"

    def program(self, name: str) -> Path:
        """Return a GhostBox program that is about to be run.

        Raises:
            ProgramError: the program is not installed.
        """
        found = self.native / name
        if not found.exists():
            raise ProgramError(f"{found} does not exist", hint="install GhostBox again: ./bootstrap install")
        return found

    @property
    def memserver_program(self) -> Path:
        """Return the memory server, a C program."""
        return self.native / "ghostbox-memserver"

    @property
    def pager_program(self) -> Path:
        """Return the pager, a C program."""
        return self.native / "ghostbox-pager"

    @property
    def shim_library(self) -> Path:
        """Return the library that is preloaded into QEMU."""
        return self.native / "libghostbox-shim.so"

    def vm(self, name: str) -> VmPaths:
        """Return the paths of the VM called ``name``."""
        return VmPaths(self.state / "vms" / name, self.runtime / "vms" / name)

    def memserver_state(self, name: str) -> Path:
        """Return the directory of the memserver called ``name``: its lease records and log."""
        return self.state / "memservers" / name

    def memserver_runtime(self, name: str) -> Path:
        """Return the directory of the memserver's sockets."""
        return self.runtime / "memservers" / name


def find() -> Paths:
    """Return the directories for the calling user and environment.

    Raises:
        ConfigError: a directory cannot be used: its path is relative, ssh or QEMU cannot take its name, or it belongs
            to another user's session.
    """
    package = Path(__file__).resolve().parent
    native = _chosen("NATIVE") or package / "native"
    places = {kind: _chosen(kind) for kind in ("STATE", "RUNTIME", "CACHE")}
    is_root = os.geteuid() == 0
    if None in places.values():
        defaults = _ROOTS if is_root else _users_own()
        places = {kind: place or defaults[kind] for kind, place in places.items()}
    state, runtime, cache = (place for place in places.values() if place is not None)
    config = None if is_root else user_config()
    found = Paths(state, runtime, cache, config or Path("/etc/ghostbox/config.yaml"), native)
    for what in ("state", "runtime", "cache", "native"):
        _check_name(getattr(found, what), what)
    return found


def _chosen(kind: str) -> Path | None:
    """Return the value of ``GHOSTBOX_<kind>_DIR``; an empty value counts as not set."""
    variable = f"GHOSTBOX_{kind}_DIR"
    text = os.environ.get(variable, "")
    if text and not text.startswith("/"):
        raise ConfigError(
            f"{variable} is '{text}', which does not begin at the root (/)",
            why="a command that is run in another directory would look elsewhere for the VMs",
            hint=f"{variable}={os.path.abspath(text)}",  # noqa: PTH100 - the place need not exist
        )
    return Path(text) if text else None


def _users_own() -> dict[str, Path]:
    """Return the XDG directories of a user who is not root."""
    if home_directory() is None:
        raise ConfigError(
            "there is no home directory to keep VMs in",
            why=f"HOME is not set, and the system knows no user {os.geteuid()}",
            hint="set HOME, or GHOSTBOX_STATE_DIR, GHOSTBOX_RUNTIME_DIR and GHOSTBOX_CACHE_DIR",
        )
    dirs = platformdirs.PlatformDirs("ghostbox")
    state = Path(dirs.user_state_dir)
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    if session.startswith("/"):
        _check_session(Path(session))
        runtime = Path(session) / "ghostbox"
    else:
        # Without a login session there is no runtime directory; platformdirs would choose a directory in /tmp.
        runtime = state / "run"
    return {"STATE": state, "RUNTIME": runtime, "CACHE": Path(dirs.user_cache_dir)}


def user_config() -> Path | None:
    """Return the path of the calling user's configuration; None for a user without a home directory."""
    try:
        place = platformdirs.user_config_dir("ghostbox")
    except RuntimeError:
        return None
    return Path(place) / "config.yaml" if place.startswith("/") else None


def _check_session(directory: Path) -> None:
    """Refuse the runtime directory of another user's session, which ``su`` and ``sudo -E`` pass on."""
    try:
        owner = directory.stat().st_uid
    except OSError:
        return
    if owner != os.geteuid():
        raise ConfigError(
            f"XDG_RUNTIME_DIR is {directory}, which belongs to another user ({_user(owner)})",
            why=f"this command runs as {_user(os.geteuid())}, for whom sockets cannot be made there",
            hint="log in as that user (sudo -i -u USER, machinectl shell USER@), or: unset XDG_RUNTIME_DIR",
        )


def home_directory() -> Path | None:
    """Return the home directory; None for a service without HOME whose user the system does not know.

    An empty HOME counts as not set (`ghostbox.cli.main` removes it); otherwise ``~`` would be the root directory.
    """
    home = os.environ.get("HOME")
    if not home:
        try:
            home = pwd.getpwuid(os.geteuid()).pw_dir
        except KeyError:
            return None
    return Path(home) if home.startswith("/") else None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _check_name(directory: Path, what: str) -> None:
    """Refuse a directory whose name libvirt or ssh cannot take, with the reason."""
    text = str(directory)
    why = None
    if any(unicodedata.category(char) in _BREAKS for char in text):
        why = "it has a control character in its name, which libvirt and ssh cannot take"
    elif "${" in text:
        why = "it has '${' in its name, which ssh takes for a variable everywhere"
    elif os.fsencode(text) != text.encode(errors="replace"):
        why = "its name is not UTF-8, or this command does not run in a UTF-8 locale; libvirt takes names as UTF-8"
    if why is not None:
        variable = f"GHOSTBOX_{what.upper()}_DIR"
        hint = f"set {variable} to another directory" if what != "native" else "install GhostBox elsewhere"
        raise ConfigError(f"the {what} directory cannot be used: {directory}", why=why, hint=hint)


def make_directory(directory: Path, mode: int = 0o711) -> None:
    """Make a directory and its missing parents, with modes that do not depend on the umask.

    QEMU's user must be able to pass through the parents (not to list them), whichever command makes them first: a
    donor's, too.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        path.chmod(mode if path == directory else 0o711)


def open_private(path: Path, *, append: bool = False) -> BinaryIO:
    """Open a file for writing; a new file is for its owner alone (0600), whatever the umask is.

    Args:
        path: the file; its content is removed, or appended to.
        append: whether to append.

    Raises:
        OSError: the file cannot be opened.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_APPEND if append else os.O_TRUNC)
    return os.fdopen(os.open(path, flags, 0o600), "ab" if append else "wb")


_LOGIN_VARIABLES = (
    "HOME",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
)


def login_environment() -> dict[str, str]:
    """Return the variables by which a session libvirt, and GhostBox, find what belongs to this login."""
    return {
        name: value for name, value in os.environ.items() if name in _LOGIN_VARIABLES or name.startswith("LIBVIRT_")
    }


def data_file(name: str) -> Path:
    """Return a file of the package (``config.yaml``, ``images/…``), installed or in the source tree."""
    package = Path(__file__).resolve().parent
    installed = package / "data" / name
    return installed if installed.exists() else package.parent / name
