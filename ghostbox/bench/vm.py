# SPDX-License-Identifier: MIT
"""Measure in guests: the same load on GhostBox's node 1, on swap, and with all memory local.

The targets are for the guest that ``ghostbox up`` makes here (``guest.tiering: auto``). Scenario ``tiering`` measures
the same guest with each kind of tiering.

A contender's turn is one run of the load, all phases on one mapping, so each phase finds memory as the phase before
left it. The turn begins when the guest has given back what the turn before freed: otherwise a freed page that is used
again would first be fetched from its donor, without any use.
"""

from __future__ import annotations

from collections.abc import Sequence

from ghostbox.bench import vm_apps, vm_guests, vm_reference, vm_scale
from ghostbox.bench.model import Contender, Outcome, RowSpec, Scenario, Source, Target, at_least, at_most
from ghostbox.bench.vm_guests import Guest, Setup
from ghostbox.bench.vm_load import Phase
from ghostbox.bench.vm_scale import WorkSet
from ghostbox.config.tiering import How
from ghostbox.units import format_bytes

GHOSTBOX, SWAP, LOCAL = vm_guests.GHOSTBOX, vm_guests.SWAP, vm_guests.LOCAL
ZSWAP = "zswap"
NBD_FILE, OWN_FILE = "file over NBD", "file on its own disk"
_MOVING_LIMIT, _MOVERS_LIMIT = 0.01, 0.05
_WHAT = {
    "fill": ("first fill", "B/s"),
    "scan": ("scan again and again", "B/s"),
    "random": ("random reads", "/s"),
    "zipf09": ("Zipf 0.9 reads", "/s"),
    "zipf11": ("Zipf 1.1 reads", "/s"),
    "hot50": ("reads of a hot half of the local RAM", "/s"),
    "moved50": ("… after it moved elsewhere", "/s"),
    "hot80": ("reads of hot 80 % of the local RAM", "/s"),
    "moved80": ("… after they moved elsewhere", "/s"),
    "written50": ("the hot half, a fifth of it writes", "/s"),
    "scanned50": ("the hot half beside a scanner", "/s"),
    "sort": ("sort of 128 B records", "B/s"),
}
# How many times as fast as swap: for sets of less than 1.5 × the local RAM, and for larger sets.
_TARGETS = {
    "fill": (1.5, 1.5),
    "scan": (8.0, 8.0),
    "random": (4.0, 4.0),
    "zipf09": (4.0, 5.0),
    "zipf11": (4.0, 5.0),
    "scanned50": (3.0, 3.0),
    "sort": (2.0, 2.0),
}
_LOCAL_TARGET = 0.5
_SWAP_NOTE = "swap: the same memory on this machine, the rest is swap on a virtio disk over NBD (nbdkit memory)"
_ZSWAP_NOTE = "the guest that swaps, with zswap before its disk"
_LOCAL_NOTE = "a guest that has all of its memory on this machine"


def scenarios(setup: Setup) -> list[Scenario]:
    """Return a scenario for each size of the set, then those of a file, of programs, and of tiering."""
    return [
        *(_scenario(setup, work) for work in setup.scale.sets),
        _weights(setup),
        *vm_apps.scenarios(setup),
        *(_tiering(setup, work) for work in setup.scale.sets),
    ]


def _scenario(setup: Setup, work: WorkSet) -> Scenario:
    missing = vm_reference.missing()
    contenders = (
        Contender(GHOSTBOX, lambda: _run(setup, GHOSTBOX, work), ours=True),
        Contender(SWAP, lambda: _run(setup, SWAP, work), missing),
        Contender(ZSWAP, lambda: _run(setup, ZSWAP, work), missing),
        Contender(LOCAL, lambda: _run(setup, LOCAL, work)),
    )
    rows = [
        *(_row(phase, work.factor, SWAP, _target(phase, work.factor), _SWAP_NOTE) for phase in work.phases),
        *(_row(phase, work.factor, ZSWAP, _target(phase, work.factor), _ZSWAP_NOTE) for phase in work.phases),
        *(_row(phase, work.factor, LOCAL, _local_target(phase), _LOCAL_NOTE) for phase in work.phases),
        *(_settled_row(phase, work.factor) for phase in work.phases if phase in vm_scale.HOT),
        *(_fetched_row(phase, work.factor) for phase in work.phases if phase in vm_scale.SETTLING),
        *_moving_rows(work),
        _programs_row(setup, work),
    ]
    return Scenario(vm_scale.scenario_name(work), f"in the guest, {_set(work.factor)}", contenders, tuple(rows))


