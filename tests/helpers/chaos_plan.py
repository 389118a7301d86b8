# SPDX-License-Identifier: MIT
"""Draw from a seed what will be done to the donors and the pager: the same seed gives the same list of events."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

# These are the donors by what can be done to them; see chaos_world. The last donor is the spare: it comes and goes.
DONORS = ("plain", "relayed", "filtered", "spare")
KILLABLE = ("plain", "relayed")

# For each kind of event: its weight, and how long it lasts at least and at most, in seconds.
HARMLESS = {
    "cut": (4, 0.3, 6.0),
    "cut-far": (3, 0.3, 6.0),
    "stop": (4, 0.2, 5.0),
    "delay": (2, 0.5, 3.0),
    "break": (2, 0.0, 0.0),
    "garble": (2, 0.0, 0.5),
    "rate": (2, 0.5, 2.0),
    "crash": (2, 0.0, 2.0),
    "kill-pager": (6, 0.0, 1.0),
    "hand-over": (2, 0.0, 0.0),
    "set-cache": (2, 0.0, 0.0),
    "look": (2, 0.0, 0.0),
}
# These events need a second copy of everything, or donors that come and go.
WITH_COPIES = {
    "flip": (4, 1.0, 2.5),
    "errors": (3, 0.5, 2.0),
    "kill": (7, 0.0, 3.0),
    "drain": (4, 0.0, 2.0),
    "rot": (3, 0.5, 1.5),
    "spare": (3, 0.0, 0.0),
}
ALWAYS_AT = {"delay": "relayed", "break": "relayed", "garble": "relayed", "flip": "relayed"}
ALWAYS_AT |= {"rate": "filtered", "crash": "filtered", "errors": "filtered", "rot": "plain", "spare": "spare"}
NOWHERE = ("kill-pager", "hand-over", "set-cache", "look")


@dataclass(frozen=True)
class Event:
    """Says that ``kind`` happens to ``donor`` (or none) for ``lasts_s``, ``gap_s`` after the last event's start."""

    number: int
    gap_s: float
    kind: str
    donor: str
    lasts_s: float
    amount: int

    def __str__(self) -> str:
        at = f" {self.donor}" if self.donor else ""
        return f"#{self.number} {self.kind}{at} ({self.lasts_s:.2f} s, {self.amount})"


def plan(seed: int, seconds: float, *, copies: bool = True, without: Collection[str] = ()) -> list[Event]:
    """Return the events of a run, without those that need ``copies`` if there are none.

    Each kind comes once first, so that a short run has them all; then kinds are drawn by their weights. The gaps alone
    fill ``seconds``: an event that has to wait until the pool has healed comes later than planned, and events that are
    left over at the end are not done.
    """
    chance = random.Random(f"chaos {seed}")
    kinds = HARMLESS | (WITH_COPIES if copies else {})
    for kind in without:
        kinds.pop(kind, None)
    first = chance.sample(sorted(kinds), len(kinds))
    weights = [weight for weight, _, _ in kinds.values()]
    events: list[Event] = []
    planned_s = 0.0
    while planned_s < seconds:
        kind = first.pop() if first else chance.choices(list(kinds), weights)[0]
        gap_s = chance.choice([0.05, 0.3, 1.0, 2.0])
        lasts_s = round(chance.uniform(*kinds[kind][1:]), 2)
        donor = chance.choice(KILLABLE if kind == "kill" else DONORS)
        donor = "" if kind in NOWHERE else ALWAYS_AT.get(kind, donor)
        events.append(Event(len(events), gap_s, kind, donor, lasts_s, chance.randint(1, 40)))
        planned_s += gap_s
    return events
