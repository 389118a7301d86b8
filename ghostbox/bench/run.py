# SPDX-License-Identifier: MIT
"""Run the rounds: every contender of every scenario once a round, in turns."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import logging
import os
import platform
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType

import psutil

from ghostbox import __version__
from ghostbox.bench import (
    checksums,
    crowd,
    donor_link,
    encrypted,
    faults,
    narrow,
    pressure,
    redundancy,
    servers,
    shares,
    sizes,
    vm,
    vm_guests,
    vm_predicted,
    vm_scale,
)
from ghostbox.bench.lab import Lab
from ghostbox.bench.model import Contender, GuestSizes, Report, Results, Scenario, make_row, merge_latency
from ghostbox.bench.scale import FULL, SHORT
from ghostbox.errors import GhostboxError, Refused, UsageError
from ghostbox.paths import Paths
from ghostbox.units import format_bytes

_log = logging.getLogger(__name__)
_PARTS = (faults, checksums, pressure, narrow, encrypted, redundancy, servers, crowd, shares, sizes)
_DONOR_PARTS = (faults, pressure)  # the others measure servers or wires of their own


@dataclass(frozen=True)
class Options:
    """Says what to run. ``only``: names of scenarios, or the first parts of names (``server/lean``); empty means all.

    ``donors``: measure on memory that is leased there, not on loopback (``host[:port]`` of control APIs). ``vm``:
    measure in guests, made with the configuration that this returns with some settings on top; ``wire``: their donors
    and disks are behind a wire of that rate (`wire.Wire.lay`), not on loopback; ``local_bytes``: their memory on this
    machine, None for the usual.
    """

    rounds: int
    short: bool = False
    only: tuple[str, ...] = ()
    donors: tuple[str, ...] = ()
    vm: vm_guests.LoadConfig | None = None
    wire: str | None = None
    local_bytes: int | None = None


def scenario_names(paths: Paths) -> list[str]:
    """Return the names that ``only`` chooses from."""
    return [scenario.name for scenario in _all(Lab(paths, FULL))]


def run(options: Options, paths: Paths, say: Callable[[str], None]) -> Report:
    """Measure, and return the report.

    Args:
        options: what to run.
        paths: where the programs are.
        say: receives what is being measured.

    Raises:
        UsageError: there is no scenario of that name, or options exclude each other.
        Refused: there is too little memory, or no wire can be made.
        ProgramError: GhostBox itself failed.
        GhostboxError: a guest cannot be made (`vm_guests.check`, `vm_guests.running`).
    """
    if options.donors and options.vm:
        raise UsageError("--donor and --vm exclude each other", why="the guests' donors are started on loopback")
    if options.wire and not options.vm:
        raise UsageError("--wire is for --vm", hint="without --vm, `--only link` measures over wires")
    scale = SHORT if options.short else FULL
    _need_memory(options)
    with _ended_by_sigterm(), Lab(paths, scale, options.donors) as lab:
        chosen = _choose(_in_guests(lab, options.vm, options, say) if options.vm else _all(lab), options.only)
        if donor_link.is_wanted([scenario.name for scenario in chosen]):
            chosen.append(donor_link.scenario(lab))
        results = {scenario.name: _start(scenario) for scenario in chosen}
        for number in range(options.rounds):
            for scenario in chosen:
                say(f"round {number + 1} of {options.rounds}: {scenario.title}")
                _round(lab, scenario, results[scenario.name], number)
    return _report(options, chosen, results)


def _all(lab: Lab) -> list[Scenario]:
    return [scenario for part in (_DONOR_PARTS if lab.donors else _PARTS) for scenario in part.scenarios(lab)]


def _in_guests(lab: Lab, config: vm_guests.LoadConfig, options: Options, say: Callable[[str], None]) -> list[Scenario]:
    setup = vm_guests.Setup(lab, config, _vm_scale(options), say, vm_guests.is_emulated(config))
    vm_guests.check(setup)
    if options.wire is not None:
        if lab.cable_missing:
            raise Refused(f"there can be no wire here (--wire {options.wire})", why=lab.cable_missing)
        rate = options.wire
        setup = dataclasses.replace(setup, lab=lab.kept("guests' wire", lambda: lab.from_here(rate)))
    return vm.scenarios(setup)


def _vm_scale(options: Options) -> vm_scale.VmScale:
    usual = vm_scale.SHORT if options.short else vm_scale.FULL
    return usual if options.local_bytes is None else usual.resized(options.local_bytes)


def _needed_bytes(options: Options) -> int:
    if options.vm is not None:
        return _vm_scale(options).needed_bytes
    return (SHORT if options.short else FULL).needed_bytes


def _choose(scenarios: Sequence[Scenario], only: Sequence[str]) -> list[Scenario]:
    for wanted in only:
        if not any(_is_part(wanted, scenario.name) for scenario in scenarios):
            raise _unknown(wanted, scenarios)
    return [each for each in scenarios if not only or any(_is_part(wanted, each.name) for wanted in only)]


def _is_part(wanted: str, name: str) -> bool:
    return name == wanted or name.startswith(wanted + "/")


def _unknown(wanted: str, scenarios: Sequence[Scenario]) -> UsageError:
    names = [scenario.name for scenario in scenarios]
    near = difflib.get_close_matches(wanted, [*names, *(name.partition("/")[0] for name in names)], n=1)
    groups = ", ".join(dict.fromkeys(name.partition("/")[0] for name in names))
    return UsageError(
        f"--only: nothing is called '{wanted}'" + (f"; did you mean '{near[0]}'?" if near else ""),
        hint=f"choose from {groups}",
    )


def _start(scenario: Scenario) -> Results:
    return Results(missing={each.name: each.missing for each in scenario.contenders if each.missing is not None})


def _round(lab: Lab, scenario: Scenario, results: Results, number: int) -> None:
    """Run each contender once; in each round another contender is the first."""
    order = list(scenario.contenders)
    turn = number % len(order)
    for contender in order[turn:] + order[:turn]:
        if contender.name not in results.missing:
            if scenario.takes_memory:
                lab.warm_memory()
            _run_one(contender, results)


def _run_one(contender: Contender, results: Results) -> None:
    _log.debug("run %s", contender.name)
    try:
        outcome = contender.run()
    except GhostboxError as err:
        if contender.ours:
            raise
        results.missing[contender.name] = ": ".join(filter(None, (err.message, err.why)))
        return
    results.outcomes.setdefault(contender.name, []).append(outcome)


def _report(options: Options, scenarios: Sequence[Scenario], results: dict[str, Results]) -> Report:
    return Report(
        version=__version__,
        machine=_machine(),
        rounds=options.rounds,
        short=options.short,
        rows=[make_row(scenario, spec, results[scenario.name]) for scenario in scenarios for spec in scenario.rows],
        figures={name: _figures(found) for name, found in results.items()},
        missing={name: found.missing for name, found in results.items() if found.missing},
        latency={
            name: {each: merge_latency(outcomes) for each, outcomes in found.outcomes.items() if outcomes[0].latency}
            for name, found in results.items()
            if any(outcomes[0].latency for outcomes in found.outcomes.values())
        },
        predictions=[*donor_link.compare(results), *vm_predicted.compare(results, _vm_scale(options))],
        guests=_guest_sizes(options),
    )


def _guest_sizes(options: Options) -> GuestSizes | None:
    scale = _vm_scale(options)
    sizes = GuestSizes(scale.memory_bytes, scale.cache_bytes, scale.remote_bytes, options.wire)
    return None if options.vm is None else sizes


def _figures(results: Results) -> dict[str, dict[str, list[float]]]:
    return {
        name: {figure: [outcome.figures[figure] for outcome in outcomes] for figure in outcomes[0].figures}
        for name, outcomes in results.outcomes.items()
    }


def _machine() -> dict[str, object]:
    return {
        "cpus": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "kernel": platform.release(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _need_memory(options: Options) -> None:
    needed_bytes, available = _needed_bytes(options), psutil.virtual_memory().available
    if available < needed_bytes:
        shorter = f"ghostbox bench{' --vm' if options.vm else ''} --short"
        raise Refused(
            f"the benchmark needs {format_bytes(needed_bytes)}, available are {format_bytes(available)}",
            hint=None if options.short else shorter,
        )


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the run like Ctrl-C: with everything cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
