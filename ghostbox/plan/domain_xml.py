# SPDX-License-Identifier: MIT
"""Build the libvirt domain of a VM from its plan, and check that a domain is safe for remote memory. All is pure.

Node 0 is ordinary memory with all CPUs. Node 1 has no CPU: it has a little ordinary memory for the kernel's own use,
and a DIMM, which is the only memfd that QEMU maps shared, so that the shim recognizes it. The guest takes the DIMM as
movable memory, on which its kernel keeps nothing of its own. SLIT and HMAT describe node 1 as slow, so that the guest
makes a lower memory tier of it.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from pathlib import Path

from ghostbox.config import PortForward
from ghostbox.errors import Refused
from ghostbox.plan.plan import BootPlan, LocalMemory, NetworkPlan, Virt, VmPlan
from ghostbox.units import GIB, KIB

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
METADATA_NAMESPACE = "urn:ghostbox:vm:1"
SOCKET_VARIABLE = "GHOSTBOX_PAGER_SOCKET"
RULES_VARIABLE = "GHOSTBOX_NETWORK_RULES"

ET.register_namespace("qemu", QEMU_NAMESPACE)
ET.register_namespace("ghostbox", METADATA_NAMESPACE)

# In ACPI's SLIT, 10 is local, 20 a neighbouring socket, 255 unreachable. A page over the network is farther than any
# socket.
_LOCAL_DISTANCE, _REMOTE_DISTANCE = 10, 80
# These are ACPI HMAT's values, in ns and KiB/s. Linux compares them with node 0: 10 times the latency and a tenth of
# the bandwidth put node 1 far below DRAM (abstract distance), whether the network takes 10 or 200 µs.
_LOCAL_LATENCY_NS, _REMOTE_LATENCY_NS = 100, 10_000
_LOCAL_BANDWIDTH_KIB, _REMOTE_BANDWIDTH_KIB = 10 * KIB * KIB, KIB * KIB

# The profiles of these modules do not know the shim, and would deny QEMU the library or its socket.
_CONFINING = ("apparmor", "selinux")

# Documentation/admin-guide/mm/memory-hotplug: plugged-in memory stays offline until the initrd (images/export.sh) or,
# in images with a boot loader of their own, cloud-init (guest_boot.py) gives it to ZONE_MOVABLE. ACPI finds the DIMM
# before Linux has read HMAT; a node whose first memory went online then would be put into the tier of near memory
# (set_node_memory_tier, mm/memory-tiers.c, Linux 6.12).
_LEAVE_OFFLINE = "memhp_default_state=offline"
# mm/page_reporting.c: free memory is given back in pieces of 2^5 pages. The default is pageblocks (2 MiB), of which a
# busy guest has few that are free; unreported memory stays on the donors and is fetched again.
_REPORT_SMALL_PIECES = "page_reporting.page_reporting_order=5"
# admin-guide/sysctl/vm: this stops kcompactd from moving pages ahead of need; on node 1 it would fetch and write back
# each.
_NO_PROACTIVE_COMPACTION = "sysctl.vm.compaction_proactiveness=0"

# Because of the DIMM above 4 GiB the kernel reserves 64 MiB of local memory for copies of what 32-bit devices read and
# write (pci_swiotlb_detect, arch/x86/kernel/pci-dma.c). The VM has no such devices: virtio needs none. 2048 × 2 KiB
# stay.
_BOUNCE_BUFFERS = "swiotlb=2048"

# QEMU's q35 machine, with this much memory at boot, puts what exceeds 2 GiB at 4 GiB and above (pc_q35_init, hw/i386).
_SPLIT_FROM_BYTES, _LOW_BYTES, _HIGH_BASE = 0xB0000000, 2 * GIB, 4 * GIB

# The size of TCG's cache of translated code (QEMU's default is 1 GiB). A boot leaves 1.7 million blocks in a large
# cache, and a write to memory with such code has to invalidate each block by itself; a full small cache is emptied at
# once.
_TRANSLATED_MIB = 128

# The slots of pcie.0 that libvirt assigns start at 1 and stay below this one.
_NETWORK_SLOT = "0x18"


def build(plan: VmPlan) -> str:
    """Return the domain XML of ``plan``."""
    root = ET.Element("domain", type="kvm" if plan.virt is Virt.KVM else "qemu")
    _add(root, "name", plan.domain)
    _add(root, "uuid", plan.uuid)
    _add_metadata(root, plan)
    _add_memory(root, plan)
    _add(root, "vcpu", str(plan.cpus), placement="static")
    _add_os(root, plan.image.boot, _kernel_args(plan))
    features = _add(root, "features")
    _add(features, "acpi")
    _add(features, "apic")
    if plan.virt is not Virt.KVM:
        _add(_add(features, "tcg"), "tb-cache", str(_TRANSLATED_MIB), unit="MiB")
    _add_cpu(root, plan)
    _add(root, "clock", offset="utc")
    for event, action in (("poweroff", "destroy"), ("reboot", "restart"), ("crash", "destroy")):
        _add(root, f"on_{event}", action)
    _add_devices(root, plan)
    for model in _CONFINING:
        if model in plan.security_models:
            _add(root, "seclabel", type="none", model=model)
    _add_qemu(root, plan)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _add_metadata(root: ET.Element, plan: VmPlan) -> None:
    """Add the metadata that identifies the domain as GhostBox's and as this installation's (there may be several)."""
    vm = _add(_add(root, "metadata"), f"{{{METADATA_NAMESPACE}}}vm")
    vm.set("name", plan.name)
    vm.set("state", str(plan.files.state))


def _add_memory(root: ET.Element, plan: VmPlan) -> None:
    total = (plan.local.node0_bytes + plan.local.node1_bytes + plan.remote_memory_bytes) // KIB
    if plan.remote_memory_bytes:
        # QEMU reserves room for a DIMM that begins at a multiple of 1 GiB.
        _add(root, "maxMemory", str(total + GIB // KIB), slots="1", unit="KiB")
    # A core dump of QEMU would read every remote page.
    _add(root, "memory", str(total), unit="KiB", dumpCore="off")
    _add(root, "currentMemory", str(total), unit="KiB")
    backing = _add(root, "memoryBacking")
    # The shim serves the DIMM, QEMU's only shared memfd; without the access line QEMU maps every memfd shared.
    _add(backing, "source", type="memfd")
    _add(backing, "access", mode="private")


def _kernel_args(plan: VmPlan) -> str:
    words = [plan.image.boot.kernel_args, _LEAVE_OFFLINE]
    if plan.remote_memory_bytes:
        words += [_BOUNCE_BUFFERS, _REPORT_SMALL_PIECES, _NO_PROACTIVE_COMPACTION]
    if plan.machine_id is not None:
        # kernel-command-line(7): this id is valid from the start, before the guest asks the network for an address.
        words.append(f"systemd.machine_id={plan.machine_id}")
    if plan.local.node1_hidden:
        words += [_reserved(plan.local), f"sysctl.vm.watermark_scale_factor={plan.watermark_scale}"]
    return " ".join(words)


def _reserved(local: LocalMemory) -> str:
    """Return the kernel argument that keeps node 1's boot memory unused (plan.local_memory has the reason).

    This is the last memory that the machine has at boot. If the address is wrong (on AMD's processors QEMU moves memory
    beyond 1 TiB), there is no memory at it, and the argument does nothing.
    """
    total = local.node0_bytes + local.node1_bytes
    end = total if total < _SPLIT_FROM_BYTES else total - _LOW_BYTES + _HIGH_BASE
    return f"memmap={local.node1_bytes // KIB}K${end - local.node1_bytes:#x}"


def _add_os(root: ET.Element, boot: BootPlan, kernel_args: str) -> None:
    os_element = _add(root, "os")
    _add(os_element, "type", "hvm", arch="x86_64", machine="q35")
    if boot.kernel is None:
        _add(os_element, "boot", dev="hd")
        return
    _add(os_element, "kernel", str(boot.kernel))
    if boot.initrd is not None:
        _add(os_element, "initrd", str(boot.initrd))
    _add(os_element, "cmdline", kernel_args)


def _add_cpu(root: ET.Element, plan: VmPlan) -> None:
    if plan.virt is Virt.KVM:
        cpu = _add(root, "cpu", mode="host-passthrough", check="none")
    else:
        cpu = _add(root, "cpu", mode="maximum", check="none")
        # Five-level page tables cost an emulated guest one more step on every TLB miss, without any use.
        _add(cpu, "feature", policy="disable", name="la57")
        # With this feature the guest loads all of KVM at boot, which takes seconds under emulation and is of no use.
        _add(cpu, "feature", policy="disable", name="svm")
        # TCG runs string instructions element by element: with erms Linux would clear pages by bytes, not by words.
        _add(cpu, "feature", policy="disable", name="erms")
    _add(cpu, "topology", sockets="1", dies="1", cores=str(plan.cpus), threads="1")
    numa = _add(cpu, "numa")
    node0 = _add(numa, "cell", id="0", cpus=f"0-{plan.cpus - 1}", memory=str(plan.local.node0_bytes // KIB), unit="KiB")
    node1 = _add(numa, "cell", id="1", memory=str(plan.local.node1_bytes // KIB), unit="KiB")
    for cell, here in ((node0, "0"), (node1, "1")):
        distances = _add(cell, "distances")
        for other in ("0", "1"):
            value = _LOCAL_DISTANCE if other == here else _REMOTE_DISTANCE
            _add(distances, "sibling", id=other, value=str(value))
    _add_hmat(_add(numa, "interconnects"))


def _add_hmat(interconnects: ET.Element) -> None:
    for target, ns in (("0", _LOCAL_LATENCY_NS), ("1", _REMOTE_LATENCY_NS)):
        _add(interconnects, "latency", initiator="0", target=target, type="access", value=str(ns))
    for target, kib in (("0", _LOCAL_BANDWIDTH_KIB), ("1", _REMOTE_BANDWIDTH_KIB)):
        _add(interconnects, "bandwidth", initiator="0", target=target, type="access", value=str(kib), unit="KiB")


def _add_devices(root: ET.Element, plan: VmPlan) -> None:
    devices = _add(root, "devices")
    # The disk is buffered: pages pinned for O_DIRECT or io_uring would outlive their eviction.
    disk = _add_disk(devices, plan.files.disk, plan)
    base = _add(disk, "backingStore", type="file")
    _add(base, "format", type="qcow2")
    _add_source(base, plan.image.disk, plan)
    _add(base, "backingStore")
    _add(disk, "target", dev=_FIRST_TARGET, bus="virtio")
    seed = _add(devices, "disk", type="file", device="disk")
    _add(seed, "driver", name="qemu", type="raw", cache="writeback", io="threads")
    _add_source(seed, plan.files.seed, plan)
    _add(seed, "target", dev="vdb", bus="virtio")
    _add(seed, "readonly")
    _add_more_disks(devices, plan)
    _add(devices, "controller", type="usb", model="none")
    _add_interface(devices, plan.network)
    serial = _add(devices, "serial", type="pty")
    # Without "append", libvirt's logger would remove GhostBox's file and make a file for root alone.
    _add(serial, "log", file=str(plan.files.console_log), append="on")
    _add(serial, "target", port="0")
    _add(_add(devices, "console", type="pty"), "target", type="serial", port="0")
    if plan.remote_memory_bytes:
        dimm = _add(_add(devices, "memory", model="dimm", access="shared"), "target")
        _add(dimm, "size", str(plan.remote_memory_bytes // KIB), unit="KiB")
        _add(dimm, "node", "1")
    _add(devices, "memballoon", model="virtio", freePageReporting="on", autodeflate="on")
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", "/dev/urandom", model="random")


def _add_disk(devices: ET.Element, file: Path, plan: VmPlan) -> ET.Element:
    disk = _add(devices, "disk", type="file", device="disk")
    # QEMU repeats a failed write (no space, a quota) when the VM is resumed, so the guest gets no error.
    policy = {"error_policy": "stop", "rerror_policy": "report"}
    _add(disk, "driver", name="qemu", type="qcow2", cache="writeback", io="threads", discard="unmap", **policy)
    _add_source(disk, file, plan)
    return disk


def _add_more_disks(devices: ET.Element, plan: VmPlan) -> None:
    """Add the disks besides the first; the guest recognizes each by its serial number (cloudinit.py)."""
    for number in range(2, 2 + len(plan.disks)):
        disk = _add_disk(devices, plan.files.more_disk(number), plan)
        _add(disk, "backingStore")
        _add(disk, "target", dev=_disk_target(number), bus="virtio")
        _add(disk, "serial", disk_serial(number))


_FIRST_TARGET = "vda"  # "vdb" is the seed


def _disk_target(number: int) -> str:
    return f"vd{chr(ord('a') + number)}"


def disk_number(target: str) -> int:
    """Return the number of the VM's disk that has this name in the domain; 1 is the first disk."""
    return 1 if target == _FIRST_TARGET else ord(target[-1]) - ord("a")


