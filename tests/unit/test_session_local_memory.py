# SPDX-License-Identifier: MIT
"""A VM for which this machine has too little memory is refused with figures before its start."""

from __future__ import annotations

import dataclasses
import re

import pytest

from ghostbox import config
from ghostbox.errors import Refused
from ghostbox.memserver.memory import MemoryFacts
from ghostbox.plan import plan
from ghostbox.plan.plan import Virt
from ghostbox.session import local_memory
from ghostbox.session.local_memory import Need
from ghostbox.units import GIB, MIB
from helpers.facts import FACTS, PATHS

WANTED = Need(23 * GIB, GIB, 512 * MIB)


def judged(facts: MemoryFacts, others: dict[str, int] | None = None) -> None:
    made = plan.make(config.load({"vm.name": "box", "vm.memory": "23G"}), PATHS, FACTS)
    local_memory.judge(made, WANTED, facts, others or {})


def test_vm_that_is_too_large_is_refused_with_what_would_fit() -> None:
    with pytest.raises(
        Refused, match=r"VM 'box' needs 24\.5 GiB of this machine's memory, and 19\.8 GiB are free"
    ) as caught:
        judged(MemoryFacts(24 * GIB, 20275 * MIB))
    assert caught.value.why == "23 GiB for the guest, 1 GiB for the cache, 512 MiB for QEMU and the pager"
    assert caught.value.hint is not None
    assert re.match("--memory 18688MiB would fit; .*; to start it all the same: --overcommit", caught.value.hint)
    judged(MemoryFacts(32 * GIB, 25 * GIB))


def test_memory_that_running_vms_have_not_touched_yet_is_not_free() -> None:
    judged(MemoryFacts(32 * GIB, 26 * GIB), {"other": GIB})
    with pytest.raises(Refused, match=r"23 GiB are free") as caught:
        judged(MemoryFacts(32 * GIB, 26 * GIB), {"other": 3 * GIB})
    assert "of 26 GiB available, 3 GiB to 'other' are promised: it runs already" in str(caught.value.why)


def test_limit_of_a_control_group_is_named() -> None:
    with pytest.raises(Refused) as caught:
        judged(MemoryFacts(GIB, 200 * MIB, "/sys/fs/cgroup/box"))
    assert "the limit of control group /sys/fs/cgroup/box counts" in str(caught.value.why)
    assert str(caught.value.hint).startswith("end something that uses memory, or lower vm.memory and pool.cache; ")


def test_an_emulated_guest_needs_more_than_one_under_kvm() -> None:
    kvm, tcg = (local_memory.need(GIB, GIB, 32 * GIB, virt) for virt in (Virt.KVM, Virt.TCG))
    assert kvm.overhead_bytes < tcg.overhead_bytes < 512 * MIB
    assert kvm.total_bytes == 2 * GIB + kvm.overhead_bytes


def test_plan_that_is_made_is_what_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_memory, "read_facts", lambda member: MemoryFacts(8 * GIB, 6 * GIB))
    made = plan.make(config.load({"vm.name": "box", "vm.memory": "4G"}), PATHS, FACTS)
    local_memory.check(made, PATHS)
    with pytest.raises(Refused, match="VM 'box' needs"):
        local_memory.check(dataclasses.replace(made, memory_bytes=6 * GIB), PATHS)
