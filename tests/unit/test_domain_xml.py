# SPDX-License-Identifier: MIT
"""The domain of a plan equals the golden file, libvirt's schema accepts it, and unsafe domains are refused.

After an intended change: GHOSTBOX_TEST_REWRITE=1 pytest tests/unit/test_domain_xml.py, then read the difference.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from ghostbox import config
from ghostbox.config import ExtraDisk, NetworkChoice, PortForward
from ghostbox.errors import Refused
from ghostbox.paths import Paths
from ghostbox.plan import domain_xml, plan
from ghostbox.plan.placement import Offer
from ghostbox.plan.plan import BootPlan, ImagePlan, NetworkPlan, Virt, VmPlan
from ghostbox.units import GIB
from helpers.facts import FACTS

GOLDEN = Path(__file__).parent / "domain_xml"


def make_plan() -> VmPlan:
    paths = Paths(Path("/var/lib/ghostbox"), Path("/run/ghostbox"), Path("/c"), Path("/e"), Path("/n"))
    images = Path("/var/cache/ghostbox/images/debian")
    facts = dataclasses.replace(
        FACTS,
        offers=(Offer("tower:10810", 16 * GIB),),
        image=ImagePlan(
            "debian",
            images / "disk.qcow2",
            BootPlan(images / "vmlinux", images / "initrd.img", "root=LABEL=ghostbox-root console=ttyS0"),
        ),
        shim=Path("/var/lib/ghostbox/vms/box/libghostbox-shim-0123456789ab.so"),
        security_models=("none", "dac"),
    )
    return plan.make(config.load({"vm.name": "box"}), paths, facts)


def tcg_plan() -> VmPlan:
    """Return a plan of an emulated VM with forwarded ports, on a host with AppArmor."""
    network = NetworkPlan("52:54:00:01:02:03", 2222, (PortForward(8080, 80), PortForward(8443, 443)))
    return dataclasses.replace(make_plan(), virt=Virt.TCG, network=network, security_models=("apparmor", "dac"), cpus=1)


def firmware_plan() -> VmPlan:
    """Return a plan of an imported image under a session libvirt, which has no security drivers."""
    image = ImagePlan("cloud", Path("/var/cache/ghostbox/images/cloud/disk.qcow2"), BootPlan())
    return dataclasses.replace(make_plan(), image=image, security_models=(), libvirt_uri="qemu:///session")


def bridge_plan() -> VmPlan:
    """Return a plan of a VM with an address of its own on a bridge of the host, and three disks."""
    network = NetworkPlan("52:54:00:01:02:03", 2222, choice=NetworkChoice("bridge", "br0"))
    return dataclasses.replace(make_plan(), network=network, disks=(ExtraDisk(50 * GIB), ExtraDisk(GIB)))


def libvirt_network_plan() -> VmPlan:
    """Return a plan of a VM on a network of libvirt."""
    network = NetworkPlan("52:54:00:01:02:03", 2222, choice=NetworkChoice("libvirt", "default"), filter="ghostbox-box")
    return dataclasses.replace(make_plan(), network=network)


PLANS = {
    "kvm": make_plan,
    "tcg": tcg_plan,
    "firmware": firmware_plan,
    "bridge": bridge_plan,
    "libvirt-network": libvirt_network_plan,
}


def test_filter_is_the_golden_one() -> None:
    rules = [(None, 10809), ("192.0.2.7", 7000), ("2001:db8::1", 7000)]
    xml = domain_xml.build_filter("ghostbox-box", FACTS.uuid, rules)
    golden = GOLDEN / "filter.xml"
    if os.environ.get("GHOSTBOX_TEST_REWRITE"):
        golden.write_text(xml)
    assert xml == golden.read_text()


def test_only_a_guarded_network_has_rules() -> None:
    guarded = make_plan()
    opened = dataclasses.replace(guarded, network=dataclasses.replace(guarded.network, host_access=True))
    assert domain_xml.RULES_VARIABLE in domain_xml.build(guarded)
    for each in (opened, bridge_plan(), libvirt_network_plan()):
        assert domain_xml.RULES_VARIABLE not in domain_xml.build(each)


@pytest.mark.parametrize("name", PLANS)
def test_domain_is_the_golden_one(name: str) -> None:
    xml = domain_xml.build(PLANS[name]())
    golden = GOLDEN / f"{name}.xml"
    if os.environ.get("GHOSTBOX_TEST_REWRITE"):
        golden.write_text(xml)
    assert xml == golden.read_text()


def test_guest_without_remote_memory_keeps_its_kernels_ways_of_giving_memory_back() -> None:
    """The reference of ``ghostbox bench --vm`` does so, too."""
    xml = domain_xml.build(dataclasses.replace(make_plan(), remote_memory_bytes=0))
    assert "page_reporting" not in xml
    assert "compaction" not in xml


@pytest.mark.parametrize("name", PLANS)
def test_libvirts_schema_accepts_the_domain(name: str) -> None:
    """libvirt's test driver checks it, which needs no daemon."""
    if shutil.which("virsh") is None:
        pytest.skip("virsh is not installed")
    argv = ["virsh", "-c", "test:///default", "define", "--validate", str(GOLDEN / f"{name}.xml")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", PLANS)
def test_ghostboxs_own_domains_are_safe(name: str) -> None:
    domain_xml.check(domain_xml.build(PLANS[name]()))


@pytest.mark.parametrize(
    ("device", "text"),
    [
        (
            "<disk type='file'><driver cache='none'/><target dev='vdc'/></disk>",
            "disk vdc pins memory for its I/O (cache='none', io='default')",
        ),
        (
            "<disk type='file'><driver cache='writeback' io='io_uring'/><target dev='vdc'/></disk>",
            "disk vdc pins memory for its I/O (cache='writeback', io='io_uring')",
        ),
        ("<disk type='vhostuser'><target dev='vdd'/></disk>", "disk vdd is vhost-user"),
        ("<filesystem><driver type='virtiofs'/></filesystem>", "a virtiofs file system"),
        ("<interface type='vhostuser'/>", "a vhost-user network interface"),
        ("<interface type='bridge'/>", "a network interface that may take vhost-net"),
        ("<interface type='network'><driver name='vhost'/></interface>", "a network interface that may take vhost-net"),
        ("<video><driver name='vhostuser'/></video>", "a vhost-user video device"),
        ("<hostdev mode='subsystem' type='pci'/>", "a passed-through host device: VFIO pins all"),
        ("<interface type='hostdev'/>", "a passed-through host device: VFIO pins all"),
    ],
)
def test_device_that_goes_behind_the_pagers_back_is_refused(device: str, text: str) -> None:
    root = ET.fromstring(domain_xml.build(make_plan()))
    devices = root.find("devices")
    assert devices is not None
    devices.append(ET.fromstring(device))
    with pytest.raises(Refused) as caught:
        domain_xml.check(ET.tostring(root, encoding="unicode"))
    assert caught.value.message.startswith(f"the domain is not safe for remote memory: {text}")


@pytest.mark.parametrize(("element", "text"), [("locked", "locked memory"), ("hugepages", "huge pages")])
def test_memory_that_cannot_be_evicted_is_refused(element: str, text: str) -> None:
    root = ET.fromstring(domain_xml.build(make_plan()))
    backing = root.find("memoryBacking")
    assert backing is not None
    ET.SubElement(backing, element)
    with pytest.raises(Refused, match=text):
        domain_xml.check(ET.tostring(root, encoding="unicode"))


def test_all_that_is_unsafe_is_named_at_once() -> None:
    root = ET.fromstring(domain_xml.build(make_plan()))
    devices = root.find("devices")
    assert devices is not None
    for kind in ("vhostuser", "hostdev"):
        ET.SubElement(devices, "interface", type=kind)
    with pytest.raises(Refused) as caught:
        domain_xml.check(ET.tostring(root, encoding="unicode"))
    assert caught.value.why is not None
    assert "passed-through" in caught.value.why
