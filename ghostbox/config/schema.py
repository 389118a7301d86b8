# SPDX-License-Identifier: MIT
"""Every key of the configuration: its type, its default and what it means.

The dataclasses hold typed values under names that carry the unit (``vm.memory_bytes``); the key that people write is
shorter (``vm.memory: 4GiB``). ``config.yaml`` at the top of the project is the same list for people; a test proves
that the two agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from ghostbox.config import kinds
from ghostbox.config.kinds import ExtraDisk, NetworkChoice, PortForward, SharedFolder
from ghostbox.tiering import CHOICES as TIERING_CHOICES
from ghostbox.tiering import How
from ghostbox.units import GIB, KIB, MIB, exact_bytes

__all__ = ["Config", "ExtraDisk", "Key", "NetworkChoice", "PortForward", "SharedFolder", "keys"]


@dataclass(frozen=True)
class Key:
    """One key: dotted name, attribute that holds it, kind, default as people write it, meaning."""

    name: str
    section: str
    attribute: str
    kind: kinds.Kind
    default: Any
    doc: str

    @property
    def env(self) -> str:
        """The environment variable that sets this key."""
        return "GHOSTBOX_" + self.name.replace(".", "_").upper()


def _key(name: str, kind: kinds.Kind, default: object, doc: str) -> Any:
    return field(metadata={"name": name, "kind": kind, "default": default, "doc": doc})


@dataclass(frozen=True)
class VmConfig:
    """What a VM is made of."""

    name: str = _key("name", kinds.VM_NAME, "ghostbox", "name of the VM that `up` makes if none is given")
    memory_bytes: int = _key("memory", kinds.Size(256 * MIB), "4GiB", "RAM on this machine")
    remote_memory_bytes: int = _key("remote_memory", kinds.Size(64 * MIB), "8GiB", "RAM on the donors (node 1)")
    cpus: int = _key("cpus", kinds.Integer(1, 512), 2, "virtual processors")
    disk_bytes: int = _key("disk", kinds.Size(GIB), "20GiB", "size of the disk, allocated as it is written")
    disks: tuple[ExtraDisk, ...] = _key(
        "disks", kinds.Many(kinds.Disk()), [], "sizes of further disks, mounted at /mnt/disk2, /mnt/disk3 and so on"
    )
    shares: tuple[SharedFolder, ...] = _key(
        "shares", kinds.Many(kinds.Share()), [], "DIR[:ro] of this host that the guest sees below /mnt"
    )
    image: str = _key("image", kinds.Text("an image name"), "debian", "guest image (`ghostbox image list`)")
    user: str = _key("user", kinds.USER, "ghost", "login name in the guest")
    ssh_key: Path | None = _key(
        "ssh_key", kinds.File(), None, "public key to let in; null takes ~/.ssh/id_*.pub and a key per VM"
    )
    ports: tuple[PortForward, ...] = _key(
        "ports", kinds.Many(kinds.Port()), [], "HOST:GUEST ports forwarded from 127.0.0.1"
    )
    network: NetworkChoice = _key(
        "network",
        kinds.Network(),
        "user",
        "user (behind this host), bridge:NAME or libvirt:NAME (a machine of its own)",
    )
    host_access: bool = _key(
        "host_access", kinds.Boolean(), False, "let a guest with network `user` reach this host and the donors"
    )
    cloud_init: Path | None = _key(
        "cloud_init", kinds.File(), None, "cloud-init user-data to merge with ours (#cloud-config)"
    )
    boot_timeout_s: float = _key(
        "boot_timeout", kinds.Duration(1), "5m", "how long `up` waits for SSH, then for cloud-init"
    )
    autostart: bool = _key("autostart", kinds.Boolean(), False, "start the VM when this machine starts")


@dataclass(frozen=True)
class PoolConfig:
    """Where remote memory comes from and how much of it is kept near."""

    donors: tuple[str, ...] = _key(
        "donors", kinds.Many(kinds.HOST_PORT), [], "HOST[:PORT] of the donors' control API (port 10810)"
    )
    cache_bytes: int = _key(
        "cache",
        kinds.Size(4 * MIB),
        "1GiB",
        "local memory for the warm part of the remote memory; not set: at most half of that",
    )
    extent_bytes: int = _key(
        "extent", kinds.PageMultiple(64 * KIB), "16MiB", "unit in which memory is spread over the donors"
    )
    replicas: int = _key("replicas", kinds.Integer(1, 2), 1, "copies of the remote memory, each on another machine")
    allow_same_host: bool = _key(
        "allow_same_host", kinds.Boolean(), False, "let both copies lie on one machine (two donors of it)"
    )
    backup: Path | None = _key(
        "backup", kinds.File(), None, "file or directory on a local disk for one more copy, written behind"
    )
    on_donor_loss: str = _key(
        "on_donor_loss",
        kinds.Text("what to do", choices=("wait", "pause", "poison")),
        "wait",
        "when no copy can be read: wait, pause the VM, or poison the pages after a while",
    )
    # The longest times are those that ghostbox-pager takes (qemu/pager/options.c).
    rebuild_after_s: float = _key(
        "rebuild_after", kinds.Duration(0, 1e6), "10s", "a donor that is away for longer has its copies made elsewhere"
    )
    rebuild_rate_bytes: int = _key(
        "rebuild_rate", kinds.Size(), "256MiB", "copies are made at most at this many bytes a second, 0: no limit"
    )
    slow_s: float = _key(
        "slow", kinds.Duration(0.001, 60), "50ms", "a donor whose answers often take longer is used last and named"
    )


@dataclass(frozen=True)
class PagerConfig:
    """How page faults are answered."""

    poll_us: int = _key(
        "poll_us", kinds.Integer(0, 1_000_000), 50, "microseconds of polling before sleeping, 0 never polls"
    )
    readahead_bytes: int = _key(
        "readahead", kinds.PageMultiple(4 * KIB), "256KiB", "largest readahead window; 4KiB turns it off"
    )
    log_level: str = _key(
        "log_level",
        kinds.Text("a log level", choices=("error", "warn", "info", "debug")),
        "info",
        "error, warn, info or debug",
    )


@dataclass(frozen=True)
class GuestConfig:
    """What the guest's kernel is told to do."""

    tiering: str = _key(
        "tiering",
        kinds.Choice(TIERING_CHOICES, on=How.DAMON.value, off=How.OFF.value),
        "auto",
        "what demotes cold pages to the remote node and promotes hot ones; auto: DAMON if the guest's kernel has it",
    )


