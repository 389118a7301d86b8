# SPDX-License-Identifier: MIT
"""What ``ghostbox top`` shows: the pager's counters, read again and again, as rates of the time between.

`rates` is a pure function of two answers of the pager's control socket (ARCHITECTURE.md names their fields).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ghostbox import health, page_map, pager
from ghostbox.errors import NotRunning
from ghostbox.health import Health
from ghostbox.page_map import PageMap
from ghostbox.paths import Paths
from ghostbox.processes import ControlError
from ghostbox.session import Book
from ghostbox.units import PAGE_BYTES

Status = Mapping[str, Any]


@dataclass(frozen=True)
class DonorRates:
    """One donor in the interval; latencies are None if nothing was asked of it.

    ``name`` is what people call it, its URI where that is not known; ``absence`` says since when it is away, and why.
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
    """One interval of one VM.

    ``hit_rate``: faults that were answered without the network, of all that found something. ``second_chance_rate``:
    pages that were touched again after the pager had set them aside, of those set aside. ``readahead_accuracy``: pages
    read ahead and used, of those whose fate was known. Each is None where nothing of the kind happened.
    ``slowest_donor``: the URI of the one with the highest median latency, if there are two to compare. ``health``: what
    is wrong, and what to do. ``map``: where the pages are, if it was asked for.
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


def rates(vm: str, before: Status, after: Status, interval_s: float, names: Mapping[str, str] | None = None) -> Sample:
    """Return what happened between two answers of the same pager; ``names`` are those of donors, by their URIs."""
    pages = after["pages"]

    def count(*path: str) -> int:
        return max(_at(after, path) - _at(before, path), 0)

    fetched, new, again = (count("faults", kind) for kind in ("missing_fetch", "missing_zero", "minor"))
    faults = fetched + new + again + count("faults", "wp")
    used, wasted = count("readahead", "used"), count("readahead", "wasted")
    evicted = sum(count("evictions", kind) for kind in ("clean", "dirty", "zero"))
    latency = _between(before["latency"]["fetch"], after["latency"]["fetch"])
    donors = _donors(before["donors"], after["donors"], interval_s, names or {})
    return Sample(
        vm=vm,
        uptime_s=float(after["uptime_s"]),
        interval_s=interval_s,
        faults_per_s=faults / interval_s,
        fetched_per_s=fetched / interval_s,
        new_per_s=new / interval_s,
        found_again_per_s=again / interval_s,
        p50_us=quantile_us(latency, 0.5),
        p99_us=quantile_us(latency, 0.99),
        hit_rate=_share(again, again + fetched),
        second_chance_rate=_share(count("evictions", "second_chance"), count("evictions", "zapped")),
        readahead_accuracy=_share(used, used + wasted),
        evicted_per_s=evicted / interval_s,
        cache_bytes=int(after["cache_bytes"]),
        resident_bytes=int(pages["resident"]) * PAGE_BYTES,
        inactive_bytes=int(pages["inactive"]) * PAGE_BYTES,
        dirty_bytes=int(pages["dirty"]) * PAGE_BYTES,
        remote_bytes=int(pages["on_donor"]) * PAGE_BYTES,
        total_bytes=int(pages["total"]) * PAGE_BYTES,
        donors=donors,
        slowest_donor=slowest(donors),
        health=health.assess(vm, after, names),
    )


def quantile_us(buckets: Sequence[tuple[float, int]], q: float) -> float | None:
    """Return the upper bound of the bucket that holds the quantile; None of nothing."""
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
    """Yield a sample after each interval, ``count`` times, until the pager is gone, or until ``wait`` says no.

    Raises:
        NotFound: no such VM.
        NotRunning: no pager answers, or it has ended.
    """
    before = _status(vm, paths, ended=False)
    before_s = time.monotonic()
    n_left = count
    while n_left is None or n_left > 0:
        if not wait(interval_s):
            return
        after = _status(vm, paths, ended=True)
        after_s = time.monotonic()
        if after["pid"] == before["pid"]:  # else the VM was started again: its counters began anew
            sample = rates(vm, before, after, after_s - before_s, _names(vm, paths))
            yield replace(sample, map=_map(vm, paths)) if with_map else sample
            n_left = None if n_left is None else n_left - 1
        before, before_s = after, after_s


def _status(vm: str, paths: Paths, *, ended: bool) -> Status:
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
        if err.code == "gone":  # the next look finds out
            return None
        raise


def _at(status: Status, path: Sequence[str]) -> int:
    value: Any = status
    for key in path:
        value = value[key]
    return int(value)


def _share(part: int, whole: int) -> float | None:
    # The counters of one answer are read one after the other: a part may be some ahead of its whole.
    return min(part / whole, 1.0) if whole > 0 else None


def _between(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[float, int]]:
    """Return the histogram of what came between two."""
    old = {float(upper): int(count) for upper, count in before["buckets"]}
    grown = ((float(upper), int(count) - old.get(float(upper), 0)) for upper, count in after["buckets"])
    return [(upper, count) for upper, count in grown if count > 0]


def _donors(
    before: Sequence[Status], after: Sequence[Status], interval_s: float, names: Mapping[str, str]
) -> tuple[DonorRates, ...]:
    old = {each["uri"]: each for each in before}
    named = [{**each, "name": names.get(each["uri"])} for each in after if each["uri"] in old]
    return tuple(_donor(old[each["uri"]], each, interval_s) for each in named)


def _donor(before: Status, after: Status, interval_s: float) -> DonorRates:
    def per_s(key: str) -> float:
        return max(int(after[key]) - int(before[key]), 0) / interval_s

    latency = _between(before["latency"], after["latency"])
    return DonorRates(
        uri=str(after["uri"]),
        name=health.name_of(after),
        state=str(after["state"]),
        absence=health.absence(after),
        requests_per_s=per_s("reads") + per_s("writes"),
        read_bytes_per_s=per_s("read_bytes"),
        written_bytes_per_s=per_s("written_bytes"),
        p50_us=quantile_us(latency, 0.5),
        p99_us=quantile_us(latency, 0.99),
        errors=int(after["errors"]),
    )
