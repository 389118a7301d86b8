# SPDX-License-Identifier: MIT
"""Declare every key of the configuration: its type, its default, its meaning, and the command line flag that sets it.

The dataclasses hold typed values under names with the unit (``vm.memory_bytes``); the key that people write is shorter
(``vm.memory: 4GiB``). ``config.yaml`` at the top of the project is the same list for people; a test compares the two.
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
from ghostbox.config.tiering import CHOICES as TIERING_CHOICES
from ghostbox.config.tiering import How
from ghostbox.units import GIB, KIB, MIB, exact_bytes

__all__ = ["Config", "ExtraDisk", "Flag", "Key", "NetworkChoice", "PortForward", "SharedFolder", "keys", "settable"]


@dataclass(frozen=True)
class Flag:
    """Describes the flag of a key, as far as it differs from the key's own declaration.

    ``help`` is None where the key's meaning is also the help text. ``value`` is what the help shows for the value; None
    shows its type. ``spellings`` are empty where the flag has the key's own name (``vm.remote_memory``:
    ``--remote-memory``); they may include a negative flag (``--autostart/--no-autostart``).
    """

    help: str | None = None
    value: str | None = None
    spellings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Key:
    """Describes a key: dotted name, attribute that holds it, kind, default as people write it, meaning, and flag."""

    name: str
    section: str
    attribute: str
    kind: kinds.Kind
    default: Any
    doc: str
    flag: Flag | None = None

    @property
    def leaf(self) -> str:
        """Return the name without its section."""
        return self.name.partition(".")[2]

    @property
    def env(self) -> str:
        """Return the environment variable that sets this key."""
        return "GHOSTBOX_" + self.name.replace(".", "_").upper()

    @property
    def spellings(self) -> tuple[str, ...]:
        """Return the spellings of the flag, as click takes them."""
        own = () if self.flag is None else self.flag.spellings
        return own or ("--" + self.leaf.replace("_", "-"),)

    @property
    def spelling(self) -> str:
        """Return the longest spelling of the flag, for error messages; the key's name if it has no flag."""
        return self.name if self.flag is None else max(self.spellings, key=len).partition("/")[0]

    @property
    def flag_help(self) -> str:
        """Return the help text of the flag."""
        own = None if self.flag is None else self.flag.help
        return own or f"{self.doc[:1].upper()}{self.doc[1:]}."


def _key(name: str, kind: kinds.Kind, default: object, doc: str, flag: Flag | None = None) -> Any:
    return field(metadata={"name": name, "kind": kind, "default": default, "doc": doc, "flag": flag})


@dataclass(frozen=True)
class VmConfig:
    """Holds the keys of a VM's hardware and access."""

    name: str = _key(
        "name", kinds.VM_NAME, "ghostbox", "name of the VM that `up` makes if none is given", Flag("Name of the VM.")
    )
    memory_bytes: int = _key(
        "memory", kinds.Size(256 * MIB), "4GiB", "RAM on this machine", Flag("RAM on this machine for node 0.", "SIZE")
    )
    remote_memory_bytes: int = _key(
        "remote_memory", kinds.Size(64 * MIB), "8GiB", "RAM on the donors (node 1)", Flag(value="SIZE")
    )
    cpus: int = _key("cpus", kinds.Integer(1, 512), 2, "virtual processors", Flag(value="N"))
    disk_bytes: int = _key(
        "disk",
        kinds.Size(GIB),
        "20GiB",
        "size of the disk, allocated as it is written",
        Flag("Size of the disk.", "SIZE"),
    )
    disks: tuple[ExtraDisk, ...] = _key(
        "disks",
        kinds.Many(kinds.Disk()),
        [],
        "sizes of further disks, mounted at /mnt/disk2, /mnt/disk3 and so on",
        Flag("A further disk, at /mnt/disk2 and so on.", "SIZE", ("--add-disk",)),
    )
    shares: tuple[SharedFolder, ...] = _key(
        "shares",
        kinds.Many(kinds.Share()),
        [],
        "DIR[:ro] of this host that the guest sees below /mnt",
        Flag("A directory of this host, at /mnt/DIR.", "DIR[:ro]", ("--share",)),
    )
    image: str = _key(
        "image",
        kinds.Text("an image name"),
        "debian",
        "guest image (`ghostbox image list`)",
        Flag("Guest image; GhostBox's own is built if it is missing.", "NAME"),
    )
    user: str = _key("user", kinds.USER, "ghost", "login name in the guest", Flag(value="NAME"))
    ssh_key: Path | None = _key(
        "ssh_key", kinds.File(), None, "public key that may log in; null takes ~/.ssh/id_*.pub and a key per VM"
    )
    ports: tuple[PortForward, ...] = _key(
        "ports",
        kinds.Many(kinds.Port()),
        [],
        "HOST:GUEST ports forwarded from 127.0.0.1",
        Flag("Forward a port of 127.0.0.1.", "HOST:GUEST", ("-p", "--port")),
    )
    network: NetworkChoice = _key(
        "network",
        kinds.Network(),
        "user",
        "user (behind this host), bridge:NAME or libvirt:NAME (a machine of its own)",
        Flag("user (default), bridge:NAME or libvirt:NAME.", "NETWORK"),
    )
    host_access: bool = _key(
        "host_access",
        kinds.Boolean(),
        False,
        "let a guest with network `user` reach this host and the donors",
        Flag("Let the guest reach this host and the donors.", spellings=("--host-access/--no-host-access",)),
    )
    cloud_init: Path | None = _key(
        "cloud_init",
        kinds.File(),
        None,
        "cloud-init user-data to merge with GhostBox's (#cloud-config)",
        Flag("cloud-init user-data to merge with GhostBox's.", "FILE"),
    )
    boot_timeout_s: float = _key(
        "boot_timeout", kinds.Duration(1), "5m", "how long `up` waits for SSH, then for cloud-init"
    )
    autostart: bool = _key(
        "autostart",
        kinds.Boolean(),
        False,
        "start the VM when this machine starts",
        Flag("Start the VM when this machine starts.", spellings=("--autostart/--no-autostart",)),
    )