def disk_serial(number: int) -> str:
    """Return the serial number of the VM's second disk (2), its third disk (3) and so on."""
    return f"gb-disk{number}"


def _add_source(parent: ET.Element, file: Path, plan: VmPlan) -> None:
    """Add a file whose owner libvirt must not change: it would give a base image to QEMU's user and never back."""
    source = _add(parent, "source", file=str(file))
    if "dac" in plan.security_models:
        _add(source, "seclabel", model="dac", relabel="no")


def _add_qemu(root: ET.Element, plan: VmPlan) -> None:
    commandline = _add(root, f"{{{QEMU_NAMESPACE}}}commandline")
    for word in _network_arguments(plan.network):
        _add(commandline, f"{{{QEMU_NAMESPACE}}}arg", value=word)
    environment = {"LD_PRELOAD": plan.shim, SOCKET_VARIABLE: plan.files.pager_socket}
    if plan.network.is_guarded:
        environment[RULES_VARIABLE] = plan.files.network_rules
    for name, value in environment.items():
        _add(commandline, f"{{{QEMU_NAMESPACE}}}env", name=name, value=str(value))


def _add_interface(devices: ET.Element, network: NetworkPlan) -> None:
    """Connect the guest to a bridge or libvirt network by QEMU; vhost-net would let the kernel use guest memory."""
    if network.choice.kind == "user":
        return
    kind, attribute = ("bridge", "bridge") if network.choice.kind == "bridge" else ("network", "network")
    interface = _add(devices, "interface", type=kind)
    _add(interface, "mac", address=network.mac)
    _add(interface, "source", **{attribute: network.choice.name})
    _add(interface, "model", type="virtio")
    _add(interface, "driver", name="qemu")
    _add(interface, "rom", enabled="no")
    if network.filter is not None:
        _add(interface, "filterref", filter=network.filter)


