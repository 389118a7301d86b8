# SPDX-License-Identifier: MIT
"""`ghostbox status` says which of the kernel's features the pager uses."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from ghostbox.cli import show
from ghostbox.session.record import VmState
from ghostbox.session.view import VmStatus

ZEROES: dict[str, Any] = {
    "pages": dict.fromkeys(("resident", "inactive", "on_donor", "dirty"), 0),
    "faults": dict.fromkeys(("missing_fetch", "missing_zero", "minor"), 0),
    "evictions": dict.fromkeys(("clean", "dirty", "zero"), 0),
    "latency": {"fetch": {}},
    "cache_bytes": 1 << 30,
    "donors": [],
}


def status_of(pager: dict[str, Any]) -> str:
    console = Console(width=200)
    fields = dict.fromkeys(VmStatus.__dataclass_fields__)
    with console.capture() as captured:
        console.print(show.status(VmStatus(**{**fields, "name": "lab", "state": VmState.RUNNING, "pager": pager})))
    return captured.get()


@pytest.mark.parametrize(
    ("tracking", "features", "expected"),
    [
        ("wp-async", {"wp_async": True, "poison": True}, "tracks writes itself (wp-async)"),
        (
            "wp-fault",
            {"wp_async": False, "poison": False, "minor_shmem": True},
            "writes are write-protect faults (wp-fault); without wp_async, poison",
        ),
    ],
)
def test_status_says_how_writes_are_noticed(tracking: str, features: dict[str, bool], expected: str) -> None:
    assert expected in status_of({**ZEROES, "dirty_tracking": tracking, "features": features})


def test_status_says_why_a_donor_is_away() -> None:
    sizes = dict.fromkeys(("export_bytes", "read_bytes", "written_bytes", "errors"), 0)
    away = {**sizes, "uri": "nbd://a/x", "name": "attic:10810", "state": "down", "down_s": 12.0, "why": "no route"}
    well = {**sizes, "uri": "nbd://b/x", "state": "up", "down_s": None, "why": None}
    text = status_of({**ZEROES, "dirty_tracking": "wp-async", "features": {}, "donors": [away, well]})
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert " ".join(lines["attic:10810"]).endswith("0 away 12.0 s: no route")
    assert lines["nbd://b/x"][0] == "up"
    assert lines["nbd://b/x"][-1] == "0"
