# SPDX-License-Identifier: MIT
"""Check that this machine has the local memory that a VM will take, before anything of the VM is made.

QEMU and the pager take memory as the guest touches it. So a VM that is too large starts well, and later the kernel
kills it or something else. Compared is the memory that is available now, less what running VMs have not touched yet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ghostbox import pager
from ghostbox.errors import Refused
from ghostbox.memserver.memory import MemoryFacts, read_facts
from ghostbox.paths import Paths, VmPaths
from ghostbox.plan.plan import Virt, VmPlan
from ghostbox.session.record import Book, Made, Record, VmState, names
from ghostbox.system import hypervisor
from ghostbox.units import KIB, MEMORY_BLOCK_BYTES, MIB, PAGE_BYTES, exact_bytes, format_bytes

_QEMU_BYTES = 128 * MIB
"""QEMU's own memory beside the guest's: its heap, page tables, stacks. The estimate is on the high side."""
_TCG_BYTES = 192 * MIB
"""The additional memory of an emulated guest: translated code (domain_xml.py limits it to 128 MiB) and its tables."""
_PAGER_BYTES = 64 * MIB
_PAGER_SHARE = 4096
"""The pager locks its buffers, and keeps about one byte for each page (4096 bytes) of the remote memory."""


@dataclass(frozen=True)
class Need:
    """Holds the memory of this machine that a VM takes when the guest has touched all of its own, in bytes."""

    guest_bytes: int
    cache_bytes: int
    overhead_bytes: int

    @property
    def total_bytes(self) -> int:
        """Return the sum."""
        return self.guest_bytes + self.cache_bytes + self.overhead_bytes


def need(memory_bytes: int, cache_bytes: int, remote_bytes: int, virt: Virt) -> Need:
    """Return what a VM of these sizes takes of this machine's memory."""
    overhead = _QEMU_BYTES + (_TCG_BYTES if virt is Virt.TCG else 0) + _PAGER_BYTES + remote_bytes // _PAGER_SHARE
    return Need(memory_bytes, cache_bytes, overhead)


def check(plan: VmPlan, paths: Paths) -> None:
    """Refuse a VM for which this machine has too little memory.

    Raises:
        Refused: the memory is too small; the error has the figures, and what would fit.
    """
    wanted = need(
        plan.local.node0_bytes + plan.local.node1_bytes, plan.pager.cache_bytes, plan.remote_memory_bytes, plan.virt
    )
    judge(plan, wanted, read_facts(member=_group_member(plan.libvirt_uri)), dict(promised(paths, without=plan.name)))


def judge(plan: VmPlan, wanted: Need, facts: MemoryFacts, others: dict[str, int]) -> None:
    """Compare a VM's need with the available memory; ``others`` has the bytes that other VMs will still take, by name.

    Raises:
        Refused: see `check`.
    """
    free_bytes = facts.available_bytes - sum(others.values())
    if wanted.total_bytes <= free_bytes:
        return
    parts = [
        f"{format_bytes(wanted.guest_bytes)} for the guest, {format_bytes(wanted.cache_bytes)} for the cache,"
        f" {format_bytes(wanted.overhead_bytes)} for QEMU and the pager"
    ]
    if others:
        promised_to = ", ".join(f"{format_bytes(size)} to '{name}'" for name, size in others.items())
        parts.append(f"of {format_bytes(facts.available_bytes)} available, {promised_to} are promised: it runs already")
    if facts.limited_by is not None:
        parts.append(f"the limit of control group {facts.limited_by} counts")
    raise Refused(
        f"VM '{plan.name}' needs {format_bytes(wanted.total_bytes)} of this machine's memory, and"
        f" {format_bytes(max(free_bytes, 0))} are free",
        why="; ".join(parts),
        hint=f"{_what_fits(plan, wanted, free_bytes)}; to start it all the same: --overcommit",
    )


def promised(paths: Paths, *, without: str) -> Iterator[tuple[str, int]]:
    """Yield each running VM's name, and how many bytes of this machine's memory it has not touched yet."""
    for name in names(paths):
        files = paths.vm(name)
        record = None if name == without else Book(files).load()
        if record is None or record.state is VmState.STOPPED or Made.DOMAIN not in record.made:
            continue
        qemu = hypervisor.find_qemu(record.uuid)
        if qemu is None:
            continue
        wanted = need(record.memory_bytes, record.cache_bytes, record.remote_memory_bytes, Virt(record.virt))
        left = wanted.total_bytes - _PAGER_BYTES - _anonymous_bytes(qemu.pid) - _cached_bytes(record, files)
        if left > 0:
            yield name, left


def _what_fits(plan: VmPlan, wanted: Need, free_bytes: int) -> str:
    """Return the largest local memory with which the VM would fit, or general advice if none would."""
    room = free_bytes - wanted.total_bytes + plan.memory_bytes
    fitting = room // MEMORY_BLOCK_BYTES * MEMORY_BLOCK_BYTES
    if fitting < 2 * MEMORY_BLOCK_BYTES:
        return "end something that uses memory, or lower vm.memory and pool.cache"
    return f"--memory {exact_bytes(fitting)} would fit; or lower pool.cache, or end something that uses memory"


def _group_member(libvirt_uri: str) -> str:
    """Return the process whose control group limits what QEMU may take, as /proc names it.

    A system libvirt under systemd starts QEMU in a slice of its own, to which the limits of this login do not apply.
    """
    elsewhere = libvirt_uri.endswith(":///system") and Path("/run/systemd/system").is_dir()
    return "1" if elsewhere else "self"


def _anonymous_bytes(pid: int) -> int:
    """Return the private memory that a process has touched: for QEMU, the guest's node 0 and its own."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = next((line.split()[1] for line in lines if line.startswith("RssAnon:")), "0")
    return int(found) * KIB


def _cached_bytes(record: Record, files: VmPaths) -> int:
    found = pager.status(files.pager_control)
    if found is None:
        return 0
    n_pages = found.pages.resident + found.pages.inactive
    return min(n_pages * PAGE_BYTES, record.cache_bytes)
