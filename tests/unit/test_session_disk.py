# SPDX-License-Identifier: MIT
"""When a write to a disk of a VM fails, the error names the disk."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import libvirt
import pytest

from ghostbox.paths import VmPaths
from ghostbox.plan import domain_xml
from ghostbox.session import disk
from ghostbox.system.hypervisor import DiskTrouble, FailedWrite
from ghostbox.system.hypervisor.connection import failed_write

FULL, OTHER = libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE, libvirt.VIR_DOMAIN_DISK_ERROR_UNSPEC
GOLDEN = Path(__file__).parent / "domain_xml"


@pytest.mark.parametrize(
    ("errors", "found", "name"),
    [
        ({"vda": FULL}, FailedWrite(DiskTrouble.FULL, "vda"), "disk.qcow2"),
        ({"vdc": FULL}, FailedWrite(DiskTrouble.FULL, "vdc"), "disk2.qcow2"),
        ({"vda": OTHER, "vdd": FULL}, FailedWrite(DiskTrouble.FULL, "vdd"), "disk3.qcow2"),
        ({"vdd": OTHER, "vdc": OTHER}, FailedWrite(DiskTrouble.FAILED, "vdc"), "disk2.qcow2"),
        ({}, FailedWrite(DiskTrouble.FAILED, None), "disk.qcow2"),
    ],
)
def test_the_disk_that_has_no_room_is_named(
    tmp_path: Path, errors: dict[str, int], found: FailedWrite, name: str
) -> None:
    assert failed_write(errors) == found
    files = VmPaths(tmp_path / "work", tmp_path / "run")
    files.state.mkdir()
    file = files.state / name
    file.touch()
    problem = disk.explain(files, found)
    what = f"no space for its disk {file} to grow" if found.trouble is DiskTrouble.FULL else f"its disk {file} cannot"
    assert problem.text.startswith(f"the VM is paused: {what}")
    assert disk.has_room(files, found) == (found.trouble is DiskTrouble.FULL)


def test_room_is_looked_for_where_the_disk_is_that_has_none(tmp_path: Path) -> None:
    files = VmPaths(tmp_path / "work", tmp_path / "run")
    files.state.mkdir()
    files.disk.touch()  # the first disk has room; the second one has not even a file
    assert disk.has_room(files, FailedWrite(DiskTrouble.FULL, "vda"))
    assert not disk.has_room(files, FailedWrite(DiskTrouble.FULL, "vdc"))


def test_names_in_the_domain_lead_back_to_the_files() -> None:
    n_disks = 0
    for file in GOLDEN.glob("*.xml"):
        for element in ET.parse(file).iterfind("devices/disk[@device='disk']"):
            source, target, serial = element.find("source"), element.find("target"), element.findtext("serial")
            assert source is not None and target is not None
            number = domain_xml.disk_number(target.get("dev", ""))
            if "seed" not in source.get("file", ""):
                assert source.get("file", "").endswith("disk.qcow2" if number == 1 else f"disk{number}.qcow2")
                assert serial == (None if number == 1 else domain_xml.disk_serial(number))
                n_disks += 1
    assert n_disks > 1
