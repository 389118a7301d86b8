# SPDX-License-Identifier: MIT
"""Define what is measured and how it is judged: contenders, rows, ratios. Nothing here runs anything.

A *scenario* has *contenders* that do the same work (the pager, nbdfuse, …). Each runs once a round, in an order that
rotates, and gives *figures*. A *row* of the table divides a figure by its reference's, round by round, so that what
slows down a whole round cancels out.
"""

from __future__ import annotations

import enum
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

Buckets = list[tuple[float, int]]
"""A latency histogram: pairs of an upper bound in µs and a count."""


class Relation(enum.Enum):
    """Names the side of its target on which a ratio has to be."""

    AT_LEAST = "at least"
    AT_MOST = "at most"


@dataclass(frozen=True)
class Target:
    """Is the ratio to reach."""

    relation: Relation
    ratio: float

    def reached(self, ratio: float) -> bool:
        """Tell whether ``ratio`` is on the right side of the target."""
        return ratio >= self.ratio if self.relation is Relation.AT_LEAST else ratio <= self.ratio

    def __str__(self) -> str:
        return f"{'≥' if self.relation is Relation.AT_LEAST else '≤'} {self.ratio:g} ×"


def at_least(ratio: float) -> Target:
    """Return a target for a figure of which more is better."""
    return Target(Relation.AT_LEAST, ratio)


def at_most(ratio: float) -> Target:
    """Return a target for a figure of which less is better."""
    return Target(Relation.AT_MOST, ratio)


@dataclass(frozen=True)
class Outcome:
    """Holds the figures of one contender in one round."""

    figures: Mapping[str, float]
    latency: Buckets = field(default_factory=list)


@dataclass(frozen=True)
class Contender:
    """Is a program that is measured. ``missing`` says what it lacks to run; then ``run`` is never called.

    ``ours`` marks GhostBox itself: its failure ends the benchmark, while a reference's failure only empties its rows.
    """

    name: str
    run: Callable[[], Outcome]
    missing: str | None = None
    ours: bool = False


@dataclass(frozen=True)
class Source:
    """Names one figure of one contender. ``label`` is its name in the table, if not the contender's."""

    contender: str
    figure: str
    label: str = ""


@dataclass(frozen=True)
class RowSpec:
    """Describes a row of the table. Of several references the one that is hardest to beat counts."""

    what: str
    unit: str
    subject: Source
    references: tuple[Source, ...]
    target: Target | None
    note: str = ""


@dataclass(frozen=True)
class Scenario:
    """Has contenders that do the same work, and the rows that compare them.

    ``takes_memory``: each run fills fresh memory of this machine, which has to be ready (`Lab.warm_memory`).
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    rows: tuple[RowSpec, ...]
    takes_memory: bool = False


@dataclass(frozen=True)
class Spread:
    """Holds the spread of a value over several rounds."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return median, smallest and largest of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """Is a finished row. Without a figure or its reference there is no ratio, and ``note`` says why."""

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
    """Holds all outcomes of a scenario: by contender, one a round. ``missing``: why contenders gave none."""

    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def values(self, source: Source) -> list[float]:
        """Return one figure's values, one a round; none if the contender is missing."""
        if source.contender in self.missing:
            return []
        return [outcome.figures[source.figure] for outcome in self.outcomes.get(source.contender, [])]


@dataclass(frozen=True)
class Predicted:
    """Holds what `ghostbox.plan` predicts from this run's link, beside the measurement.

    ``ratio`` is the measured figure divided by the predicted one; None if 0 was predicted. ``within``: the prediction
    is right to `TOLERANCE` of itself, or to ``slack`` in the figure's unit, which is for figures near 0.
    """

    what: str
    unit: str
    predicted: float
    measured: float
    ratio: float | None
    within: bool

    TOLERANCE: ClassVar[float] = 0.3

    @classmethod
    def of(cls, what: str, unit: str, predicted: float, measured: float, slack: float = 0.0) -> Predicted:
        """Return a prediction beside its measurement."""
        ratio = measured / predicted if predicted > 0.0 else None
        within = abs(measured - predicted) <= max(cls.TOLERANCE * predicted, slack)
        return cls(what, unit, predicted, measured, ratio, within)


@dataclass(frozen=True)
class GuestSizes:
    """Says what the guests of a run have, in bytes, and over which wire (None: loopback)."""

    memory_bytes: int
    cache_bytes: int
    remote_bytes: int
    wire: str | None = None


@dataclass(frozen=True)
class Report:
    """Holds the result of a benchmark. ``figures``: scenario, contender, figure → a value a round.

    ``guests`` is there only if it was measured in guests.
    """

    version: str
    machine: Mapping[str, object]
    rounds: int
    short: bool
    rows: list[Row]
    figures: Mapping[str, Mapping[str, Mapping[str, list[float]]]]
    missing: Mapping[str, Mapping[str, str]]
    latency: Mapping[str, Mapping[str, Buckets]]
    predictions: list[Predicted] = field(default_factory=list)
    guests: GuestSizes | None = None


def make_row(scenario: Scenario, spec: RowSpec, results: Results) -> Row:
    """Return the finished row."""
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
    """Return the sum of histograms."""
    total: dict[float, int] = {}
    for outcome in outcomes:
        for upper_us, count in outcome.latency:
            total[upper_us] = total.get(upper_us, 0) + count
    return sorted(total.items())


def _ratios(measured: Sequence[float], reference: Sequence[float]) -> list[float]:
    # A reference of 0 (a CPU time below the clock's resolution) cannot be a divisor.
    return [a / b for a, b in zip(measured, reference, strict=False) if b > 0]


def _hardest(found: Sequence[tuple[Source, list[float]]], target: Target | None) -> tuple[Source, list[float]] | None:
    if not found:
        return None
    less_is_better = target is not None and target.relation is Relation.AT_MOST

    def lead(pair: tuple[Source, list[float]]) -> float:
        return statistics.median(pair[1]) * (-1 if less_is_better else 1)

    return min(found, key=lead)