@dataclass(frozen=True)
class LibvirtConfig:
    """Which libvirt runs the VM."""

    uri: str = _key("uri", kinds.Text("a libvirt URI", r"[a-z+]+:///?.*"), "qemu:///system", "libvirt to use")


@dataclass(frozen=True)
class MemserverConfig:
    """What this machine lends as a donor."""

    name: str | None = _key(
        "name", kinds.Text("a name", optional=True), None, "name of this donor; null takes the host name"
    )
    size: str = _key(
        "size", kinds.AMOUNT, "auto", "memory to lend: 16G, 50% of the RAM, or auto (available less reserve)"
    )
    reserve_bytes: int = _key("reserve", kinds.Size(), "2GiB", "available memory that is never lent")
    bind: str = _key("bind", kinds.ADDRESS, "127.0.0.1", "address to listen on; others need `insecure`")
    port: int = _key("port", kinds.PORT, 10809, "port of the NBD server, 0 picks one")
    control_port: int = _key("control_port", kinds.PORT, 10810, "port of the control API, 0 picks one")
    machine: str | None = _key(
        "machine",
        kinds.Text("a name", optional=True),
        None,
        "name of the physical machine, if it has several virtual ones that lend; null: each kernel is a machine",
    )
    drain_timeout_s: float | None = _key(
        "drain_timeout",
        kinds.Duration(optional=True),
        None,
        "on SIGTERM, how long to wait for leases to end before their memory is given up; null: without limit",
    )
    remind_every_s: float = _key(
        "remind_every", kinds.Duration(0.1), "1m", "how often it says, while it waits, who holds what"
    )
    drain_on_pressure_percent: float | None = _key(
        "drain_on_pressure",
        kinds.Percent(),
        None,
        "share of 10 s spent waiting for memory (PSI, some avg10) from which it drains by itself; null never",
    )
    pressure_file: Path = _key(
        "pressure_file", kinds.File(), "/proc/pressure/memory", "where that is read; a cgroup's memory.pressure fits"
    )
    insecure: bool = _key(
        "insecure", kinds.Boolean(), False, "listen on the network without encryption or authentication"
    )


