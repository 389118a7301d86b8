# SPDX-License-Identifier: MIT
"""Predict how remote memory performs, from measured links. All functions are pure: figures in, figures out.

The model:

    fault time    = round trip of a 4 KiB read over the link (p50) + an empty fault on this host (p50)
    sequential    = a readahead window ÷ (its time on the link + one fault + the time to put its pages in place)
    slowdown      = 1 + (miss rate × fault time + second chances × empty fault) ÷ time of one access to local memory

Its assumptions:

- The shown fault time is a sum of medians, the slowdown uses means: a rare fault that has to wake a sleeping processor
  weighs as much as ten others.
- The two parts of a fault are measured separately (``ghostbox donor bench``), waiting in the same way as the pager. The
  pager's own work (checksum, bookkeeping: under 2 µs) is left out.
- The work is that of ``ghostbox bench``: independent accesses to `ZIPF_PAGES` pages by Zipf's law with exponent 0.9.
- The cache is modelled with second chances: a page is mapped for a time, then inactive (a tenth of the cache is). An
  inactive page that is touched comes back by a fault without the network; a page that is not touched leaves.
  `steady_state` has the equations; they predict slightly more misses than LRU. The pager's real policy
  (qemu/pager/page/reclaim_policy.h) protects pages that are used again and misses less: in simulations
  (docs/paging-policy.md) a tenth less at 75 %, a sixth less at 50 %, a fifth less at 25 %.
- *Locality* is the share of those pages that local memory holds: of the pages in use, not of the VM's size.
- Nothing else runs: no second thread that waits meanwhile, no tiering by the guest's kernel (which would find the hot
  pages and improve the result), no KVM or TCG (which makes each fault a few µs longer).
- Write-back runs in parallel, on its own thread and connection.
- With several donors, each gets faults in proportion to its share.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from ghostbox.units import KIB, PAGE_BYTES

LOCALITY_PERCENTS = (75, 50, 25)
ZIPF_EXPONENT = 0.9
ZIPF_PAGES = 32768  # equals 128 MiB, the array of `ghostbox bench`
WINDOW_BYTES = 256 * KIB
PASS_BYTES = 3e9
PASS_BYTES_PER_S = 3e9  # one thread that adds up, compares or searches; copying alone is faster
LOOKUPS = 10_000
INACTIVE_PART = 0.1  # RECLAIM_INACTIVE_SHARE of the pager
# A page is copied into the memfd and the page table with UFFDIO_COPY in this time (docs/lab/faults.md).
_INSTALL_US = 1.6
_US = 1e-6
# Neighbouring ranks are grouped; groups of 10 % change the rates by less than 1 %.
_GROUP = 1.1
_SUMMED_SINGLY = 64


@dataclass(frozen=True)
class Link:
    """Holds the measurements of the link to one donor. ``measured_at`` (ISO 8601) is None if they are only assumed."""

    address: str
    measured_at: str | None
    rtt_p50_us: float
    rtt_p99_us: float
    rtt_mean_us: float
    read_bytes_per_s: float
    write_bytes_per_s: float


@dataclass(frozen=True)
class HostCosts:
    """Holds this host's part of a fault. ``measured_at`` is None if the figures are only assumed.

    ``fault_us`` is an empty round trip of a userfaultfd (p50), ``fault_mean_us`` its mean. ``access_us`` is one step of
    the Zipf work in local memory.
    """

    measured_at: str | None
    fault_us: float
    fault_mean_us: float
    access_us: float


@dataclass(frozen=True)
class Slowdown:
    """Says how much longer the work takes than in local memory alone, if this share of the pages in use is local."""

    locality_percent: int
    miss_rate: float
    second_chance_rate: float
    slowdown: float


@dataclass(frozen=True)
class Everyday:
    """Holds an everyday task, and the seconds it takes with all its data on donors and with all of it local."""

    what: str
    remote_s: float
    local_s: float


@dataclass(frozen=True)
class Forecast:
    """Holds a prediction. ``assumed``: some figures were not measured; ``notes`` say which, and how to measure them.

    ``fault_us`` is the median, ``fault_mean_us`` the mean that the slowdowns use.
    """

    assumed: bool
    fault_us: float
    fault_mean_us: float
    sequential_bytes_per_s: float
    slowdowns: tuple[Slowdown, ...]
    links: tuple[Link, ...]
    host: HostCosts
    notes: tuple[str, ...] = ()
    everyday: tuple[Everyday, ...] = ()


ASSUMED_HOST = HostCosts(None, fault_us=10.0, fault_mean_us=15.0, access_us=0.02)
MODEL_NOTE = (
    "slowdown of accesses by Zipf 0.9 of one thread, without the guest's tiering; locality is the share of what is in"
    " use that is in local memory"
)


def assumed_link(address: str) -> Link:
    """Return the assumption for a link that was not measured: Gigabit Ethernet with one switch."""
    return Link(
        address,
        None,
        rtt_p50_us=150.0,
        rtt_p99_us=400.0,
        rtt_mean_us=165.0,
        read_bytes_per_s=112e6,
        write_bytes_per_s=112e6,
    )


def predict(shares: Mapping[str, int], measured: Mapping[str, Link], host: HostCosts | None) -> Forecast:
    """Return the prediction for memory on these donors.

    Args:
        shares: bytes on each donor, by address.
        measured: the links that were measured, by the same addresses.
        host: this host's part, if it was measured.
    """
    links = [measured.get(address, assumed_link(address)) for address in shares]
    costs = host or ASSUMED_HOST
    weights = [n_bytes / sum(shares.values()) for n_bytes in shares.values()]
    faults = _weighted([fault_us(link, costs) for link in links], weights)
    mean_us = _weighted([fault_mean_us(link, costs) for link in links], weights)
    seconds_a_byte = _weighted([1.0 / sequential_bytes_per_s(link, costs) for link in links], weights)
    notes = [MODEL_NOTE]
    unknown = [link.address for link in links if link.measured_at is None]
    if unknown:
        notes.append(
            f"not measured, so assumed to be Gigabit Ethernet: {', '.join(unknown)};"
            f" to measure: ghostbox donor bench {' '.join(unknown)}"
        )
    if costs.measured_at is None:
        notes.append("this host's own part is assumed, too; `ghostbox donor bench` measures it beside the links")
    return Forecast(
        assumed=bool(unknown) or costs.measured_at is None,
        fault_us=faults,
        fault_mean_us=mean_us,
        sequential_bytes_per_s=1.0 / seconds_a_byte,
        slowdowns=slowdowns(mean_us, costs),
        links=tuple(links),
        host=costs,
        notes=tuple(notes),
        everyday=everyday(mean_us, 1.0 / seconds_a_byte, costs),
    )


def everyday(mean_us: float, bytes_per_s: float, host: HostCosts) -> tuple[Everyday, ...]:
    """Return what the figures mean for everyday tasks, none of whose data is local at the start.

    A program that looks at all of its data does so at `PASS_BYTES_PER_S`; readahead brings the data in parallel, so the
    slower of the two rates counts. Each look-up touches a page that was not read before, and waits for it.
    """
    return (
        Everyday(
            "a pass over 3 GB of data",
            remote_s=PASS_BYTES / min(PASS_BYTES_PER_S, bytes_per_s),
            local_s=PASS_BYTES / PASS_BYTES_PER_S,
        ),
        Everyday(
            f"{LOOKUPS:,} random look-ups in data",
            remote_s=LOOKUPS * mean_us * _US + LOOKUPS * host.access_us * _US,
            local_s=LOOKUPS * host.access_us * _US,
        ),
    )


def fault_us(link: Link, host: HostCosts) -> float:
    """Return the median time of a fault that is fetched over the link."""
    return link.rtt_p50_us + host.fault_us


def fault_mean_us(link: Link, host: HostCosts) -> float:
    """Return the mean time of a fault that is fetched over the link."""
    return link.rtt_mean_us + host.fault_mean_us


def sequential_bytes_per_s(link: Link, host: HostCosts) -> float:
    """Return the rate at which memory arrives that is read in order."""
    transfer_us = WINDOW_BYTES / link.read_bytes_per_s / _US
    install_us = WINDOW_BYTES / PAGE_BYTES * _INSTALL_US
    return WINDOW_BYTES / ((transfer_us + host.fault_us + install_us) * _US)


def slowdowns(mean_us: float, host: HostCosts) -> tuple[Slowdown, ...]:
    """Return the slowdown at each locality for faults of this mean time."""
    found = []
    for percent in LOCALITY_PERCENTS:
        state = steady_state(percent / 100)
        waited_us = state.miss_rate * mean_us + state.second_chance_rate * host.fault_mean_us
        found.append(Slowdown(percent, state.miss_rate, state.second_chance_rate, 1.0 + waited_us / host.access_us))
    return tuple(found)


@dataclass(frozen=True)
class SteadyState:
    """Holds the shares of all accesses that miss the cache, and that find an inactive page."""

    miss_rate: float
    second_chance_rate: float


@cache
def steady_state(locality: float, *, n_pages: int = ZIPF_PAGES, exponent: float = ZIPF_EXPONENT) -> SteadyState:
    """Return how Zipf accesses do with a cache for ``locality`` × ``n_pages`` under the pager's policy.

    A page is mapped for a time T, then inactive for at most a time U (both counted in accesses). With probability a = 1
    - exp(-pU), where p is its share of the accesses, it is touched there and starts anew; otherwise it leaves, until it
    is missed (after 1/p). So a stay lasts (T + a/p) / (1 - a) and holds a / (1 - a) second chances. T and U follow from
    two conditions: the present pages fill the cache, and the inactive pages their part of it (as in Che's approximation
    for LRU).
    """
    if locality >= 1.0:
        return SteadyState(0.0, 0.0)
    groups = _zipf_groups(n_pages, exponent)

    def mapped_time(ratio: float) -> float:
        return _solve(lambda time: _flow(groups, time, time * ratio).present, locality * n_pages, 1.0, 1e12)

    def inactive_part(ratio: float) -> float:
        flow = _flow(groups, mapped_time(ratio), mapped_time(ratio) * ratio)
        return flow.inactive / flow.present

    ratio = _solve(inactive_part, INACTIVE_PART, 1e-3, 1e2)
    flow = _flow(groups, mapped_time(ratio), mapped_time(ratio) * ratio)
    return SteadyState(flow.misses, flow.second_chances)


@dataclass
class _Flow:
    present: float = 0.0
    inactive: float = 0.0
    misses: float = 0.0
    second_chances: float = 0.0


def _flow(groups: Sequence[tuple[int, float]], mapped_time: float, inactive_time: float) -> _Flow:
    """Return the present and inactive pages, and the misses and second chances an access."""
    flow = _Flow()
    for count, share in groups:
        leaves = max(math.exp(-min(share * inactive_time, 700.0)), 1e-300)
        touched = 1.0 - leaves
        stay = (mapped_time + touched / share) / leaves
        cycle = stay + 1.0 / share
        flow.present += count * stay / cycle
        flow.inactive += count * (touched / share / leaves) / cycle
        flow.misses += count / cycle
        flow.second_chances += count * (touched / leaves) / cycle
    return flow


def _solve(function: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Return where a growing function reaches a value, to a thousandth."""
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if function(middle) < wanted else (low, middle)
    return high


@cache
def _zipf_groups(n_pages: int, exponent: float) -> tuple[tuple[int, float], ...]:
    """Return groups of ranks: how many ranks, and the share of all accesses that each rank gets."""
    edges = [1]
    while edges[-1] <= n_pages:
        edges.append(min(max(edges[-1] + 1, int(edges[-1] * _GROUP)), n_pages + 1))
    sums = [(last - first, _zipf_sum(first, last, exponent)) for first, last in itertools.pairwise(edges)]
    total = sum(weight for _, weight in sums)
    return tuple((count, weight / count / total) for count, weight in sums)


def _zipf_sum(first: int, last: int, exponent: float) -> float:
    """Return the sum of the weights of ranks ``first`` to ``last`` - 1; many ranks are integrated (midpoint rule)."""
    if last - first <= _SUMMED_SINGLY:
        return float(sum(rank**-exponent for rank in range(first, last)))
    low, high = first - 0.5, last - 0.5
    if exponent == 1.0:
        return math.log(high / low)
    return float((high ** (1.0 - exponent) - low ** (1.0 - exponent)) / (1.0 - exponent))


def _weighted(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True))