LEAST_CACHE_BYTES = 4 * MIB
"""The least ``pool.cache``."""


@dataclass(frozen=True)
class PoolConfig:
    """Holds the keys of the remote memory: its donors, its copies, its cache."""

    donors: tuple[str, ...] = _key(
        "donors",
        kinds.Many(kinds.HOST_PORT),
        [],
        "HOST[:PORT] of the donors' control API (port 10810)",
        Flag("A donor; may be given again.", "HOST[:PORT]", ("--donor",)),
    )
    cache_bytes: int = _key(
        "cache",
        kinds.Size(LEAST_CACHE_BYTES),
        "1GiB",
        "local memory for the warm part of the remote memory; not set: at most half of the remote memory",
        Flag("Local memory for the warm part of the remote memory.", "SIZE"),
    )
    extent_bytes: int = _key(
        "extent", kinds.PageMultiple(64 * KIB), "16MiB", "unit in which memory is spread over the donors"
    )
    replicas: int = _key(
        "replicas",
        kinds.Integer(1, 2),
        1,
        "copies of the remote memory, each on another machine",
        Flag("Copies of the remote memory on different machines, 1 or 2.", "N"),
    )
    allow_same_host: bool = _key(
        "allow_same_host",
        kinds.Boolean(),
        False,
        "let both copies lie on one machine (two donors of it)",
        Flag("Let both copies lie on one machine."),
    )
    backup: Path | None = _key(
        "backup",
        kinds.File(),
        None,
        "file or directory on a local disk for one more copy, written behind",
        Flag("One more copy in a file on a local disk, written behind.", "PATH"),
    )
    on_donor_loss: str = _key(
        "on_donor_loss",
        kinds.Text("what to do", choices=("wait", "pause", "poison")),
        "wait",
        "when no copy can be read: wait, pause the VM, or poison the pages after a while",
        Flag("What to do when no copy of a page can be read."),
    )
    # The upper limits are those of ghostbox-pager's options (qemu/pager/options.c).
    rebuild_after_s: float = _key(
        "rebuild_after", kinds.Duration(0, 1e6), "10s", "if a donor is away for longer, its copies are made elsewhere"
    )
    rebuild_rate_bytes: int = _key(
        "rebuild_rate", kinds.Size(), "256MiB", "copies are made at most at this many bytes a second, 0: no limit"
    )
    slow_s: float = _key(
        "slow", kinds.Duration(0.001, 60), "50ms", "a donor whose answers often take longer is used last, and reported"
    )
    insecure: bool = _key(
        "insecure",
        kinds.Boolean(),
        False,
        "use donors on other machines that are not paired with this host, without encryption or passwords",
        Flag("Use donors that are not paired, without encryption.", spellings=("--insecure/--no-insecure",)),
    )


@dataclass(frozen=True)
class PagerConfig:
    """Holds the keys of how the pager answers page faults."""

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
    """Holds the keys of the guest's kernel."""

    tiering: str = _key(
        "tiering",
        kinds.Choice(TIERING_CHOICES, on=How.DAMON.value, off=How.OFF.value),
        "auto",
        "what demotes cold pages to the remote node and promotes hot ones; auto: DAMON if the guest's kernel has it",
    )


@dataclass(frozen=True)
class LibvirtConfig:
    """Holds the key of the libvirt that runs the VM."""

    uri: str = _key("uri", kinds.Text("a libvirt URI", r"[a-z+]+:///?.*"), "qemu:///system", "libvirt to use")


