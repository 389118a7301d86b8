# SPDX-License-Identifier: MIT
"""Model the pager's answers on its control socket (docs/reference/pager.md).

A pager outlives the command that started it, so the command that asks may be older or newer. Fields that an older pager
does not send have defaults here. Further fields of a newer pager are ignored, except in the status: there they are
kept, and ``ghostbox status --json`` shows them.
"""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ghostbox.system.answers import Program

PROGRAM = Program(
    "ghostbox-pager",
    "use the GhostBox that started it, or have a pager of this version take over: ghostbox recover --restart",
)


class _Part(BaseModel):
    """Is a part of the status. It cannot be changed; `model_copy` makes a changed copy."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Pages(_Part):
    """Counts the pages by state.

    ``on_donor``: the donors have the page's present content; ``waiting``: the guest wants the page, and the cache has
    no room for it.
    """

    total: int = 0
    present: int = 0
    resident: int = 0
    inactive: int = 0
    waiting: int = 0
    dirty: int = 0
    on_donor: int = 0
    poisoned: int = 0


class Faults(_Part):
    """Counts page faults since the start by what answered: a donor, a new page, the cache; ``wp``: first writes."""

    missing_fetch: int = 0
    missing_zero: int = 0
    minor: int = 0
    wp: int = 0


class Readahead(_Part):
    """Counts pages that were read ahead since the start, and whether they were used."""

    issued: int = 0
    used: int = 0
    wasted: int = 0


class Evictions(_Part):
    """Counts pages that left the cache since the start. ``second_chance``: zapped pages that were touched again."""

    clean: int = 0
    dirty: int = 0
    zero: int = 0
    zapped: int = 0
    second_chance: int = 0

    @property
    def pages(self) -> int:
        """Return the sum of the pages that left the cache."""
        return self.clean + self.dirty + self.zero


class Discards(_Part):
    """Counts the memory that the guest gave back since the start."""

    requests: int = 0
    pages: int = 0


class Histogram(_Part):
    """Holds latencies. ``buckets`` are pairs of an upper bound in microseconds and a count.

    A quantile is None if nothing was counted.
    """

    count: int = 0
    p50_us: float | None = None
    p99_us: float | None = None
    buckets: tuple[tuple[float, int], ...] = ()


class Latency(_Part):
    """Holds the latencies of page faults that a donor answered."""

    fetch: Histogram = Histogram()


class Copies(_Part):
    """Counts the extents of which a donor has a copy, by the copy's state."""

    current: int = 0
    filling: int = 0
    stale: int = 0


class Leaving(_Part):
    """Holds why a donor wants its memory back. ``stays`` says why its content has no room elsewhere."""

    causes: tuple[str, ...]
    stays: str | None


class PagerDonor(_Part):
    """Describes one export that the pager uses; ``host`` is the donor's machine, ``backup`` means the copy on disk.

    ``name``, ``channel`` and ``leaving`` do not come from the pager: `session.view` and `session.leaving` add them.
    ``writes_refused`` counts the writes for which the donor had no room; ``refuses_s`` says for how long it has refused
    them, None if it takes them. ``channel`` is ``tls``, ``local`` (on this machine) or ``insecure`` (over a network
    without encryption).
    """

    uri: str
    state: str
    host: str | None = None
    backup: bool = False
    draining: bool = False
    export_bytes: int = 0
    extents: int = 0
    used_slots: int = 0
    copies: Copies | None = None
    down_s: float | None = None
    why: str | None = None
    smoothed_us: int = 0
    lost_pages: int = 0
    reads: int = 0
    writes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    errors: int = 0
    writes_refused: int = 0
    refuses_s: float | None = None
    latency: Histogram = Histogram()
    name: str | None = None
    channel: str | None = None
    leaving: Leaving | None = None

    @property
    def current_extents(self) -> int:
        """Return the number of extents of which the donor has a current copy."""
        return self.extents if self.copies is None else self.copies.current


class Rebuild(_Part):
    """Counts the copies that are being made anew."""

    active: bool = False
    extents_left: int = 0


class Pool(_Part):
    """Describes the extents of all donors together, and which copies are missing."""

    extent_bytes: int = 0
    replicas: int = 1
    missing_copies: int = 0
    stale_copies: int = 0
    filling_copies: int = 0
    lost_pages: int = 0
    rebuild: Rebuild = Rebuild()


class Region(_Part):
    """Describes memory of one process that the pager serves."""

    pid: int
    connected: bool
    length_bytes: int = 0


class PagerStatus(_Part):
    """Is the whole answer; ``health`` is the pager's own judgement: ok, degraded or lost."""

    pages: Pages
    donors: tuple[PagerDonor, ...]
    pid: int = 0
    uptime_s: int = 0
    cache_bytes: int = 0
    poll_us: int = 0
    features: dict[str, bool] = {}
    dirty_tracking: str = ""
    regions: tuple[Region, ...] = ()
    health: str = "ok"
    pool: Pool = Pool()
    faults: Faults = Faults()
    readahead: Readahead = Readahead()
    evictions: Evictions = Evictions()
    discards: Discards = Discards()
    latency: Latency = Latency()


class PageCounts(BaseModel):
    """Holds the number of a memory's pages in each place, for each cell; ``dirty`` pages count in a place, too."""

    model_config = ConfigDict(frozen=True)

    length_bytes: int
    absent: tuple[int, ...]
    remote: tuple[int, ...]
    resident: tuple[int, ...]
    inactive: tuple[int, ...]
    moving: tuple[int, ...]
    poisoned: tuple[int, ...]
    dirty: tuple[int, ...]

    @model_validator(mode="after")
    def _has_the_same_cells_everywhere(self) -> Self:
        places = (self.absent, self.remote, self.resident, self.inactive, self.moving, self.poisoned, self.dirty)
        if len({len(each) for each in places}) > 1:
            raise ValueError(f"cells by place: {', '.join(str(len(each)) for each in places)}")
        return self


class RegionMap(PageCounts):
    """Holds the map of one region."""

    length_bytes: int = Field(gt=0)
    absent: tuple[int, ...] = Field(min_length=1)


class RegionMaps(BaseModel):
    """Is the answer to ``page-map``."""

    model_config = ConfigDict(frozen=True)

    regions: tuple[RegionMap, ...]


class Drain(BaseModel):
    """Is the answer to ``drain-donor``: the number of bytes that have to move."""

    model_config = ConfigDict(frozen=True)

    bytes: int