@dataclass(frozen=True)
class ImageConfig:
    """How the guest image is built."""

    suite: str = _key(
        "suite", kinds.Text("a Debian release", r"[a-z]+"), "trixie", "Debian release (kernel 6.12 or later)"
    )
    packages: tuple[str, ...] = _key(
        "packages",
        kinds.Many(kinds.Text("a package name", r"[a-z0-9][a-z0-9+.-]+")),
        [],
        "packages to install besides ours",
    )


@dataclass(frozen=True)
class Config:
    """A whole configuration. ``origins`` names where each key's value came from.

    ``given`` are the keys that the command line itself sets, by a flag or in the file of ``-c``: those alone change a
    VM that is defined already. What lies around (the environment, ./ghostbox.yaml, the user's and the system's file)
    counts when a VM is made.
    """

    vm: VmConfig
    pool: PoolConfig
    pager: PagerConfig
    guest: GuestConfig
    libvirt: LibvirtConfig
    memserver: MemserverConfig
    image: ImageConfig
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    given: frozenset[str] = field(default=frozenset(), compare=False)

    def origin(self, name: str) -> str:
        """Return where the value of key ``name`` (``"vm.memory"``) came from.

        ``"default"``, ``"FILE:LINE"``, ``"environment NAME"`` or ``"flag"``.
        """
        return self.origins[name]

    def value(self, name: str) -> Any:
        """Return the typed value of key ``name`` (``"vm.memory"``)."""
        key = keys()[name]
        return getattr(getattr(self, key.section), key.attribute)

    def written(self, name: str) -> Any:
        """Return the value of key ``name`` as people write it, with its unit; its kind reads it back unchanged."""
        key, value = keys()[name], self.value(name)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, tuple):
            return [str(item) for item in value]
        if isinstance(value, Path) or dataclasses.is_dataclass(value):
            return str(value)
        units_of = {"_bytes": exact_bytes, "_s": "{:.10g}s".format, "_percent": "{:.10g}%".format}
        for ending, write in units_of.items():
            if key.attribute.endswith(ending):
                return write(value)
        return value

    def replaced(self, values: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
        """Return the configuration with other typed ``values`` (by dotted key) that came from ``origins``."""
        by_section: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            key = keys()[name]
            by_section.setdefault(key.section, {})[key.attribute] = value
        sections = {
            section: dataclasses.replace(getattr(self, section), **changed) for section, changed in by_section.items()
        }
        return dataclasses.replace(self, **sections, origins={**self.origins, **origins})


SECTIONS: Mapping[str, type] = {
    "vm": VmConfig,
    "pool": PoolConfig,
    "pager": PagerConfig,
    "guest": GuestConfig,
    "libvirt": LibvirtConfig,
    "memserver": MemserverConfig,
    "image": ImageConfig,
}


@cache
def keys() -> Mapping[str, Key]:
    """Return every key by its dotted name, in the order of the documentation."""
    found: dict[str, Key] = {}
    for section, cls in SECTIONS.items():
        for entry in dataclasses.fields(cls):
            meta = entry.metadata
            name = f"{section}.{meta['name']}"
            found[name] = Key(name, section, entry.name, meta["kind"], meta["default"], meta["doc"])
    return found