def build_filter(name: str, uuid: str, rules: Sequence[tuple[str | None, int]]) -> str:
    """Return a libvirt filter that drops the guest's packets to these TCP ports: (address, None for any; port).

    The filter sees Ethernet frames as they leave the guest (ebtables), so it covers bridged, routed and local packets.
    """
    root = ET.Element("filter", name=name, chain="root")
    _add(root, "uuid", uuid)
    for address, port in rules:
        kinds = ("ip", "ipv6") if address is None else ("ipv6",) if ":" in address else ("ip",)
        for kind in kinds:
            rule = _add(root, "rule", action="drop", direction="out", priority="100")
            where = {} if address is None else {"dstipaddr": address}
            _add(rule, kind, protocol="tcp", dstportstart=str(port), dstportend=str(port), **where)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _network_arguments(network: NetworkPlan) -> list[str]:
    """Return QEMU's own arguments: libvirt 9 cannot forward ports of a user-mode network."""
    if network.choice.kind != "user":
        return []
    forwards = [PortForward(network.ssh_port, 22), *network.forwards]
    rules = ",".join(f"hostfwd=tcp:127.0.0.1:{forward.host}-:{forward.guest}" for forward in forwards)
    device = f"virtio-net-pci,netdev=ghostbox0,mac={network.mac},bus=pcie.0,addr={_NETWORK_SLOT},romfile="
    return ["-netdev", f"user,id=ghostbox0,{rules}", "-device", device]


