# SPDX-License-Identifier: MIT
"""Turn the pager's counters, read at intervals, into the rates that ``ghostbox top`` shows.

`rates` is a pure function of two status answers (docs/reference/pager.md names their fields).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ghostbox import pager
from ghostbox.errors import NotRunning
from ghostbox.pager import health, page_map
from ghostbox.pager.health import Health
from ghostbox.pager.model import Histogram, PagerDonor, PagerStatus
from ghostbox.pager.page_map import PageMap
from ghostbox.paths import Paths
from ghostbox.session import Book
from ghostbox.system.processes import ControlError
from ghostbox.units import PAGE_BYTES


@dataclass(frozen=True)
class DonorRates:
    """Holds the rates of one donor in an interval; latencies are None if the donor had no requests.

    ``name`` is the donor's name for people, its URI where no name is known; ``absence`` says since when and why it is
    away.
    """

    uri: str
    name: str
    state: str
    absence: str
    requests_per_s: float
    read_bytes_per_s: float
    written_bytes_per_s: float
    p50_us: float | None
    p99_us: float | None
    errors: int


@dataclass(frozen=True)
class Sample:
    """Holds one interval of one VM.

    ``hit_rate``: faults that were answered without the network, as a share of all faults on existing pages.
    ``second_chance_rate``: zapped pages that were touched again, as a share of zapped pages. ``readahead_accuracy``:
    pages that were read ahead and used, as a share of those used or wasted. Each rate is None if its base is empty.
    ``slowest_donor``: the URI of the donor with the highest median latency, if there are two to compare. ``health``:
    what is wrong, with advice. ``map``: where the pages are, if it was asked for.
    """

    vm: str
    uptime_s: float
    interval_s: float
    faults_per_s: float
    fetched_per_s: float
    new_per_s: float
    found_again_per_s: float
    p50_us: float | None
    p99_us: float | None
    hit_rate: float | None
    second_chance_rate: float | None
    readahead_accuracy: float | None
    evicted_per_s: float
    cache_bytes: int
    resident_bytes: int
    inactive_bytes: int
    dirty_bytes: int
    remote_bytes: int
    total_bytes: int
    donors: tuple[DonorRates, ...]
    slowest_donor: str | None
    health: Health
    map: PageMap | None = None


def rates(
    vm: str, before: PagerStatus, after: PagerStatus, interval_s: float, names: Mapping[str, str] | None = None
) -> Sample:
    """Return the rates between two status answers of the same pager; ``names`` are the donors', by their URIs."""
    pages = after.pages

    def grown(counter: Callable[[PagerStatus], int]) -> int:
        return max(counter(after) - counter(before), 0)

    fetched, new = grown(lambda each: each.faults.missing_fetch), grown(lambda each: each.faults.missing_zero)
    again = grown(lambda each: each.faults.minor)
    faults = fetched + new + again + grown(lambda each: each.faults.wp)
    used, wasted = grown(lambda each: each.readahead.used), grown(lambda each: each.readahead.wasted)
    zapped = grown(lambda each: each.evictions.zapped)
    latency = _between(before.latency.fetch, after.latency.fetch)
    donors = _donors(before.donors, after.donors, interval_s, names or {})
    return Sample(
        vm=vm,
        uptime_s=float(after.uptime_s),
        interval_s=interval_s,
        faults_per_s=faults / interval_s,
        fetched_per_s=fetched / interval_s,
        new_per_s=new / interval_s,
        found_again_per_s=again / interval_s,
        p50_us=quantile_us(latency, 0.5),
        p99_us=quantile_us(latency, 0.99),
        hit_rate=_share(again, again + fetched),
        second_chance_rate=_share(grown(lambda each: each.evictions.second_chance), zapped),
        readahead_accuracy=_share(used, used + wasted),
        evicted_per_s=grown(lambda each: each.evictions.pages) / interval_s,
        cache_bytes=after.cache_bytes,
        resident_bytes=pages.resident * PAGE_BYTES,
        inactive_bytes=pages.inactive * PAGE_BYTES,
        dirty_bytes=pages.dirty * PAGE_BYTES,
        remote_bytes=pages.on_donor * PAGE_BYTES,
        total_bytes=pages.total * PAGE_BYTES,
        donors=donors,
        slowest_donor=slowest(donors),
        health=health.assess(vm, after, names),
    )


