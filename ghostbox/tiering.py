# SPDX-License-Identifier: MIT
"""Memory tiering in the guest: whether its kernel moves pages between the nodes by itself, how fast at most. Pure.

Promotion is NUMA balancing's mode 2 (admin-guide/sysctl/kernel.rst), demotion is reclaim to the slower node instead of
dropping or swapping (ABI/testing/sysfs-kernel-mm-numa). A kernel with two nodes turns NUMA balancing's mode 1 on by
itself (check_numabalancing_enable, mm/mempolicy.c), which looks for pages to move by the same faults: so off is said,
too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ghostbox.prediction import Link
from ghostbox.units import MIB

CHOICES = ("auto", "on", "off")

UNMEASURED_MIB_PER_S = 8
"""Promotion over a link that nobody measured: less than a tenth of Gigabit Ethernet."""

EMULATED_MIB_PER_S = 4
_LINK_PART = 10


@dataclass(frozen=True)
class Tiering:
    """Whether the guest's kernel demotes and promotes, and why it does (not).

    ``promote_mib_per_s`` is the most that is promoted (kernel.numa_balancing_promote_rate_limit_MBps; they are MiB).
    """

    on: bool
    why: str
    promote_mib_per_s: int = UNMEASURED_MIB_PER_S

    def __str__(self) -> str:
        """Return it in words."""
        if not self.on:
            return f"off: {self.why}"
        return f"on: {self.why}; promotes at most {self.promote_mib_per_s} MiB/s"

    @property
    def script(self) -> str:
        """What root runs in the guest, at each boot. A kernel that knows nothing of tiers has them off already."""
        if not self.on:
            return (
                "echo 0 > /proc/sys/kernel/numa_balancing || true; "
                "echo false > /sys/kernel/mm/numa/demotion_enabled || true"
            )
        return (
            f"echo {self.promote_mib_per_s} > /proc/sys/kernel/numa_balancing_promote_rate_limit_MBps; "
            "echo 2 > /proc/sys/kernel/numa_balancing; echo true > /sys/kernel/mm/numa/demotion_enabled"
        )


def choose(wanted: str, *, emulated: bool, links: Iterable[Link] = ()) -> Tiering:
    """Return what becomes of ``guest.tiering``.

    Emulated, it costs more than it brings (ARCHITECTURE.md, "Where the time of a fault goes").

    Args:
        wanted: one of `CHOICES`.
        emulated: the guest runs without KVM.
        links: the links to its donors that were measured.
    """
    on = not emulated if wanted == "auto" else wanted == "on"
    machine = "emulated" if emulated else "KVM"
    why = machine if wanted == "auto" else f"guest.tiering is {wanted}"
    return Tiering(on, why, promote_mib_per_s(links, emulated=emulated))


def promote_mib_per_s(links: Iterable[Link], *, emulated: bool) -> int:
    """Return a tenth of the slowest link, so that the guest's own accesses go first.

    A page that is promoted is read, and another one is written in its place. An emulated processor is slower than
    any link.
    """
    slowest = min((min(link.read_bytes_per_s, link.write_bytes_per_s) for link in links), default=None)
    rate = UNMEASURED_MIB_PER_S if slowest is None else max(int(slowest / _LINK_PART) // MIB, 1)
    return min(rate, EMULATED_MIB_PER_S) if emulated else rate
