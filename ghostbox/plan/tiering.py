# SPDX-License-Identifier: MIT
"""Choose the guest's memory tiering: what moves hot pages to node 0 and cold pages to node 1, and how fast.

There are two ways. DAMON (admin-guide/mm/damon/usage.rst) reads the accessed bits that the processor sets anyway; its
schemes ``migrate_hot`` and ``migrate_cold`` with the filter ``young`` (Linux 6.11) move single pages, and a small loop
in the guest sets their pace (`DAMON`). NUMA balancing's mode 2 (admin-guide/sysctl/kernel.rst) finds hot pages by page
faults of its own, and reclaim demotes (ABI/testing/sysfs-kernel-mm-numa).

A kernel with two nodes turns on NUMA balancing's mode 1 by itself (check_numabalancing_enable, mm/mempolicy.c), which
causes the same faults; so "off" has to be set explicitly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ghostbox.config.tiering import How
from ghostbox.plan.prediction import Link, assumed_link
from ghostbox.units import MIB

EMULATED_NUMA_MIB_PER_S = 4
ROOM_SHARE = 24
"""DAMON's loop keeps a 24th of node 0 free, for pages to promote."""

_NUMA_LINK_PART = 10
_DAMON_LINK_PART = 2
_NAMES = {How.DAMON: "DAMON", How.NUMA: "NUMA balancing", How.OFF: "off"}