def check(xml: str) -> None:
    """Refuse a domain whose devices would reach guest memory without the pager (docs/userfaultfd.md, traps 2 and 4).

    Raises:
        Refused: the error names every such device.
    """
    root = ET.fromstring(xml)  # noqa: S314 - build() has made it
    found = [text for find in _UNSAFE for text in find(root)]
    if found:
        raise Refused(
            f"the domain is not safe for remote memory: {found[0]}",
            why="\n".join(found[1:]) or None,
            hint="use buffered disk I/O, and no device that maps or pins guest memory",
        )


def _direct_disks(root: ET.Element) -> list[str]:
    found = []
    for disk in root.iterfind("devices/disk"):
        driver = disk.find("driver")
        target = disk.find("target")
        name = target.get("dev", "?") if target is not None else "?"
        cache = driver.get("cache", "default") if driver is not None else "default"
        io = driver.get("io", "default") if driver is not None else "default"
        if cache in {"none", "directsync"} or io in {"native", "io_uring"}:
            found.append(f"disk {name} pins memory for its I/O (cache='{cache}', io='{io}')")
        if disk.get("type") == "vhostuser":
            found.append(f"disk {name} is vhost-user: another process maps the guest's memory")
    return found


def _mapping_devices(root: ET.Element) -> list[str]:
    found = []
    for filesystem in root.iterfind("devices/filesystem"):
        driver = filesystem.find("driver")
        if driver is not None and driver.get("type") == "virtiofs":
            found.append("a virtiofs file system: another process maps the guest's memory")
    for interface in root.iterfind("devices/interface"):
        driver = interface.find("driver")
        if interface.get("type") in {"bridge", "network", "direct"} and (
            driver is None or driver.get("name") != "qemu"
        ):
            found.append("a network interface that may take vhost-net: the host's kernel works on the guest's memory")
    if root.find("devices/interface[@type='vhostuser']") is not None:
        found.append("a vhost-user network interface: another process maps the guest's memory")
    if root.find("devices/video/driver[@name='vhostuser']") is not None:
        found.append("a vhost-user video device: another process maps the guest's memory")
    return found


def _pinned_memory(root: ET.Element) -> list[str]:
    found = []
    if root.find("devices/hostdev") is not None or root.find("devices/interface[@type='hostdev']") is not None:
        found.append("a passed-through host device: VFIO pins all of the guest's memory")
    if root.find("memoryBacking/locked") is not None:
        found.append("locked memory: nothing could be evicted")
    if root.find("memoryBacking/hugepages") is not None:
        found.append("huge pages: the pager works in pages of 4 KiB")
    return found


_UNSAFE: tuple[Callable[[ET.Element], list[str]], ...] = (_direct_disks, _mapping_devices, _pinned_memory)
