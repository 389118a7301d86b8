# SPDX-License-Identifier: MIT
"""Make the facts of a plan, as found on a host with KVM and one donor, and the record of a VM from that plan."""

from __future__ import annotations

from pathlib import Path

from ghostbox.paths import Paths
from ghostbox.plan.placement import Offer
from ghostbox.plan.plan import BootPlan, HostFacts, ImagePlan, Virt
from ghostbox.session.record import Record, VmState
from ghostbox.units import GIB

PATHS = Paths(Path("/s"), Path("/r"), Path("/c"), Path("/e"), Path("/n"))
FACTS = HostFacts(
    virt=Virt.KVM,
    virt_reason="a 64-bit probe guest ran",
    uuid="11111111-2222-3333-4444-555555555555",
    mac="52:54:00:01:02:03",
    ssh_port=2222,
    offers=(Offer("a", 16 * GIB),),
    image=ImagePlan("debian", Path("/i/disk.qcow2"), BootPlan(Path("/i/vmlinux"), Path("/i/initrd.img"), "quiet")),
    shim=Path("/s/shim.so"),
)
RECORD = Record(
    name="box",
    state=VmState.STOPPED,
    uuid=FACTS.uuid,
    mac=FACTS.mac,
    ssh_port=FACTS.ssh_port,
    created_at="2026-01-01T00:00:00+00:00",
    domain="ghostbox-box",
    libvirt_uri="qemu:///system",
    image="debian",
    user="ghost",
    virt="kvm",
    cpus=2,
    memory_bytes=4 * GIB,
    remote_memory_bytes=8 * GIB,
    cache_bytes=GIB,
    disk_bytes=20 * GIB,
    new=False,
)
