# SPDX-License-Identifier: MIT
"""Measure the cost of the checksum that is computed when a page is sent and checked when it comes back."""

from __future__ import annotations

from ghostbox.bench.faults import cold_random
from ghostbox.bench.lab import Lab
from ghostbox.bench.model import Contender, Outcome, RowSpec, Scenario, Source

_N_PAGES = 50  # checksums for each fault of the other scenarios, since a checksum takes far less time


def scenarios(lab: Lab) -> list[Scenario]:
    """Return the one scenario."""

    def cost() -> Outcome:
        result = lab.client("checksum", {"count": lab.scale.n_faults * _N_PAGES})
        return Outcome({key: float(result[key]) for key in ("checksum_us", "copy_us")})

    contenders = (Contender("checksum", cost, ours=True), Contender("pager", lambda: cold_random(lab), ours=True))
    subject = Source("checksum", "checksum_us")
    rows = (
        RowSpec("checksum of 4 KiB", "µs", subject, (Source("checksum", "copy_us", "a copy"),), None),
        RowSpec("checksum of 4 KiB", "µs", subject, (Source("pager", "p50_us", "a fault"),), None, "cold random, p50"),
    )
    return [Scenario("checksum", "what it costs to check a page", contenders, rows, takes_memory=True)]
