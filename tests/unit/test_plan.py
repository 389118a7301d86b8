# SPDX-License-Identifier: MIT
"""A plan is computed from configuration and facts; an impossible one is refused with figures."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from ghostbox import config
from ghostbox.config.tiering import How
from ghostbox.errors import DonorTooSmall, Refused, UsageError
from ghostbox.plan import plan
from ghostbox.plan.placement import Share
from ghostbox.plan.plan import HostFacts, Virt
from ghostbox.plan.prediction import assumed_link
from ghostbox.units import GIB, MEMORY_BLOCK_BYTES, MIB
from helpers.facts import FACTS, PATHS


def loaded(**flags: object) -> config.Config:
    return config.load({key.replace("__", "."): value for key, value in flags.items()})


def test_plan_follows_the_configuration() -> None:
    made = plan.make(loaded(vm__name="box", vm__remote_memory="2G", vm__cpus=3, pager__poll_us=7), PATHS, FACTS)
    assert (made.name, made.domain, made.cpus, made.remote_memory_bytes) == ("box", "ghostbox-box", 3, 2 * GIB)
    assert made.shares == (Share("a", 2 * GIB),)
    assert (made.pager.cache_bytes, made.pager.poll_us) == (GIB, 7)
    assert made.files.disk == Path("/s/vms/box/disk.qcow2")


@pytest.mark.parametrize(
    ("network", "filters", "host_access", "name"),
    [
        ("user", True, False, None), ("bridge:br0", True, False, "ghostbox-box"), ("bridge:br0", False, False, None),
        ("libvirt:default", True, True, None),
    ],
)  # fmt: skip
def test_filter_keeps_a_guest_from_donors_where_it_has_an_address_of_its_own_and_libvirt_can_filter(
    network: str, filters: bool, host_access: bool, name: str | None
) -> None:
    facts = dataclasses.replace(FACTS, filters=filters)
    config = loaded(vm__name="box", vm__network=network, vm__host_access=host_access)
    assert plan.make(config, PATHS, facts).network.filter == name


def test_donors_too_small_for_the_plan() -> None:
    with pytest.raises(DonorTooSmall, match="donor a: offers 16 GiB, the VM needs 32 GiB"):
        plan.make(loaded(vm__remote_memory="32G"), PATHS, FACTS)


def test_lost_pages_end_programs_under_kvm_and_are_waited_for_without_it() -> None:
    without = dataclasses.replace(FACTS, virt=Virt.TCG)
    assert plan.make(loaded(pool__on_donor_loss="poison"), PATHS, FACTS).pager.lost_pages == "poison"
    assert plan.make(loaded(), PATHS, without).pager.lost_pages == "wait"
    with pytest.raises(Refused, match=r"pool\.on_donor_loss: poison needs KVM"):
        plan.make(loaded(pool__on_donor_loss="poison"), PATHS, without)


def test_tiering_is_by_damon_unless_something_else_is_wanted() -> None:
    without = dataclasses.replace(FACTS, virt=Virt.TCG)

    def chosen(facts: HostFacts, **settings: object) -> tuple[str, How]:
        tiering = plan.make(loaded(**settings), PATHS, facts).guest.tiering
        return str(tiering), tiering.otherwise

    assert chosen(FACTS) == ("DAMON: KVM; promotes at most 53 MiB/s", How.NUMA)
    assert chosen(without) == ("DAMON: emulated; promotes at most 53 MiB/s", How.OFF)
    numa = ("NUMA balancing: guest.tiering is numa; promotes at most 4 MiB/s", How.OFF)
    assert chosen(without, guest__tiering="numa") == numa
    assert chosen(FACTS, guest__tiering="off")[0] == "off: guest.tiering is off"
    assert chosen(FACTS, guest__tiering=True)[0].startswith("DAMON: guest.tiering is damon;")


@pytest.mark.parametrize(
    ("read", "write", "limit"), [(1250, 300, 30), (118, 118, 11), (5, 90, 1), (50_000, 40_000, 4000)]
)
def test_promotion_takes_a_part_of_the_slowest_link_that_was_measured(read: int, write: int, limit: int) -> None:
    fast = assumed_link("b:10810")
    links = {
        "a": dataclasses.replace(fast, read_bytes_per_s=read * MIB, write_bytes_per_s=write * MIB),
        "b": dataclasses.replace(fast, read_bytes_per_s=60_000 * MIB, write_bytes_per_s=60_000 * MIB),
    }
    facts = dataclasses.replace(FACTS, links=links)
    assert plan.make(loaded(), PATHS, facts).guest.tiering.promote_mib_per_s == max(min(read, write) // 2, 1)
    numa = loaded(guest__tiering="numa")
    assert plan.make(numa, PATHS, facts).guest.tiering.promote_mib_per_s == limit
    emulated = dataclasses.replace(facts, virt=Virt.TCG)
    assert plan.make(numa, PATHS, emulated).guest.tiering.promote_mib_per_s == min(limit, 4)


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
    assert caught.value.why == "the guest's kernel needs 544MiB of it to manage its memory"
    assert caught.value.hint == "at least --memory 768MiB"


@pytest.mark.parametrize(("memory", "remote"), [("384M", "8G"), ("768M", "32G"), ("1280M", "64G")])
def test_local_memory_that_is_just_enough_is_taken(memory: str, remote: str) -> None:
    plan.check_sizes(loaded(vm__memory=memory, vm__remote_memory=remote, pool__cache="64M"))
    with pytest.raises(UsageError, match="is too small beside"):
        plan.check_sizes(loaded(vm__memory=f"{int(memory[:-1]) - 128}M", vm__remote_memory=remote))


@pytest.mark.parametrize("memory", [384 * MIB, 4 * GIB, 64 * GIB])
def test_node_1_has_nothing_at_boot_that_the_guests_kernel_may_use(memory: int) -> None:
    """Memory at boot ends at no multiple of a memory block, so that Linux takes the DIMM in its smallest blocks."""
    dealt = plan.local_memory(memory, 8 * GIB)
    assert dealt == plan.LocalMemory(memory + 4 * MIB, 4 * MIB, node1_hidden=True)
    assert dealt.node0_bytes % MEMORY_BLOCK_BYTES
    assert plan.local_memory(memory, 0) == plan.LocalMemory(memory, 0)


@pytest.mark.parametrize("remote", [128 * MIB, 4 * GIB, 32 * GIB, 60 * GIB, 64 * GIB])
def test_node_1_of_an_image_with_a_boot_loader_has_room_for_all_its_page_tables(remote: int) -> None:
    dealt = plan.local_memory(4 * GIB, remote, direct_boot=False)
    assert (dealt.node0_bytes, dealt.node1_hidden) == (4 * GIB, False)
    assert 8 * MIB <= dealt.node1_bytes - remote // 512 <= 16 * MIB
    assert (dealt.node0_bytes + dealt.node1_bytes) % MEMORY_BLOCK_BYTES


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
    assert MEMORY_BLOCK_BYTES == 128 * MIB