# Numbers are bytes, unless noted. Every `pause` seconds the loop does this:
#
# - Promotion needs room on node 0, between `floor` (above the watermark at which the kernel begins to reclaim) and
#   `want`. Without room DAMON would copy a page from node 1 to node 1. DAMON looks at no more memory than there is
#   room, since all of it may be young, and at no more than the link can transfer.
# - Cold pages are demoted only while there is less room than `want`, so that no page leaves node 0 without need. A page
#   is cold if it was not accessed between two looks, `age` seconds apart.
# - Pages must not move back and forth: if half of node 0 is exchanged within a minute, or a twentieth in a whole
#   minute, the moved pages are not cold enough, and the age is doubled. After minutes with fewer moves it is halved
#   again; each time that this proves wrong, the loop waits for twice as many such minutes. The age has a limit, since
#   otherwise a hot set that moves later would have to wait long.
#
# The guest's kernel keeps room for itself on node 0 by a high watermark, since it has nothing to reclaim (plan.py).
# With demotion it can reclaim, so the loop lowers the watermark.
DAMON = r"""
kdamonds=/sys/kernel/mm/damon/admin/kdamonds
nodes=/sys/devices/system/node
page=4096 mib=1048576
rate=$((RATE * mib))
youngest=8 oldest=32 sweep=4 slow_sweep=32
most=$((256 * mib)) least=$((32 * mib))

said() { echo "$*"; echo "$*" > /run/ghostbox/tiering; }

fallback() {
    echo 0 2> /dev/null > $kdamonds/nr_kdamonds
    said "OTHERWISE: this kernel has no DAMON that moves young pages (Linux 6.11)"
    OTHERWISE_SCRIPT
    exit 0
}

# The addresses from the first to the last block of a node that is in use, and how much of it is.
extent() {
    local block memory online number first= last=
    read -r block < /sys/devices/system/memory/block_size_bytes
    block=$((16#$block)) size=0
    for memory in $nodes/node$1/memory[0-9]*; do
        read -r online < "$memory/online"
        [ "$online" = 1 ] || continue
        number=${memory##*/memory}
        size=$((size + block))
        [ -n "$first" ] && [ "$first" -le "$number" ] || first=$number
        [ -n "$last" ] && [ "$last" -ge "$number" ] || last=$number
    done
    [ "$size" -gt 0 ] || exit 0
    start=$((first * block)) end=$(((last + 1) * block))
}

# One kernel thread, one scheme: it moves pages of a node that are young (N: those that are not are left out), or that
# are not (Y). To look at a page's accessed bit is to clear it.
kdamond() { # number, action, to node, what is left out
    local thread=$kdamonds/$1 context=$kdamonds/$1/contexts/0 scheme=$kdamonds/$1/contexts/0/schemes/0
    echo 1 > $thread/contexts/nr_contexts &&
        echo paddr > $context/operations &&
        echo 500000 > $context/monitoring_attrs/intervals/sample_us &&
        echo 500000 > $context/monitoring_attrs/intervals/aggr_us &&
        echo 10 > $context/monitoring_attrs/nr_regions/min &&
        echo 20 > $context/monitoring_attrs/nr_regions/max &&
        echo 1 > $context/targets/nr_targets &&
        echo 1 > $context/targets/0/regions/nr_regions &&
        echo $start > $context/targets/0/regions/0/start &&
        echo $end > $context/targets/0/regions/0/end &&
        echo 1 > $context/schemes/nr_schemes &&
        echo $2 > $scheme/action &&
        echo $3 > $scheme/target_nid &&
        echo 18446744073709551615 > $scheme/access_pattern/sz/max &&
        echo 4294967295 > $scheme/access_pattern/nr_accesses/max &&
        echo 4294967295 > $scheme/access_pattern/age/max &&
        echo $page > $scheme/quotas/bytes &&
        echo 500 > $scheme/quotas/reset_interval_ms &&
        echo 1 > $scheme/filters/nr_filters &&
        echo young > $scheme/filters/0/type &&
        echo $4 > $scheme/filters/0/matching
}

# How much was promoted since this was asked before: into `moved`.
promoted=0
promoted() {
    local total
    echo update_schemes_stats > $kdamonds/0/state
    read -r total < $kdamonds/0/contexts/0/schemes/0/stats/sz_applied
    moved=$((total - promoted)) promoted=$total
}

# What a scheme may look at in half a second.
quota=(0 0)
look_at() { # thread, bytes
    local bytes=$(($2 / mib * mib))
    [ $bytes -gt 0 ] || bytes=$page
    [ ${quota[$1]} = $bytes ] && return
    quota[$1]=$bytes
    echo $bytes > $kdamonds/$1/contexts/0/schemes/0/quotas/bytes
    echo commit > $kdamonds/$1/state
}

# Emulated, a processor sees the accessed bit once and keeps the translation until another process runs on it.
forget_translations() {
    local processor
    for processor in /sys/devices/system/cpu/cpu[0-9]*; do
        taskset --cpu-list ${processor##*cpu} true
    done
}

free_here() {
    local lines value
    mapfile -t -n 2 lines < $nodes/node0/meminfo
    read -r _ _ _ value _ <<< "${lines[1]}"
    free=$((value * 1024))
}

watermark() {
    local lines line key value node=
    low=0
    mapfile -t lines < /proc/zoneinfo
    for line in "${lines[@]}"; do
        read -r key value _ <<< "$line"
        case $key in
        Node) node=${value%,} ;;
        low) [ $node = 0 ] && low=$((low + value * page)) ;;
        esac
    done
}

echo 0 > /proc/sys/kernel/numa_balancing
echo true > /sys/kernel/mm/numa/demotion_enabled
echo 2 2> /dev/null > $kdamonds/nr_kdamonds || fallback
extent 0
size_here=$size
kdamond 1 migrate_cold 1 Y || fallback
extent 1
kdamond 0 migrate_hot 0 N || fallback
for thread in 0 1; do echo on > $kdamonds/$thread/state || fallback; done
echo 50 > /proc/sys/vm/watermark_scale_factor
said "DAMON"
watermark
floor=$((low + mib)) want=$((low + mib + size_here / ROOM_SHARE))
age=$youngest patience=1 calm=0 sum=0 seconds=0 slow=0 pause=1
while sleep $pause; do
    if [ EMULATED = yes ]; then forget_translations; fi
    seconds=$((seconds + pause))
    promoted
    sum=$((sum + moved))
    if [ $((moved * 200)) -gt $((size_here * pause)) ]; then slow=0; else slow=$((slow + pause)); fi
    free_here
    room=$((free - floor))
    if [ $slow -lt 10 ]; then
        pace=$((size / sweep / 2 < most ? size / sweep / 2 : most)) pause=1
    else
        pace=$((size / slow_sweep / 2 < least ? size / slow_sweep / 2 : least)) pause=4
    fi
    [ $moved -gt $((rate * pause / 2)) ] && pace=$((rate / 2))
    look_at 0 $((room < pace ? room : pace))
    look_at 1 $((free < want ? size_here / age / 2 : 0))
    if [ $((sum * 2)) -gt $size_here ] || [ $seconds -ge 60 ]; then
        if [ $((sum * 20)) -gt $size_here ]; then
            [ $calm -gt 0 ] && [ $patience -lt 16 ] && patience=$((patience * 2))
            age=$((age * 2)) calm=0
            [ $age -le $oldest ] || age=$oldest
            echo "cold is what was not used for $age s"
        elif [ $((calm += 1)) -ge $patience ] && [ $age -gt $youngest ]; then
            age=$((age / 2)) calm=1
            echo "cold is what was not used for $age s"
        fi
        sum=0 seconds=0
    fi
done
"""