@dataclass(frozen=True)
class MemserverConfig:
    """Holds the keys of what this machine lends as a donor."""

    name: str | None = _key(
        "name",
        kinds.Text("a name", optional=True),
        None,
        "name of this donor; null takes the host name",
        Flag("Name of this donor; several on one machine need one each."),
    )
    size: str = _key(
        "size",
        kinds.AMOUNT,
        "auto",
        "memory to lend: 16G, 50% of the RAM, or auto (available less reserve)",
        Flag("Memory to lend: 16G, 50% of the RAM, or auto (what is available, less the reserve)."),
    )
    reserve_bytes: int = _key("reserve", kinds.Size(), "2GiB", "available memory that is never lent", Flag())
    bind: str = _key(
        "bind",
        kinds.ADDRESS,
        "127.0.0.1",
        "address to listen on; on any but loopback paired hosts alone are served, unless `insecure`",
        Flag("Address to listen on; on any but loopback only paired hosts are served."),
    )
    port: int = _key("port", kinds.PORT, 10809, "port of the NBD server; 0 takes a free one", Flag())
    control_port: int = _key("control_port", kinds.PORT, 10810, "port of the control API; 0 takes a free one", Flag())
    machine: str | None = _key(
        "machine",
        kinds.Text("a name", optional=True),
        None,
        "name of the physical machine, if several virtual machines on it lend; null: each kernel is a machine",
        Flag("Name of the physical machine, if several virtual machines on it lend."),
    )
    drain_timeout_s: float | None = _key(
        "drain_timeout",
        kinds.Duration(optional=True),
        None,
        "on SIGTERM, how long to wait for leases to end before their memory is given up; null: without limit",
        Flag("How long to wait for leases to end before their memory is lost; none: no limit."),
    )
    remind_every_s: float = _key(
        "remind_every",
        kinds.Duration(0.1),
        "1m",
        "while an ending memserver waits for leases: how often it names their holders",
        Flag("While waiting for leases to end: how often to name their holders."),
    )
    drain_on_pressure_percent: float | None = _key(
        "drain_on_pressure",
        kinds.Percent(),
        None,
        "share of 10 s spent waiting for memory (PSI, some avg10) from which the donor drains by itself; null: never",
        Flag("Drain by itself from this share of time waiting for memory (20%), or never."),
    )
    pressure_file: Path = _key(
        "pressure_file",
        kinds.File(),
        "/proc/pressure/memory",
        "where the memory pressure is read: this file, or a cgroup's memory.pressure",
        Flag("File with the memory pressure: /proc/pressure/memory, or a cgroup's memory.pressure."),
    )
    lock_memory: bool = _key(
        "lock_memory",
        kinds.Boolean(),
        False,
        "never let the lent memory be swapped out (RLIMIT_MEMLOCK must allow it)",
        Flag("Never let lent memory be swapped out here."),
    )
    insecure: bool = _key(
        "insecure",
        kinds.Boolean(),
        False,
        "listen on the network without encryption or authentication",
        Flag("Listen on the network without encryption or passwords."),
    )
    secure: bool = _key(
        "secure",
        kinds.Boolean(),
        False,
        "serve paired hosts alone, over TLS, also on loopback (always so on other addresses, unless insecure)",
        Flag("Serve only paired hosts, over TLS, also on loopback."),
    )
    announce: bool = _key(
        "announce",
        kinds.Boolean(),
        True,
        "let hosts on the network find this donor (mDNS); never on loopback",
        Flag(
            "Let hosts on the network find this donor (mDNS); never on loopback.",
            spellings=("--announce/--no-announce",),
        ),
    )
    trust_network: bool = _key(
        "trust_network",
        kinds.Boolean(),
        False,
        "pair with every host that asks, without asking this donor's owner; only where nobody else is on the network",
        Flag("Pair with every host that asks; nobody is asked here."),
    )


@dataclass(frozen=True)
class ImageConfig:
    """Holds the keys of how the guest image is built."""

    suite: str = _key(
        "suite", kinds.Text("a Debian release", r"[a-z]+"), "trixie", "Debian release (kernel 6.12 or later)"
    )
    packages: tuple[str, ...] = _key(
        "packages",
        kinds.Many(kinds.Text("a package name", r"[a-z0-9][a-z0-9+.-]+")),
        [],
        "packages to install besides GhostBox's own choice",
    )


@dataclass(frozen=True)
class Config:
    """Holds a whole configuration. ``origins`` names where each key's value came from.

    ``given`` are the keys that the command line itself sets, by a flag or in the file of ``-c``: only these change an
    existing VM. Settings of this machine (the environment, ./ghostbox.yaml, the user's and the system's file) are used
    when a VM is made. ``local_bytes`` is `LOCAL`, if the command line gave that and neither memory nor cache.
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
    local_bytes: int | None = field(default=None, compare=False)

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
        """Return the value of key ``name`` as people write it, with its unit; the key's kind reads it back."""
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
        """Return the configuration with other typed ``values`` (by dotted key), which came from ``origins``."""
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
            found[name] = Key(name, section, entry.name, meta["kind"], meta["default"], meta["doc"], meta["flag"])
    return found


LOCAL = Key(
    "vm.local",
    "vm",
    "local_bytes",
    kinds.Size(384 * MIB),
    None,
    "RAM on this machine for memory and cache together",
    Flag("RAM on this machine: memory and cache together.", "SIZE"),
)
"""A short way to write ``vm.memory`` and ``pool.cache``, which together are the RAM that a VM has of this machine."""


@cache
def settable() -> Mapping[str, Key]:
    """Return what files, flags and the environment can set, by dotted name: every key, and `LOCAL`."""
    return {**keys(), LOCAL.name: LOCAL}
