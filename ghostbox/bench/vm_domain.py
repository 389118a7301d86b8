# SPDX-License-Identifier: MIT
"""The reference's domain: the same VM without node 1 and without the shim, with an NBD disk to swap to. Pure."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

from ghostbox import domain_xml
from ghostbox.domain_xml import QEMU_NAMESPACE
from ghostbox.plan import VmPlan

# vda and vdb are the disk and the seed.
_LETTERS = "cdefgh"


@dataclasses.dataclass(frozen=True)
class NbdDisk:
    """A virtio disk whose blocks lie behind an NBD server on this machine; the guest finds it by its serial."""

    serial: str
    port: int
    export: str

    @property
    def guest_path(self) -> str:
        """Its device in the guest (udev's persistent name)."""
        return f"/dev/disk/by-id/virtio-{self.serial}"


def build(plan: VmPlan, disks: tuple[NbdDisk, ...]) -> str:
    """Return the domain XML of ``plan`` with all memory in one node, and with NBD disks besides its own two."""
    root = ET.fromstring(domain_xml.build(plan))
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
    ET.SubElement(source, "host", name="127.0.0.1", port=str(disk.port))
    ET.SubElement(element, "target", dev=target, bus="virtio")
    ET.SubElement(element, "serial").text = disk.serial
    return element