def _set(factor: float) -> str:
    return f"set {factor:g} × local RAM"


def _target(phase: str, factor: float) -> Target:
    small, large = _TARGETS.get(phase, (1.0, 1.0))
    return at_least(small if factor < 1.5 else large)


def _local_target(phase: str) -> Target | None:
    return at_least(_LOCAL_TARGET) if phase in vm_scale.HOT else None


def _row(phase: str, factor: float, reference: str, target: Target | None, note: str) -> RowSpec:
    what, unit = _WHAT[phase]
    figure = f"{phase}_per_s"
    return RowSpec(
        f"{what}, {_set(factor)}", unit, Source(GHOSTBOX, figure), (Source(reference, figure),), target, note
    )


def _settled_row(phase: str, factor: float) -> RowSpec:
    what, _ = _WHAT[phase]
    figure = f"{phase}_settled_s"
    note = "until windows of some seconds had the rate that the phase ends with, to 5 %"
    row = f"{what}: time until settled, {_set(factor)}"
    return RowSpec(row, "s", Source(GHOSTBOX, figure), (Source(SWAP, figure),), at_most(1.0), note)


def _fetched_row(phase: str, factor: float) -> RowSpec:
    what, _ = _WHAT[phase]
    figure = f"{phase}_network"
    note = "pages that came over the network for 1,000 pages accessed, also those read ahead (from donors; swapped in)"
    row = f"{what}: pages fetched, {_set(factor)}"
    return RowSpec(row, "‰", Source(GHOSTBOX, figure), (Source(SWAP, figure),), None, note)


def _moving_rows(work: WorkSet) -> list[RowSpec]:
    """Return rows on what tiering still does when a phase has settled, in the phase where it does most."""
    moving, movers = Source(GHOSTBOX, "moving"), Source(GHOSTBOX, "movers")
    limits = (
        (Source(GHOSTBOX, "moving_limit", "1 % a minute"), "parts of the set that tiering moves a minute", moving),
        (Source(GHOSTBOX, "movers_limit", "5 % of one"), "processors of the guest that tiering takes", movers),
    )
    note = "settled; the phase of most. Threads that move pages: kdamond, kswapd, kcompactd"
    return [
        RowSpec(f"{what}, {_set(work.factor)}", "", source, (limit,), at_most(1.0), note)
        for limit, what, source in limits
    ]


def _programs_row(setup: Setup, work: WorkSet) -> RowSpec:
    """Return the row on how much of the same local RAM either guest leaves to programs (docs/sizing.md)."""
    hot = " and ".join(format_bytes(setup.scale.times_local(part)) for part in (0.5, 0.8))
    note = f"before the fill: node 0 without the kernel's own memory, and the cache. Hot sets of 50 and 80 % are {hot}"
    what = f"local RAM that programs can have, {_set(work.factor)}"
    return RowSpec(what, "B", Source(GHOSTBOX, vm_scale.PROGRAMS), (Source(SWAP, vm_scale.PROGRAMS),), None, note)


def _run(setup: Setup, name: str, work: WorkSet, tiering: str = "auto") -> Outcome:
    guest = _guest(setup, SWAP if name == ZSWAP else name)
    if name == GHOSTBOX:
        guest.set_tiering(tiering)
    elif name in (SWAP, ZSWAP):
        guest.set_zswap(name == ZSWAP)
    scale = setup.scale
    set_bytes = scale.times_local(work.factor)
    words = f"memory bytes={set_bytes} {scale.pace}"
    if work.sort_bytes:
        words += f" sort_bytes={work.sort_bytes}"
    guest.settle()
    programs = {vm_scale.PROGRAMS: float(guest.programs_bytes())}
    before = guest.counters()
    phases = guest.load(f"{words} {' '.join(scale.word(phase) for phase in work.phases)}")
    return Outcome({**programs, **_figures(work.phases, phases, set_bytes), **vm_guests.went(before, guest.counters())})


