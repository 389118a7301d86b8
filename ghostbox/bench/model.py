# SPDX-License-Identifier: MIT
"""What is measured and how it is judged: contenders, rows, ratios. Nothing here runs anything.

A *scenario* has *contenders* that do the same work (the pager, nbdfuse, …). Each runs once a round, in an order that
rotates, and gives *figures*. A *row* of the table divides a figure by its reference's, round by round, so that what
slows a whole round down cancels out.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Buckets = list[tuple[float, int]]
"""A latency histogram: upper bound in µs, how many."""


class Relation(enum.Enum):
    """On which side of its target a ratio has to be."""

    AT_LEAST = "at least"
    AT_MOST = "at most"


@dataclass(frozen=True)
class Target:
    """What a ratio has to reach."""

    relation: Relation
    ratio: float

    def reached(self, ratio: float) -> bool:
        """Tell whether ``ratio`` is on the right side."""
        return ratio >= self.ratio if self.relation is Relation.AT_LEAST else ratio <= self.ratio

    def __str__(self) -> str:
        return f"{'≥' if self.relation is Relation.AT_LEAST else '≤'} {self.ratio:g} ×"


def at_least(ratio: float) -> Target:
    """More is better."""
    return Target(Relation.AT_LEAST, ratio)


def at_most(ratio: float) -> Target:
    """Less is better."""
    return Target(Relation.AT_MOST, ratio)


@dataclass(frozen=True)
class Outcome:
    """What one contender gave in one round."""

    figures: Mapping[str, float]
    latency: Buckets = field(default_factory=list)


@dataclass(frozen=True)
class Contender:
    """Something that is measured. ``missing`` says what is not there to run it; then ``run`` is never called.

    ``ours`` is GhostBox itself: its failure ends the benchmark, a reference's failure costs its rows only.
    """

    name: str
    run: Callable[[], Outcome]
    missing: str | None = None
    ours: bool = False


@dataclass(frozen=True)
class Source:
    """One figure of one contender. ``label``: what the table calls it, if not by the contender."""

    contender: str
    figure: str
    label: str = ""


@dataclass(frozen=True)
class RowSpec:
    """A line of the table. Of several references the one that is hardest to beat counts."""

    what: str
    unit: str
    subject: Source
    references: tuple[Source, ...]
    target: Target | None
    note: str = ""


@dataclass(frozen=True)
class Scenario:
    """Contenders that do the same work, and the rows that come of it.

    ``takes_memory``: each run fills fresh memory of this machine, so that it must be at hand (`Lab.warm_memory`).
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    rows: tuple[RowSpec, ...]
    takes_memory: bool = False


@dataclass(frozen=True)
class Spread:
    """Values of several rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return median, smallest and largest of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """A finished line. Where the figure or its reference is missing there is no ratio, and ``note`` says why."""

    scenario: str
    what: str
    unit: str
    subject: str
    measured: Spread | None
    reference_name: str | None
    reference: Spread | None
    ratio: Spread | None
    target: Target | None
    reached: bool | None
    note: str


@dataclass
class Results:
    """All outcomes of one scenario: by contender, one a round. ``missing``: contenders that gave none, and why."""

    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def values(self, source: Source) -> list[float]:
        """Return one figure's values, a round each; empty if the contender is missing."""
        if source.contender in self.missing:
            return []
        return [outcome.figures[source.figure] for outcome in self.outcomes.get(source.contender, [])]


@dataclass(frozen=True)
class Predicted:
    """What the model of `ghostbox.prediction` said, from the link as this run measured it, and what came of it."""

    what: str
    unit: str
    predicted: float
    measured: float
    ratio: float


@dataclass(frozen=True)
class Report:
    """The result of a benchmark. ``figures``: scenario, contender, figure → a value a round."""

    version: str
    machine: Mapping[str, object]
    rounds: int
    short: bool
    rows: list[Row]
    figures: Mapping[str, Mapping[str, Mapping[str, list[float]]]]
    missing: Mapping[str, Mapping[str, str]]
    latency: Mapping[str, Mapping[str, Buckets]]
    predictions: list[Predicted] = field(default_factory=list)


def make_row(scenario: Scenario, spec: RowSpec, results: Results) -> Row:
    """Judge one line."""
    measured = results.values(spec.subject)
    found = [(source, _ratios(measured, results.values(source))) for source in spec.references]
    usable = [(source, ratios) for source, ratios in found if ratios]
    absent = [spec.subject.contender] + [source.contender for source, ratios in found if not ratios]
    notes = [spec.note] + [results.missing.get(name, "") for name in absent]
    chosen = _hardest(usable, spec.target)
    ratio = Spread.of(chosen[1]) if chosen else None
    reached = None if ratio is None or spec.target is None else spec.target.reached(ratio.median)
    return Row(
        scenario=scenario.name,
        what=spec.what,
        unit=spec.unit,
        subject=spec.subject.contender,
        measured=Spread.of(measured) if measured else None,
        reference_name=chosen[0].label or chosen[0].contender if chosen else None,
        reference=Spread.of(results.values(chosen[0])) if chosen else None,
        ratio=ratio,
        target=spec.target,
        reached=reached,
        note="; ".join(dict.fromkeys(note for note in notes if note)),
    )


def merge_latency(outcomes: Sequence[Outcome]) -> Buckets:
    """Add histograms up."""
    total: dict[float, int] = {}
    for outcome in outcomes:
        for upper_us, count in outcome.latency:
            total[upper_us] = total.get(upper_us, 0) + count
    return sorted(total.items())


def _ratios(measured: Sequence[float], reference: Sequence[float]) -> list[float]:
    # A reference of nothing (a CPU time below what the clock can tell) is no figure to divide by.
    return [a / b for a, b in zip(measured, reference, strict=False) if b > 0]


def _hardest(found: Sequence[tuple[Source, list[float]]], target: Target | None) -> tuple[Source, list[float]] | None:
    if not found:
        return None
    less_is_better = target is not None and target.relation is Relation.AT_MOST

    def lead(pair: tuple[Source, list[float]]) -> float:
        return statistics.median(pair[1]) * (-1 if less_is_better else 1)

    return min(found, key=lead)