def quantile_us(buckets: Sequence[tuple[float, int]], q: float) -> float | None:
    """Return the upper bound of the bucket that holds the quantile; None if nothing was counted."""
    total = sum(count for _, count in buckets)
    for (upper_us, _), seen in zip(buckets, itertools.accumulate(count for _, count in buckets), strict=True):
        if seen > 0 and seen >= q * total:
            return upper_us
    return None


def slowest(donors: Sequence[DonorRates]) -> str | None:
    """Return the URI of the donor with the highest median latency, if there are two to compare."""
    asked = [(each.p50_us, each.uri) for each in donors if each.p50_us is not None]
    return max(asked)[1] if len(asked) > 1 else None


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


def watch(
    vm: str,
    paths: Paths,
    *,
    interval_s: float,
    count: int | None,
    with_map: bool = False,
    wait: Callable[[float], bool] = _sleep,
) -> Iterator[Sample]:
    """Yield a sample after each interval, ``count`` times, or until ``wait`` returns False.

    Raises:
        NotFound: no VM has this name.
        NotRunning: the pager does not answer, or it has ended.
    """
    before = _status(vm, paths, ended=False)
    before_s = time.monotonic()
    n_left = count
    while n_left is None or n_left > 0:
        if not wait(interval_s):
            return
        after = _status(vm, paths, ended=True)
        after_s = time.monotonic()
        if after.pid == before.pid:  # another pager counts from zero
            sample = rates(vm, before, after, after_s - before_s, _names(vm, paths))
            yield replace(sample, map=_map(vm, paths)) if with_map else sample
            n_left = None if n_left is None else n_left - 1
        before, before_s = after, after_s


def _status(vm: str, paths: Paths, *, ended: bool) -> PagerStatus:
    files = paths.vm(vm)
    found = pager.status(files.pager_control)
    if found is not None:
        return found
    if ended:
        raise NotRunning(f"the pager of VM '{vm}' has ended", hint=f"ghostbox status {vm}")
    Book(files).need(vm, paths)
    raise NotRunning(f"VM '{vm}' does not run: no pager answers on {files.pager_control}", hint=f"ghostbox up {vm}")


def _names(vm: str, paths: Paths) -> dict[str, str]:
    record = Book(paths.vm(vm)).load()
    return {} if record is None else record.donor_names()


def _map(vm: str, paths: Paths) -> PageMap | None:
    try:
        return page_map.ask(paths.vm(vm).pager_control)
    except ControlError as err:
        if err.code == "gone":  # the next status shows it
            return None
        raise


def _share(part: int, whole: int) -> float | None:
    # The pager reads its counters one after the other, so the part may be slightly larger than the whole.
    return min(part / whole, 1.0) if whole > 0 else None


def _between(before: Histogram, after: Histogram) -> list[tuple[float, int]]:
    """Return the histogram of what was counted between two histograms."""
    old = dict(before.buckets)
    grown = ((upper, count - old.get(upper, 0)) for upper, count in after.buckets)
    return [(upper, count) for upper, count in grown if count > 0]


def _donors(
    before: Sequence[PagerDonor], after: Sequence[PagerDonor], interval_s: float, names: Mapping[str, str]
) -> tuple[DonorRates, ...]:
    old = {each.uri: each for each in before}
    named = [each.model_copy(update={"name": names.get(each.uri)}) for each in after if each.uri in old]
    return tuple(_donor(old[each.uri], each, interval_s) for each in named)


def _donor(before: PagerDonor, after: PagerDonor, interval_s: float) -> DonorRates:
    def per_s(was: int, now: int) -> float:
        return max(now - was, 0) / interval_s

    latency = _between(before.latency, after.latency)
    return DonorRates(
        uri=after.uri,
        name=health.name_of(after),
        state=after.state,
        absence=health.absence(after),
        requests_per_s=per_s(before.reads, after.reads) + per_s(before.writes, after.writes),
        read_bytes_per_s=per_s(before.read_bytes, after.read_bytes),
        written_bytes_per_s=per_s(before.written_bytes, after.written_bytes),
        p50_us=quantile_us(latency, 0.5),
        p99_us=quantile_us(latency, 0.99),
        errors=after.errors,
    )