def _tiering(setup: Setup, work: WorkSet) -> Scenario:
    def contender(name: str, wanted: str, *, ours: bool) -> Contender:
        return Contender(name, lambda: _run(setup, GHOSTBOX, work, wanted), ours=ours)

    contenders = (
        contender(GHOSTBOX, "auto", ours=True),
        *(contender(f"tiering {how}", how, ours=False) for how in How),
    )
    rows = tuple(
        RowSpec(
            f"{_WHAT[phase][0]}, {_set(work.factor)}",
            _WHAT[phase][1],
            Source(GHOSTBOX, f"{phase}_per_s"),
            (Source(f"tiering {how}", f"{phase}_per_s"),),
            None,
            f"the same guest with guest.tiering: {how}",
        )
        for how in How
        for phase in work.phases
    )
    return Scenario(f"tiering/{work.factor:g}", f"tiering in the guest, {_set(work.factor)}", contenders, rows)


def _weights(setup: Setup) -> Scenario:
    """Return the scenario of a file that is mapped and read from end to end, like an LLM's weights for each token."""
    missing = vm_reference.missing()
    places = {NBD_FILE: (SWAP, vm_guests.NBD_PLACE), OWN_FILE: (SWAP, vm_guests.OWN_PLACE)}
    contenders = (
        Contender(GHOSTBOX, lambda: _read_file(setup, GHOSTBOX, vm_guests.OWN_PLACE), ours=True),
        *(
            Contender(name, lambda at=place: _read_file(setup, *at), missing)  # type: ignore[misc]
            for name, place in places.items()
        ),
    )
    what = f"mapped file read again and again, {_set(setup.scale.weights)}"
    kept = "GhostBox: the file is in the guest's page cache, which node 1 is part of"
    notes = {
        NBD_FILE: f"{kept}; beside it the other guest reads it from a disk over NBD (ext4, nbdkit memory)",
        OWN_FILE: f"{kept}; beside it the other guest reads it from its own disk, which this machine holds in its RAM",
    }
    figure = "scan_per_s"
    rows = tuple(
        RowSpec(what, "B/s", Source(GHOSTBOX, figure), (Source(name, figure),), None, notes[name]) for name in places
    )
    return Scenario("weights", "a file in the guest, read again and again", contenders, rows)


def _read_file(setup: Setup, name: str, place: str) -> Outcome:
    """Read the file once, so that memory holds what it can of the file; then again, measured."""
    guest, n_bytes = _guest(setup, name), setup.scale.times_local(setup.scale.weights)
    if name == GHOSTBOX:
        guest.set_tiering("auto")
    guest.make_file(place, n_bytes)
    before = guest.counters()
    phases = guest.load(f"file path={place} bytes={n_bytes} {setup.scale.pace} warm scan")
    counters = vm_guests.went(before, guest.counters())
    guest.forget_files()
    return Outcome({**_figures(("warm", "scan"), phases, n_bytes), **counters})


def _guest(setup: Setup, name: str) -> Guest:
    return vm_guests.kept(setup)[name]


def _figures(names: Sequence[str], phases: Sequence[Phase], set_bytes: int) -> dict[str, float]:
    """Return the figures of each phase, and what tiering does in the phase where it does most."""
    found: dict[str, float] = {}
    for name, phase in zip(names, phases, strict=True):
        found |= phase.figures(name, set_bytes)
    for what, limit in (("moving", _MOVING_LIMIT), ("movers", _MOVERS_LIMIT)):
        found[what] = max((value for key, value in found.items() if key.endswith(f"_{what}")), default=0.0)
        found[f"{what}_limit"] = limit
    return found
