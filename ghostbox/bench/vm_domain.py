# SPDX-License-Identifier: MIT
"""Build the reference's domain: the same VM without node 1 and the shim, with an NBD disk for swap. All is pure."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

from ghostbox.plan import domain_xml
from ghostbox.plan.domain_xml import QEMU_NAMESPACE
from ghostbox.plan.plan import VmPlan

# Other disks have the letters a and b: the VM's disk and the seed.
_LETTERS = "cdefgh"


@dataclasses.dataclass(frozen=True)
class NbdDisk:
    """Is a virtio disk whose blocks an NBD server holds; the guest finds the disk by its serial number."""

    serial: str
    port: int
    export: str
    host: str = "127.0.0.1"

    @property
    def guest_path(self) -> str:
        """Return the disk's device in the guest (udev's persistent name)."""
        return f"/dev/disk/by-id/virtio-{self.serial}"


def build(plan: VmPlan, disks: tuple[NbdDisk, ...]) -> str:
    """Return the domain XML of ``plan`` with all memory in one node, and with NBD disks besides its own two disks."""
    root = ET.fromstring(domain_xml.build(plan))  # noqa: S314 - our own XML
    _make_local(root)
    devices = root.find("devices")
    assert devices is not None
    for letter, disk in zip(_LETTERS, disks, strict=False):
        devices.append(_disk(disk, f"vd{letter}"))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _make_local(root: ET.Element) -> None:
    for parent, tag in ((root, "memoryBacking"), (root.find("cpu"), "numa")):
        assert parent is not None
        found = parent.find(tag)
        assert found is not None
        parent.remove(found)
    commandline = root.find(f"{{{QEMU_NAMESPACE}}}commandline")
    assert commandline is not None
    for variable in commandline.findall(f"{{{QEMU_NAMESPACE}}}env"):
        commandline.remove(variable)


def _disk(disk: NbdDisk, target: str) -> ET.Element:
    element = ET.Element("disk", type="network", device="disk")
    ET.SubElement(element, "driver", name="qemu", type="raw", cache="writeback", discard="unmap")
    source = ET.SubElement(element, "source", protocol="nbd", name=disk.export)
    ET.SubElement(source, "host", name=disk.host, port=str(disk.port))
    ET.SubElement(element, "target", dev=target, bus="virtio")
    ET.SubElement(element, "serial").text = disk.serial
    return element