_START = """\
if test -d /run/systemd/system && test -d /sys/devices/system/node/node1 && command -v bash > /dev/null; then
mkdir -p /run/ghostbox
cat > /run/ghostbox/tier << 'END'
SCRIPT
END
systemd-run --quiet --no-block --unit=ghostbox-tiering bash /run/ghostbox/tier
else
OTHERWISE_SCRIPT
fi
"""
# This stops a script that was run before (``bench --vm``); at boot there is none.
_STOP = """\
if test -e /run/ghostbox/tier; then
systemctl stop ghostbox-tiering.service
for state in /sys/kernel/mm/damon/admin/kdamonds/*/state; do echo off > $state; done
rm -f /run/ghostbox/tier /run/ghostbox/tiering
fi 2> /dev/null
"""
_OFF = "echo 0 > /proc/sys/kernel/numa_balancing || true; echo false > /sys/kernel/mm/numa/demotion_enabled || true"


@dataclass(frozen=True)
class Tiering:
    """Says whether pages move between the guest's nodes, how, and why.

    ``promote_mib_per_s`` is the limit of promotion. ``how`` has a default for records of earlier versions.
    ``otherwise`` is used in a guest whose kernel's DAMON cannot move pages.
    """

    on: bool
    why: str
    promote_mib_per_s: int = 8
    how: How = How.NUMA
    otherwise: How = How.OFF
    emulated: bool = False

    def __str__(self) -> str:
        """Return the choice in words."""
        if not self.on:
            return f"off: {self.why}"
        return f"{_NAMES[self.how]}: {self.why}; promotes at most {self.promote_mib_per_s} MiB/s"

    @property
    def script(self) -> str:
        """Return the script that root runs in the guest at each boot. A kernel without memory tiers ignores it."""
        return _STOP + self._start_script

    @property
    def _start_script(self) -> str:
        if not self.on:
            return _OFF
        numa = numa_script(self.promote_mib_per_s)
        if self.how is not How.DAMON:
            return numa
        otherwise = numa if self.otherwise is How.NUMA else _OFF
        loop = DAMON.strip().replace("RATE", str(self.promote_mib_per_s))
        loop = loop.replace("ROOM_SHARE", str(ROOM_SHARE))
        loop = loop.replace("EMULATED", "yes" if self.emulated else "no")
        loop = loop.replace("OTHERWISE:", f"{_NAMES[self.otherwise]}:")
        return _START.replace("SCRIPT\nEND", f"{loop}\nEND").replace("OTHERWISE_SCRIPT", otherwise)


def numa_script(mib_per_s: int) -> str:
    """Return the script that turns on NUMA balancing's tiering."""
    return (
        f"echo {mib_per_s} > /proc/sys/kernel/numa_balancing_promote_rate_limit_MBps; "
        "echo 2 > /proc/sys/kernel/numa_balancing; echo true > /sys/kernel/mm/numa/demotion_enabled"
    )


def choose(wanted: str, *, emulated: bool, links: Iterable[Link] = ()) -> Tiering:
    """Return the tiering for ``guest.tiering``: ``auto``, or one of `How`.

    In an emulated guest, NUMA balancing costs more than it gains (docs/lab/guest.md).

    Args:
        wanted: the configured value.
        emulated: the guest runs without KVM.
        links: the measured links to the VM's donors.
    """
    machine = "emulated" if emulated else "KVM"
    how, why = (How.DAMON, machine) if wanted == "auto" else (How(wanted), f"guest.tiering is {wanted}")
    otherwise = How.OFF if emulated else How.NUMA
    return Tiering(how is not How.OFF, why, promote_mib_per_s(links, how, emulated=emulated), how, otherwise, emulated)


def promote_mib_per_s(links: Iterable[Link], how: How, *, emulated: bool) -> int:
    """Return a part of the slowest link's rate (Gigabit Ethernet is assumed for links that were not measured).

    For each promoted page one page is read and another is written. DAMON promotes pages that were just used, which the
    program would have fetched at the next access: it gets half of the link. NUMA balancing gets a tenth, and little in
    an emulated guest, whose processor is slower than any link.
    """
    slowest = min((min(link.read_bytes_per_s, link.write_bytes_per_s) for link in links), default=None)
    if slowest is None:
        slowest = assumed_link("").read_bytes_per_s
    rate = max(int(slowest / (_DAMON_LINK_PART if how is How.DAMON else _NUMA_LINK_PART)) // MIB, 1)
    return min(rate, EMULATED_NUMA_MIB_PER_S) if emulated and how is How.NUMA else rate
