# SPDX-License-Identifier: MIT
"""A real QEMU has a remote node 1: faults come from KVM, memory is plugged in while it runs, a pager may be missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox.system.processes import wait_until
from helpers.devices import need_device
from helpers.kvm_guest import NODE_BYTES, Qmp, build_guest, kvm_problem, running_qemu
from helpers.pager import nbdkit_memory, running_memserver, running_pager, short_dir

MIB = 1 << 20


@pytest.fixture
def accel(request: pytest.FixtureRequest) -> str:
    """Return KVM if it can be used, or TCG."""
    name = str(request.param)
    problem = kvm_problem() if name == "kvm" else None
    if problem:
        pytest.skip(f"cannot run here: {problem}")
    return name


@pytest.fixture(autouse=True)
def userfaultfd_device() -> None:
    """Skip where no userfaultfd can be made."""
    need_device("/dev/userfaultfd")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the guest's image."""
    return build_guest(tmp_path_factory.mktemp("guest"))


@pytest.fixture
def place() -> Iterator[Path]:
    """Yield a directory whose path is short enough for Unix sockets."""
    with short_dir() as path:
        yield path


@pytest.mark.parametrize(
    ("accel", "options"),
    [
        pytest.param("kvm", {}, id="kvm", marks=pytest.mark.kvm),
        pytest.param("kvm", {"hide_features": "wp_async"}, id="kvm-wp-fault", marks=pytest.mark.kvm),
        pytest.param("tcg", {}, id="tcg"),
    ],
    indirect=["accel"],
)
def test_the_guest_writes_and_checks_node_1_over_a_small_cache(
    accel: str, options: dict[str, Any], image: Path, place: Path
) -> None:
    with (
        running_memserver(a="40M") as ours,
        nbdkit_memory("40M") as other,
        running_pager([ours.uri("a"), other], cache="16M", **options) as pager,
        running_qemu(place, image, accel, pager) as qemu,
    ):
        console = place / "console"
        status = qemu.wait(180)
        assert "ghostbox-shim" not in (place / "stderr").read_text()
        assert console.read_text().splitlines() == ["written", "checked in order", "checked at random"]
        assert status == 1
        counted = pager.status()
        assert counted["evictions"]["dirty"] > 48 * 256
        assert counted["faults"]["missing_fetch"] + counted["readahead"]["used"] > 48 * 256
        assert counted["surprises"] == {"foreign_pages": 0, "vanished_pages": 0}


def test_qemu_does_not_start_without_a_pager(image: Path, place: Path) -> None:
    with running_qemu(place, image, "tcg", place / "nobody") as qemu:
        assert qemu.wait(30) == 1
    assert (place / "stderr").read_text() == (
        f"ghostbox-shim: cannot connect to the pager at {place}/nobody: No such file or directory\n"
    )


def test_only_node_1_is_remote(image: Path, place: Path) -> None:
    with (
        running_memserver(a="72M") as donor,
        running_pager([donor.uri("a")], cache="16M") as pager,
        running_qemu(place, image, "tcg", pager, "-S") as qemu,
    ):
        wait_until(lambda: len(pager.status()["regions"]) == 1, timeout_s=30, what="the region")
        region = pager.status()["regions"][0]
        assert (region["pid"], region["length_bytes"]) == (qemu.pid, NODE_BYTES)
        assert region["comm"] == "qemu-system-x86"[:15]
        assert "libghostbox-shim.so" in Path(f"/proc/{qemu.pid}/maps").read_text()


def test_memory_is_plugged_and_unplugged_at_run_time(image: Path, place: Path) -> None:
    with (
        running_memserver(a="72M", b="32M") as donor,
        running_pager([donor.uri("a"), donor.uri("b")], cache="16M") as pager,
        running_qemu(place, image, "tcg", pager, "-S"),
    ):
        qmp = Qmp(place / "qmp")
        backend = {"qom-type": "memory-backend-memfd", "id": "more", "share": True}
        assert qmp.command("object-add", size=16 * MIB, **backend) == {"return": {}}
        lengths = sorted(region["length_bytes"] for region in pager.status()["regions"])
        assert lengths == [16 * MIB, NODE_BYTES]
        assert qmp.command("object-del", id="more") == {"return": {}}
        wait_until(lambda: len(pager.status()["regions"]) == 1, timeout_s=10, what="the region's end")
        # The region is larger than the donors: the VM runs on without it.
        answer = qmp.command("object-add", size=64 * MIB, **backend)
        assert "error" in answer
        assert "the pager refuses: the region has 64 MiB" in (place / "stderr").read_text()
        assert qmp.command("query-status")["return"]["status"] == "prelaunch"
        qmp.close()
