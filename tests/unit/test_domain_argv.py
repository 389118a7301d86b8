# SPDX-License-Identifier: MIT
"""This machine's libvirt turns GhostBox's domain into a command line with the parts that remote memory needs.

Each release of libvirt writes the command line in another way. libvirt's embedded driver does it, which needs no
daemon.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "domain_xml"
DOMAINS = sorted(path.stem for path in GOLDEN.glob("*.xml") if path.read_text(encoding="utf-8").startswith("<domain "))


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """Hold the words of a command line, and its options that are JSON objects."""

    words: list[str]

    def objects(self, option: str) -> list[dict[str, Any]]:
        """Return the value of an option each time that the option is given."""
        found = [word for name, word in zip(self.words, self.words[1:], strict=False) if name == option]
        return [json.loads(word) for word in found if word.startswith("{")]

    def values(self, option: str) -> list[str]:
        """Return the arguments of an option as they are written."""
        return [word for name, word in zip(self.words, self.words[1:], strict=False) if name == option]


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Yield a directory for what the driver learns of QEMU; its path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="gb-", dir="/tmp") as name:
        yield Path(name)


@pytest.fixture(scope="module", params=DOMAINS)
def line(request: pytest.FixtureRequest, place: Path) -> CommandLine:
    """Return the command line of a golden domain; domains for KVM are emulated, since a machine may have no KVM."""
    text = (GOLDEN / f"{request.param}.xml").read_text(encoding="utf-8")
    text = text.replace(' type="kvm"', ' type="qemu"').replace('"host-passthrough"', '"maximum"')
    xml = place / f"{request.param}.xml"
    xml.write_text(text, encoding="utf-8")
    argv = ["virsh", "-c", f"qemu:///embed?root={place}/root", "domxml-to-native", "qemu-argv", str(xml)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return CommandLine(shlex.split(done.stdout))


def test_the_dimm_is_the_only_memory_that_is_shared_and_lies_on_node_1(line: CommandLine) -> None:
    backends = [each for each in line.objects("-object") if each["qom-type"].startswith("memory-backend")]
    assert {each["qom-type"] for each in backends} == {"memory-backend-memfd"}
    assert [each["share"] for each in backends] == [False, False, True]
    [dimm] = [each for each in line.objects("-device") if each["driver"] == "pc-dimm"]
    assert (dimm["memdev"], dimm["node"]) == (backends[-1]["id"], 1)


def test_the_guest_is_told_that_node_1_is_far(line: CommandLine) -> None:
    assert "hmat=on" in line.values("-machine")[0].split(",")
    numa = line.values("-numa")
    assert [word for word in numa if word.startswith("dist,src=0,dst=1,")] == ["dist,src=0,dst=1,val=80"]
    assert len([word for word in numa if word.startswith("hmat-lb,initiator=0,")]) == 4
    assert any("target=1,hierarchy=memory,data-type=access-latency,latency=10000" in word for word in numa)


def test_no_disk_pins_the_guests_memory_and_a_full_one_pauses_the_guest(line: CommandLine) -> None:
    files = [each for each in line.objects("-blockdev") if each["driver"] == "file"]
    assert len(files) >= 3
    assert {(each.get("aio", "threads"), each["cache"]["direct"]) for each in files} == {("threads", False)}
    disks = [each for each in line.objects("-device") if each["driver"] == "virtio-blk-pci"]
    assert (disks[0]["werror"], disks[0]["rerror"]) == ("stop", "report")


def test_qemu_gets_the_shim_and_its_socket(line: CommandLine) -> None:
    assert "LD_PRELOAD=/var/lib/ghostbox/vms/box/libghostbox-shim-0123456789ab.so" in line.words
    assert "GHOSTBOX_PAGER_SOCKET=/run/ghostbox/vms/box/pager.sock" in line.words


def test_free_memory_is_reported_and_the_emulators_settings_arrive(line: CommandLine) -> None:
    assert line.values("-accel")[0].startswith("tcg")
    [balloon] = [each for each in line.objects("-device") if each["driver"] == "virtio-balloon-pci"]
    assert balloon["free-page-reporting"] is True
