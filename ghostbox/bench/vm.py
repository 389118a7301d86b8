# SPDX-License-Identifier: MIT
"""What is measured in the guests: the same load on GhostBox's node 1, and on swap.

The targets are for the guest as ``ghostbox up`` makes it here (``guest.tiering: auto``). The same guest is measured
with its tiering the other way round, too: what that costs, and what it moves.

A contender's turn is one run of the load, all phases on one mapping, so each finds memory as the one before left it.
It begins when the guest has given back what the turn before freed: a freed page that is used again at once comes back
from its donor first, for nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ghostbox.bench import vm_guests, vm_reference
from ghostbox.bench.model import Contender, Outcome, RowSpec, Scenario, Source, at_least
from ghostbox.bench.vm_guests import Guest, Setup
from ghostbox.bench.vm_scale import WorkSet

GHOSTBOX, TIERED, UNTIERED, SWAP = vm_guests.GHOSTBOX, "tiering on", "tiering off", vm_guests.SWAP
NBD_FILE, OWN_FILE = "file over NBD", "file on its own disk"
_WHAT = {
    "fill": ("first fill", "B/s", 2.0),
    "scan": ("scan again and again", "B/s", 8.0),
    "random": ("random reads", "/s", 5.0),
    "zipf": ("Zipf 0.9 reads", "/s", 5.0),
    "sort": ("sort of 128 B records", "B/s", 2.0),
}
_MOVED = {
    "promoted": ("pgpromote_success",),
    "demoted": ("pgdemote_kswapd", "pgdemote_direct", "pgdemote_khugepaged"),
    "swapped_in": ("pswpin",),
    "swapped_out": ("pswpout",),
}


def scenarios(setup: Setup) -> list[Scenario]:
    """Return a scenario for each size of the set, and the one of the file."""
    return [*(_scenario(setup, work) for work in setup.scale.sets), _weights(setup)]


def _scenario(setup: Setup, work: WorkSet) -> Scenario:
    shorter = dataclasses.replace(work, phases=tuple(name for name in work.phases if name != "sort"))
    other = UNTIERED if setup.tiered else TIERED
    contenders = (
        Contender(GHOSTBOX, lambda: _run(setup, GHOSTBOX, work), ours=True),
        Contender(other, lambda: _run(setup, other, shorter), ours=True),
        Contender(SWAP, lambda: _run(setup, SWAP, work), vm_reference.missing()),
    )
    rows = [_row(phase, work.factor) for phase in work.phases]
    rows += [_cost_row(phase, work.factor, other) for phase in shorter.phases]
    tiered = GHOSTBOX if setup.tiered else TIERED
    rows += [_moved_row("pages promoted", tiered, ("promoted", "swapped_in"), work.factor)]
    rows += [_moved_row("pages demoted", tiered, ("demoted", "swapped_out"), work.factor)]
    return Scenario(f"guest/{work.factor:g}", f"in the guest, {_set(work.factor)}", contenders, tuple(rows))


def _set(factor: float) -> str:
    return f"set {factor:g} × local RAM"


def _row(phase: str, factor: float) -> RowSpec:
    what, unit, ratio = _WHAT[phase]
    note = "swap: the same memory on this machine, the rest is swap on a virtio disk over NBD (nbdkit memory)"
    figure = f"{phase}_per_s"
    reference = (Source(SWAP, figure),)
    return RowSpec(f"{what}, {_set(factor)}", unit, Source(GHOSTBOX, figure), reference, at_least(ratio), note)


def _cost_row(phase: str, factor: float, other: str) -> RowSpec:
    what, unit, _ = _WHAT[phase]
    note = f"the same guest with{'out' if other == UNTIERED else ''} promotion and demotion"
    figure = f"{phase}_per_s"
    return RowSpec(f"{what}, {_set(factor)}", unit, Source(GHOSTBOX, figure), (Source(other, figure),), None, note)


def _moved_row(what: str, tiered: str, figures: tuple[str, str], factor: float) -> RowSpec:
    ours, theirs = figures
    reference = (Source(SWAP, theirs, theirs.replace("_", " ")),)
    note = "with tiering: pages of one run without the sort (/proc/vmstat), beside those that the other guest swapped"
    return RowSpec(f"{what}, {_set(factor)}", "pages", Source(tiered, ours), reference, None, note)


def _run(setup: Setup, who: str, work: WorkSet) -> Outcome:
    guest = _guest(setup, SWAP if who == SWAP else GHOSTBOX)
    if who != SWAP:
        guest.set_tiering(who == TIERED or (who == GHOSTBOX and setup.tiered))
    scale = setup.scale
    words = f"memory bytes={scale.times_local(work.factor)} ms={scale.ms} warm_ms={scale.warm_ms}"
    if work.sort_bytes:
        words += f" sort_bytes={work.sort_bytes}"
    guest.settle()
    before = guest.counters()
    phases = guest.load(f"{words} {' '.join(work.phases)}")
    return Outcome({**_figures(phases), **vm_guests.went(before, guest.counters())})


def _weights(setup: Setup) -> Scenario:
    """A file mapped and read from end to end, as an LLM's weights are for every token."""
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


def _read_file(setup: Setup, who: str, place: str) -> Outcome:
    """Read the file once, so that memory holds of it what it can; then again, measured."""
    guest, n_bytes = _guest(setup, who), setup.scale.times_local(setup.scale.weights)
    if who == GHOSTBOX:
        guest.set_tiering(setup.tiered)
    guest.make_file(place, n_bytes)
    before = guest.counters()
    phases = guest.load(f"file path={place} bytes={n_bytes} ms={setup.scale.ms} warm scan")
    counters = vm_guests.went(before, guest.counters())
    guest.forget_files()
    return Outcome({**_figures(phases), **counters})


def _guest(setup: Setup, name: str) -> Guest:
    return setup.lab.kept("guests", lambda: vm_guests.running(setup))[name]


def _figures(phases: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Return the rate of each phase, and what the guest's kernel moved in each and in all that every contender runs."""
    found = {f"{name}_per_s": float(phase["per_s"]) for name, phase in phases.items()}
    for moved, counters in _MOVED.items():
        for name, phase in phases.items():
            found[f"{name}_{moved}"] = float(sum(phase["vmstat"][counter] for counter in counters))
        found[moved] = sum(found[f"{name}_{moved}"] for name in phases if name != "sort")
    return found
