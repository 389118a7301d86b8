# SPDX-License-Identifier: MIT
"""Work out what ``up`` will do, before anything is done. All is pure: facts and configuration in, a plan out."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ghostbox.config import Config, ExtraDisk, NetworkChoice, PortForward, SharedFolder
from ghostbox.errors import Refused, UsageError
from ghostbox.paths import Paths, VmPaths
from ghostbox.plan import workloads
from ghostbox.plan.placement import Held, Offer, Share, distinct, missing, split
from ghostbox.plan.prediction import Forecast, HostCosts, Link, predict
from ghostbox.plan.tiering import Tiering, choose
from ghostbox.plan.workloads import STRUCT_PAGE_SHARE, Expected
from ghostbox.units import MEMORY_BLOCK_BYTES, MIB, PAGE_BYTES, format_bytes

_KERNEL_SLACK_BYTES = 32 * MIB
_MOST_DISKS = 8
_MIN_REST_BYTES = 128 * MIB
_AT_BOOT_EXTRA_BYTES = 4 * MIB
_PAGE_TABLE_SHARE = 512  # a page table of 4 KiB maps 2 MiB
_NODE1_SLACK_BYTES = 8 * MIB
_KERNEL_KEEPS_BYTES = 16 * MIB
_MOST_WATERMARK_SCALE = 500


class Virt(enum.StrEnum):
    """Names how the processors of the VM run."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True)
class BootPlan:
    """Says how the VM boots: a kernel directly, or (``kernel`` is None) the firmware from the disk."""

    kernel: Path | None = None
    initrd: Path | None = None
    kernel_args: str = ""


@dataclass(frozen=True)
class ImagePlan:
    """Describes the guest image. ``to_build``: it does not exist yet, and ``up`` builds it first.

    ``suite`` and ``packages`` are then used besides the recipe that comes with GhostBox. ``outdated``: GhostBox built
    the image, and would now build a different one.
    """

    name: str
    disk: Path
    boot: BootPlan
    virtual_bytes: int = 0
    to_build: bool = False
    suite: str = ""
    packages: tuple[str, ...] = ()
    outdated: bool = False


@dataclass(frozen=True)
class NetworkPlan:
    """Says how the guest is connected.

    In the network ``user``, ports of 127.0.0.1 lead into the guest (``ssh_port``, ``forwards``), and ``host_access``
    says whether the guest may reach this host and the donors. In any other network the guest has an address of its own;
    ``filter`` names the libvirt filter that keeps it from the donors, None if libvirt cannot filter or ``host_access``
    is set.
    """

    mac: str
    ssh_port: int
    forwards: tuple[PortForward, ...] = ()
    choice: NetworkChoice = NetworkChoice()
    host_access: bool = False
    filter: str | None = None

    @property
    def is_guarded(self) -> bool:
        """Tell whether the shim keeps the guest from this host and the donors."""
        return self.choice.kind == "user" and not self.host_access


@dataclass(frozen=True)
class PagerPlan:
    """Holds the settings of the pager.

    ``pool_bytes`` is what the VM may use of the donors' memory (0: all of it). ``on_donor_loss`` is ``wait``, ``pause``
    or ``poison``: the pager knows the first and the last, the supervisor does the pausing. ``lost_pages`` is ``poison``
    (a program that touches a lost page gets SIGBUS) or ``wait``, for QEMU without KVM, which cannot pass the SIGBUS on
    to its guest.
    """

    cache_bytes: int
    extent_bytes: int
    readahead_bytes: int
    poll_us: int
    log_level: str
    pool_bytes: int = 0
    replicas: int = 1
    allow_same_host: bool = False
    on_donor_loss: str = "wait"
    rebuild_after_s: float = 10.0
    rebuild_rate_bytes: int = 256 * MIB
    slow_us: int = 50_000
    lost_pages: str = "poison"


@dataclass(frozen=True)
class GuestPlan:
    """Says what cloud-init sets up in the guest."""

    user: str
    ssh_key: Path | None
    cloud_init: Path | None
    tiering: Tiering


@dataclass(frozen=True)
class HostFacts:
    """Holds what was found out about this host and this VM before planning.

    ``uuid``, ``mac`` and ``ssh_port`` are kept for the life of a VM; ``machine_id`` (machine-id(5)) is for a guest
    whose disk is a copy of another VM's; ``security_models`` are libvirt's drivers; ``links`` (by the offers'
    addresses) and ``host_costs`` were measured earlier, if at all.
    """

    virt: Virt
    virt_reason: str
    uuid: str
    mac: str
    ssh_port: int
    offers: tuple[Offer, ...]
    image: ImagePlan
    shim: Path
    machine_id: str | None = None
    security_models: tuple[str, ...] = ()
    links: Mapping[str, Link] = field(default_factory=dict)
    host_costs: HostCosts | None = None
    filters: bool = False


