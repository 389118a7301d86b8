# SPDX-License-Identifier: MIT
"""Where GhostBox keeps things: state, sockets, images, and its own C programs.

As root: ``/var/lib/ghostbox``, ``/run/ghostbox``, ``/var/cache/ghostbox``. As a user: the XDG directories.
``GHOSTBOX_STATE_DIR``, ``GHOSTBOX_RUNTIME_DIR``, ``GHOSTBOX_CACHE_DIR`` and ``GHOSTBOX_NATIVE_DIR`` override each.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from ghostbox.errors import ProgramError


@dataclass(frozen=True)
class VmPaths:
    """The files of one VM. ``state`` survives a reboot of the host, ``runtime`` does not."""

    state: Path
    runtime: Path

    @property
    def record(self) -> Path:
        """What was created for this VM, written before it is created."""
        return self.state / "vm.json"

    @property
    def definition(self) -> Path:
        """What the VM is to be, as its user set it: YAML (`config.definition`)."""
        return self.state / "definition.yaml"

    @property
    def lock(self) -> Path:
        """Held (flock) by every command that changes the VM."""
        return self.state / "lock"

    @property
    def disk(self) -> Path:
        """The overlay; its backing file is the image."""
        return self.state / "disk.qcow2"

    def more_disk(self, number: int) -> Path:
        """The VM's second disk (2), its third (3) and so on."""
        return self.state / f"disk{number}.qcow2"

    @property
    def base(self) -> Path:
        """What the disk of an imported VM stands on: an image of its own."""
        return self.state / "base"

    @property
    def seed(self) -> Path:
        """cloud-init NoCloud seed, an ISO image."""
        return self.state / "seed.iso"

    @property
    def network_rules(self) -> Path:
        """Addresses and ports that the guest may not reach; the shim in QEMU reads it."""
        return self.state / "network-rules"

    @property
    def console_log(self) -> Path:
        """What the guest wrote to its serial console."""
        return self.state / "console.log"

    @property
    def pager_log(self) -> Path:
        """Log of ghostbox-pager."""
        return self.state / "pager.log"

    @property
    def supervisor_log(self) -> Path:
        """What the supervisor says."""
        return self.state / "supervisor.log"

    @property
    def supervisor_lock(self) -> Path:
        """Held (flock) by the VM's supervisor; its path is on the supervisor's command line."""
        return self.state / "supervisor.lock"

    @property
    def former_supervisor_lock(self) -> Path:
        """What versions before 2026-11-29 held in its place. It went with the runtime directory."""
        return self.runtime / "supervisor.lock"

    @property
    def events(self) -> Path:
        """What befell the VM's memory: a JSON object a line."""
        return self.state / "events.jsonl"

    @property
    def backup_socket(self) -> Path:
        """Where the copy on disk is served."""
        return self.runtime / "backup.sock"

    @property
    def backup_log(self) -> Path:
        """What the server of the copy on disk says."""
        return self.state / "backup.log"

    @property
    def client_key(self) -> Path:
        """SSH private key for our own checks of the guest."""
        return self.state / "id_ed25519"

    @property
    def host_key(self) -> Path:
        """The guest's SSH host key, made by us and pinned in ``known_hosts``."""
        return self.state / "ssh_host_ed25519_key"

    @property
    def known_hosts(self) -> Path:
        """The pinned host key in OpenSSH's format."""
        return self.state / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        """An OpenSSH configuration to ``Include``."""
        return self.state / "ssh_config"

    @property
    def pager_socket(self) -> Path:
        """Where the shim finds the pager."""
        return self.runtime / "pager.sock"

    @property
    def pager_control(self) -> Path:
        """Control socket of the pager."""
        return self.runtime / "pager-control.sock"

    @property
    def pager_state(self) -> Path:
        """The page map, from which another pager can go on. It must lie on a tmpfs, and not survive a reboot."""
        return self.runtime / "pager.state"


@dataclass(frozen=True)
class Paths:
    """All directories of one installation."""

    state: Path
    runtime: Path
    cache: Path
    config: Path
    native: Path

    @property
    def images(self) -> Path:
        """Guest images, one directory each."""
        return self.cache / "images"

    def program(self, name: str) -> Path:
        """One of our programs that is about to be run.

        Raises:
            ProgramError: it is not installed.
        """
        found = self.native / name
        if not found.exists():
            raise ProgramError(f"{found} is not there", hint="install GhostBox again: ./bootstrap install")
        return found

    @property
    def memserver_program(self) -> Path:
        """The C memory server."""
        return self.native / "ghostbox-memserver"

    @property
    def pager_program(self) -> Path:
        """The C pager."""
        return self.native / "ghostbox-pager"

    @property
    def shim_library(self) -> Path:
        """The library that is preloaded into QEMU."""
        return self.native / "libghostbox-shim.so"

    def vm(self, name: str) -> VmPaths:
        """Return the paths of the VM called ``name``."""
        return VmPaths(self.state / "vms" / name, self.runtime / "vms" / name)

    def memserver_state(self, name: str) -> Path:
        """Directory of the memserver called ``name``: its lease records and log."""
        return self.state / "memservers" / name

    def memserver_runtime(self, name: str) -> Path:
        """Directory of the memserver's sockets."""
        return self.runtime / "memservers" / name


def find() -> Paths:
    """Return the directories for the calling user and environment."""
    package = Path(__file__).resolve().parent
    if os.geteuid() == 0:
        defaults = [Path("/var/lib/ghostbox"), Path("/run/ghostbox"), Path("/var/cache/ghostbox")]
        config = Path("/etc/ghostbox/config.yaml")
    else:
        dirs = platformdirs.PlatformDirs("ghostbox")
        state_dir = Path(dirs.user_state_dir)
        # Without a login session there is no runtime directory; platformdirs would take one in /tmp.
        runtime_dir = Path(dirs.user_runtime_dir) if "XDG_RUNTIME_DIR" in os.environ else state_dir / "run"
        defaults = [state_dir, runtime_dir, Path(dirs.user_cache_dir)]
        config = Path(dirs.user_config_dir) / "config.yaml"
    state, runtime, cache = (
        Path(os.environ.get(f"GHOSTBOX_{kind}_DIR", default))
        for kind, default in zip(("STATE", "RUNTIME", "CACHE"), defaults, strict=True)
    )
    native = Path(os.environ.get("GHOSTBOX_NATIVE_DIR", package / "native"))
    return Paths(state, runtime, cache, config, native)


_LOGIN_VARIABLES = (
    "HOME",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
    "XDG_DATA_HOME",
    "XDG_STATE_HOME",
)


def login_environment() -> dict[str, str]:
    """Return the variables by which a session libvirt, and we, find what belongs to this login."""
    return {
        name: value for name, value in os.environ.items() if name in _LOGIN_VARIABLES or name.startswith("LIBVIRT_")
    }


def data_file(name: str) -> Path:
    """Return a file shipped with the package (``config.yaml``, ``images/…``), installed or in the source tree."""
    package = Path(__file__).resolve().parent
    installed = package / "data" / name
    return installed if installed.exists() else package.parent / name
