# SPDX-License-Identifier: MIT
"""Compare what `ghostbox.plan.workloads` predicts of the guest's work with what was measured. All is pure.

Of what is read in order all pages that come over the network are compared, because most are read ahead; of other work
the accesses that wait for a donor.

The time of a fault in a guest depends on how the guest's processors run, which cannot be measured from outside. It is
derived from the random reads of the same set: the additional time compared with all memory local, divided by the
fetched pages. So the rates test which share of the accesses waits, not what one of them costs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

from ghostbox.bench import vm_scale
from ghostbox.bench.model import Predicted, Results, Source
from ghostbox.bench.vm_guests import GHOSTBOX, LOCAL
from ghostbox.bench.vm_scale import PROGRAMS, VmScale, WorkSet
from ghostbox.plan import workloads
from ghostbox.plan.workloads import Kind, Local, Work

_A_THOUSAND = 1000.0
# The cost of an access to an inactive page, as a part of the cost of a page from a donor on loopback.
_SECOND_PART = 0.5
# Predictions of few pages are right to this many of 1,000 accesses: a ratio says nothing of figures near 0.
_SLACK = 10.0
_RANDOM = "random"
# The keys are the load's own words for its phases: `VmScale.word`.
_KINDS = {
    "zipf": Kind.ZIPF,
    "hot": Kind.HOT,
    "moved": Kind.HOT,
    "written": Kind.HOT,
    _RANDOM: Kind.RANDOM,
    "scan": Kind.SCAN,
}


def compare(results: Mapping[str, Results], scale: VmScale) -> list[Predicted]:
    """Return the predictions beside the measurements, as far as these exist."""
    here = workloads.local(scale.memory_bytes, scale.remote_bytes, scale.cache_bytes, tiered=True)
    return [
        each
        for work in scale.sets
        if (found := results.get(vm_scale.scenario_name(work))) is not None and found.outcomes.get(GHOSTBOX)
        for each in _compared(found, work, scale, here)
    ]


def _compared(results: Results, work: WorkSet, scale: VmScale, here: Local) -> Iterator[Predicted]:
    fault_s = _fault_s(results)
    for_programs = float(
        here.node0_bytes + here.cache_bytes
    )  # tiering keeps its room later, when programs have filled it
    programs = _median(results, PROGRAMS)
    yield Predicted.of(f"local RAM that programs can have, set {work.factor:g} ×", "B", for_programs, programs)
    for phase in work.phases:
        described = _work(phase, work.factor, scale)
        if described is None:
            continue
        waits, second = workloads.waits(described, here)
        name = f"{phase}, set {work.factor:g} ×"
        what, figure = (
            ("pages fetched", "network") if described.kind is Kind.SCAN else ("accesses that wait", "fetched")
        )
        measured = _median(results, f"{phase}_{figure}")
        yield Predicted.of(f"{name}: {what}", "‰", waits * _A_THOUSAND, measured, _SLACK)
        if fault_s > 0.0 and described.kind is not Kind.SCAN:
            per_s = 1.0 / (1.0 / _median(results, f"{phase}_per_s", LOCAL) + (waits + second * _SECOND_PART) * fault_s)
            yield Predicted.of(f"{name}: rate", "/s", per_s, _median(results, f"{phase}_per_s"))


def _fault_s(results: Results) -> float:
    """Return the cost of a page from a donor in this guest, in seconds; 0.0 if it was not measured."""
    if not results.outcomes.get(LOCAL) or f"{_RANDOM}_per_s" not in results.outcomes[LOCAL][0].figures:
        return 0.0
    longer = 1.0 / _median(results, f"{_RANDOM}_per_s") - 1.0 / _median(results, f"{_RANDOM}_per_s", LOCAL)
    fetched = _median(results, f"{_RANDOM}_fetched") + _SECOND_PART * _median(results, f"{_RANDOM}_second")
    return longer / (fetched / _A_THOUSAND) if fetched > 0.0 else 0.0


def _median(results: Results, figure: str, name: str = GHOSTBOX) -> float:
    return statistics.median(results.values(Source(name, figure)))


def _work(phase: str, factor: float, scale: VmScale) -> Work | None:
    """Return the work of a phase; None if there is no prediction for it."""
    word, _, argument = scale.word(phase).partition(":")
    kind = _KINDS.get(word)
    if kind is None:
        return None
    hot_bytes = int(argument) if kind is Kind.HOT else 0
    exponent = float(argument) if kind is Kind.ZIPF else 0.0
    return Work(phase, kind, scale.times_local(factor), factor, hot_bytes, exponent)