@dataclass(frozen=True)
class VmPlan:
    """Holds everything that ``up`` will do for one VM.

    ``uses`` predicts how programs perform on the VM's memory, by kind of work; only `with_uses` fills it in.
    """

    name: str
    domain: str
    uuid: str
    libvirt_uri: str
    virt: Virt
    virt_reason: str
    memory_bytes: int
    remote_memory_bytes: int
    cpus: int
    disk_bytes: int
    image: ImagePlan
    network: NetworkPlan
    pager: PagerPlan
    guest: GuestPlan
    donors: tuple[str, ...]
    shares: tuple[Share, ...]
    shim: Path
    security_models: tuple[str, ...]
    files: VmPaths
    boot_timeout_s: float
    forecast: Forecast
    backup: Path | None = None
    disks: tuple[ExtraDisk, ...] = ()
    folders: tuple[SharedFolder, ...] = ()
    machine_id: str | None = None
    uses: tuple[Expected, ...] = ()

    @property
    def watermark_scale(self) -> int:
        """Return vm.watermark_scale_factor for the guest, in 10,000ths of a node's memory (admin-guide/sysctl/vm).

        The kernel's own memory comes from node 0 only. Below the low watermark, programs' memory comes from elsewhere;
        what is between that and the minimum is left to the kernel, for page tables of all the remote memory and a
        reserve. With the default, a thousandth, the OOM killer ran although node 1 had room.
        """
        kept_bytes = self.remote_memory_bytes // _PAGE_TABLE_SHARE + _KERNEL_KEEPS_BYTES
        return min(max(10_000 * kept_bytes // self.memory_bytes, 10), _MOST_WATERMARK_SCALE)

    @property
    def for_programs(self) -> workloads.Local:
        """Return what programs can have of local memory and cache, by the model of `workloads`."""
        cache, tiered = self.pager.cache_bytes, self.guest.tiering.on
        return workloads.local(self.memory_bytes, self.remote_memory_bytes, cache, tiered=tiered)

    @property
    def local(self) -> LocalMemory:
        """Return the memory of each guest node at boot."""
        direct = self.image.boot.kernel is not None
        return local_memory(self.memory_bytes, self.remote_memory_bytes, direct_boot=direct)


@dataclass(frozen=True)
class LocalMemory:
    """Holds the memory of the guest's nodes at boot, in bytes; all of it is on this machine.

    The remote memory itself is a DIMM of node 1, on which the guest's kernel keeps nothing of its own: otherwise a lost
    donor would end the kernel. ``struct page`` and the kernel's other memory come from node 0. ``node1_hidden``: the
    guest's kernel is told not to use node 1's memory at boot.
    """

    node0_bytes: int
    node1_bytes: int
    node1_hidden: bool = False


def local_memory(memory_bytes: int, remote_bytes: int, *, direct_boot: bool = True) -> LocalMemory:
    """Return the memory of each node at boot, beside ``remote_bytes`` of remote memory.

    libvirt does not allow a node without memory. Node 1's memory at boot is ordinary memory, so ``numactl --membind=1``
    would bind page tables and slabs to it as well, and when it is used up the OOM killer runs. A node that has only
    movable memory avoids that: Linux applies such a policy to movable memory only, and takes the rest from node 0
    (apply_policy_zone, mm/mempolicy.c). So with ``direct_boot`` a kernel argument hides node 1's own memory. An image
    with a boot loader gets no arguments from GhostBox: there node 1 has room for the page tables of all the remote
    memory.

    The added memory also moves the end of boot memory off every large boundary, so that hot-plugged memory comes in
    blocks of `MEMORY_BLOCK_BYTES`, however much there is (probe_memory_block_size, arch/x86/mm/init_64.c).
    """
    if not remote_bytes:
        return LocalMemory(memory_bytes, 0)
    if direct_boot:
        return LocalMemory(memory_bytes + _AT_BOOT_EXTRA_BYTES, _AT_BOOT_EXTRA_BYTES, node1_hidden=True)
    node1 = -(-remote_bytes // _PAGE_TABLE_SHARE // MIB) * MIB + _NODE1_SLACK_BYTES
    return LocalMemory(memory_bytes, node1 + (_NODE1_SLACK_BYTES if node1 % MEMORY_BLOCK_BYTES == 0 else 0))


def domain_name(name: str) -> str:
    """Return libvirt's name for the VM ``name``; the prefix tells it from other domains of the host."""
    return f"ghostbox-{name}"


def make(config: Config, paths: Paths, facts: HostFacts) -> VmPlan:
    """Return the plan for the VM that ``config`` describes.

    Raises:
        UsageError: sizes do not fit together.
        DonorTooSmall: the donors have too little free memory.
        Refused: lost pages are to be poisoned, and there is no KVM.
    """
    check_sizes(config)
    vm, pool = config.vm, config.pool
    check_loss(pool.on_donor_loss, facts.virt)
    pager = pager_plan(config, facts.virt)
    shares = shares_of(pager, facts.offers)
    return VmPlan(
        name=vm.name,
        domain=domain_name(vm.name),
        uuid=facts.uuid,
        libvirt_uri=config.libvirt.uri,
        virt=facts.virt,
        virt_reason=facts.virt_reason,
        memory_bytes=vm.memory_bytes,
        remote_memory_bytes=vm.remote_memory_bytes,
        cpus=vm.cpus,
        disk_bytes=vm.disk_bytes,
        image=facts.image,
        network=_network_plan(config, facts),
        pager=pager,
        guest=_guest_plan(config, facts),
        donors=tuple(offer.address for offer in distinct(facts.offers)),
        shares=shares,
        shim=facts.shim,
        security_models=facts.security_models,
        files=paths.vm(vm.name),
        boot_timeout_s=vm.boot_timeout_s,
        forecast=predict({share.address: share.size_bytes for share in shares}, facts.links, facts.host_costs),
        backup=backup_file(pool.backup, vm.name),
        disks=vm.disks,
        folders=vm.shares,
        machine_id=facts.machine_id,
    )


def with_uses(found: VmPlan) -> VmPlan:
    """Return the plan with ``uses`` filled in. That takes a moment, so only commands that show it call this."""
    memory, cache, forecast = found.memory_bytes, found.pager.cache_bytes, found.forecast
    uses = tuple(
        workloads.expect(
            work,
            found.for_programs,
            fault_us=forecast.fault_mean_us,
            bytes_per_s=forecast.sequential_bytes_per_s,
            host=forecast.host,
        )
        for work in workloads.usual(memory + cache)
    )
    return dataclasses.replace(found, uses=uses)


def shares_of(pager: PagerPlan, offers: Sequence[Offer], held: Sequence[Held] = ()) -> tuple[Share, ...]:
    """Return what each donor is to lend to the pool of ``pager``, besides what is ``held``.

    Raises:
        DonorTooSmall, Refused: see `placement.split`.
    """
    return split(
        pager.pool_bytes,
        offers,
        extent_bytes=pager.extent_bytes,
        replicas=pager.replicas,
        same_host=pager.allow_same_host,
        held=held,
    )


def missing_bytes(pager: PagerPlan, held: Sequence[Held]) -> int:
    """Return how much more memory the pool of ``pager`` needs than is ``held``."""
    return missing(
        pager.pool_bytes,
        held,
        extent_bytes=pager.extent_bytes,
        replicas=pager.replicas,
        same_host=pager.allow_same_host,
    )


def backup_file(given: Path | None, name: str) -> Path | None:
    """Return the file of the copy on disk: the given file, or one named after the VM in the given directory."""
    if given is None:
        return None
    return given / f"ghostbox-{name}.backup" if given.is_dir() else given


def check_loss(on_donor_loss: str, virt: Virt) -> None:
    """Refuse a reaction to lost pages that is not possible.

    Raises:
        Refused: lost pages are to be poisoned, and there is no KVM.
    """
    if on_donor_loss == "poison" and virt is not Virt.KVM:
        raise Refused(
            "pool.on_donor_loss: poison needs KVM",
            why="a lost page causes a machine check in a guest under KVM; without KVM, QEMU itself would end",
            hint="set it to wait or pause",
        )


def _network_plan(config: Config, facts: HostFacts) -> NetworkPlan:
    vm = config.vm
    is_filtered = facts.filters and vm.network.kind != "user" and not vm.host_access
    name = domain_name(vm.name) if is_filtered else None
    return NetworkPlan(facts.mac, facts.ssh_port, vm.ports, vm.network, vm.host_access, name)


def _guest_plan(config: Config, facts: HostFacts) -> GuestPlan:
    vm = config.vm
    tiering = choose(config.guest.tiering, emulated=facts.virt is Virt.TCG, links=facts.links.values())
    return GuestPlan(vm.user, vm.ssh_key, vm.cloud_init, tiering)


def pager_plan(config: Config, virt: Virt) -> PagerPlan:
    """Return the settings of the pager for the VM that ``config`` describes."""
    pool = config.pool
    extents = -(-config.vm.remote_memory_bytes // pool.extent_bytes)
    return PagerPlan(
        cache_bytes=cache_bytes(config),
        extent_bytes=pool.extent_bytes,
        readahead_bytes=config.pager.readahead_bytes,
        poll_us=config.pager.poll_us,
        log_level=config.pager.log_level,
        pool_bytes=extents * pool.extent_bytes,
        replicas=pool.replicas,
        allow_same_host=pool.allow_same_host,
        on_donor_loss=pool.on_donor_loss,
        rebuild_after_s=pool.rebuild_after_s,
        rebuild_rate_bytes=pool.rebuild_rate_bytes,
        slow_us=round(pool.slow_s * 1e6),
        lost_pages="poison" if virt is Virt.KVM else "wait",
    )


def cache_bytes(config: Config) -> int:
    """Return the size of the cache; if it is not set, it is at most half of the remote memory."""
    if config.origins.get("pool.cache", "default") != "default":
        return config.pool.cache_bytes
    return min(config.pool.cache_bytes, config.vm.remote_memory_bytes // 2 // PAGE_BYTES * PAGE_BYTES)


def check_sizes(config: Config) -> None:
    """Refuse sizes that cannot work, before anything is asked or started.

    Raises:
        UsageError: memory is no multiple of the guest's memory block, local memory is too small, the cache is not
            smaller than the remote memory, there are too many disks, or ports cannot be forwarded.
    """
    _check_block("vm.memory", config.vm.memory_bytes)
    _check_block("vm.remote_memory", config.vm.remote_memory_bytes)
    _check_local(config.vm.memory_bytes, config.vm.remote_memory_bytes)
    cache, remote = cache_bytes(config), config.vm.remote_memory_bytes
    if cache >= remote:
        raise UsageError(
            f"pool.cache ({format_bytes(cache)}) is not smaller than vm.remote_memory ({format_bytes(remote)})",
            why="the cache is local memory that holds the warm part of the remote memory",
            hint=f"lower it, for example --cache {_flag_size(max(remote // 8, 64 * MIB))}, or raise --remote-memory",
        )
    _check_ports(config.vm.ports)
    if len(config.vm.disks) > _MOST_DISKS:
        raise UsageError(f"{len(config.vm.disks)} further disks (vm.disks) are too many, {_MOST_DISKS} are possible")
    if config.vm.ports and config.vm.network.kind != "user":
        raise UsageError(
            f"ports cannot be forwarded (vm.ports) on the network {config.vm.network}",
            why="there the guest has an address of its own, at which all its ports can be reached",
            hint="leave vm.ports empty; `ghostbox info` shows the address",
        )


def _check_local(memory: int, remote: int) -> None:
    kernel_bytes = remote // STRUCT_PAGE_SHARE + _KERNEL_SLACK_BYTES
    needed = -(-(kernel_bytes + _MIN_REST_BYTES) // MEMORY_BLOCK_BYTES) * MEMORY_BLOCK_BYTES
    if remote == 0 or memory >= needed:
        return
    raise UsageError(
        f"vm.memory ({_flag_size(memory)}) is too small beside vm.remote_memory ({_flag_size(remote)})",
        why=f"the guest's kernel needs {_flag_size(kernel_bytes)} of it to manage its memory",
        hint=f"at least --memory {_flag_size(needed)}",
    )


def _check_block(key: str, n_bytes: int) -> None:
    if n_bytes % MEMORY_BLOCK_BYTES == 0 and n_bytes > 0:
        return
    below = n_bytes // MEMORY_BLOCK_BYTES * MEMORY_BLOCK_BYTES
    near = [_flag_size(size) for size in (below, below + MEMORY_BLOCK_BYTES) if size > 0]
    raise UsageError(
        f"{key} ({_flag_size(n_bytes)}) is not a multiple of {format_bytes(MEMORY_BLOCK_BYTES)}",
        why="Linux in the guest takes memory in blocks of that size",
        hint="nearest: " + " or ".join(near),
    )


def _flag_size(n_bytes: int) -> str:
    """Return the exact size in the form of a flag: ``8GiB``, ``8064MiB``, ``1000000B``."""
    if n_bytes % (1024 * MIB) == 0:
        return f"{n_bytes // (1024 * MIB)}GiB"
    if n_bytes % MIB == 0:
        return f"{n_bytes // MIB}MiB"
    return f"{n_bytes}B"


def _check_ports(forwards: Sequence[PortForward]) -> None:
    hosts = [forward.host for forward in forwards]
    twice = sorted({port for port in hosts if hosts.count(port) > 1})
    if twice:
        raise UsageError(f"port {twice[0]} of this host is forwarded twice", hint="give each port once with -p")
