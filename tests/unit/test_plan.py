# SPDX-License-Identifier: MIT
"""A plan is worked out from configuration and facts, and nonsense is refused with figures."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from ghostbox import config, plan
from ghostbox.errors import DonorTooSmall, Refused, UsageError
from ghostbox.paths import Paths
from ghostbox.placement import Offer, Share
from ghostbox.plan import BootPlan, HostFacts, ImagePlan, Virt
from ghostbox.units import GIB, MIB

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


def loaded(**flags: object) -> config.Config:
    return config.load({key.replace("__", "."): value for key, value in flags.items()})


def test_plan_follows_the_configuration() -> None:
    made = plan.make(loaded(vm__name="box", vm__remote_memory="2G", vm__cpus=3, pager__poll_us=7), PATHS, FACTS)
    assert (made.name, made.domain, made.cpus, made.remote_memory_bytes) == ("box", "ghostbox-box", 3, 2 * GIB)
    assert made.shares == (Share("a", 2 * GIB),)
    assert (made.pager.cache_bytes, made.pager.poll_us) == (GIB, 7)
    assert made.files.disk == Path("/s/vms/box/disk.qcow2")


def test_donors_too_small_for_the_plan() -> None:
    with pytest.raises(DonorTooSmall, match="donor a: offers 16 GiB, the VM needs 32 GiB"):
        plan.make(loaded(vm__remote_memory="32G"), PATHS, FACTS)


def test_lost_pages_end_programs_under_kvm_and_are_waited_for_without_it() -> None:
    without = dataclasses.replace(FACTS, virt=Virt.TCG)
    assert plan.make(loaded(pool__on_donor_loss="poison"), PATHS, FACTS).pager.lost_pages == "poison"
    assert plan.make(loaded(), PATHS, without).pager.lost_pages == "wait"
    with pytest.raises(Refused, match=r"pool\.on_donor_loss: poison needs KVM"):
        plan.make(loaded(pool__on_donor_loss="poison"), PATHS, without)


@pytest.mark.parametrize("key", ["memory", "remote_memory"])
def test_memory_in_odd_sizes_is_refused_with_the_nearest_ones(key: str) -> None:
    flags = {"vm.memory": "4G", "vm.remote_memory": "8G", f"vm.{key}": "5000M"}
    with pytest.raises(UsageError, match=re.escape(f"vm.{key} (5000MiB) is not a multiple of 128 MiB")) as caught:
        plan.check_sizes(config.load(flags))
    assert caught.value.hint == "nearest: 4992MiB or 5GiB"


def test_local_memory_that_does_not_hold_the_books_of_the_remote_one_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"vm\.memory \(512MiB\) is too small beside vm\.remote_memory \(32GiB\)"
    ) as caught:
        plan.check_sizes(loaded(vm__memory="512M", vm__remote_memory="32G"))
    assert caught.value.why == "the guest's kernel needs 640MiB of it to keep the books of its memory"
    assert caught.value.hint == "at least --memory 768MiB"


@pytest.mark.parametrize(
    ("memory", "remote", "node0", "node1"),
    [
        (4 * GIB, 8 * GIB, 4 * GIB - 256 * MIB, 256 * MIB),
        (768 * MIB, 512 * MIB, 640 * MIB, 128 * MIB),
        (64 * GIB, 6 * GIB, 64 * GIB - 128 * MIB, 64 * MIB),
        (GIB, 0, GIB, 0),
    ],
)
def test_node_1_begins_where_linux_can_and_boot_memory_ends_where_its_blocks_stay_small(
    memory: int, remote: int, node0: int, node1: int
) -> None:
    dealt = plan.local_memory(memory, remote)
    assert (dealt.node0_bytes, dealt.node1_bytes) == (node0, node1)


@pytest.mark.parametrize("cache", ["8G", "9G"])
def test_cache_must_be_smaller_than_the_remote_memory(cache: str) -> None:
    with pytest.raises(
        UsageError, match=r"pool\.cache \(\d GiB\) is not smaller than vm\.remote_memory \(8 GiB\)"
    ) as caught:
        plan.check_sizes(loaded(pool__cache=cache))
    assert caught.value.hint == "lower it, for example --cache 1GiB, or raise --remote-memory"


def test_port_that_is_forwarded_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="port 8080 of this host is forwarded twice"):
        plan.check_sizes(loaded(vm__ports=["8080:80", "8080:81"]))


def test_defaults_are_sound() -> None:
    plan.check_sizes(loaded())
    assert plan.MEMORY_BLOCK_BYTES == 128 * MIB
