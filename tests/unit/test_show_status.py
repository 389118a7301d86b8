# SPDX-License-Identifier: MIT
"""`ghostbox status` shows important lines first, each donor once, and fits a terminal of 80 × 24."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ghostbox.cli import output, show
from ghostbox.pager.model import PagerStatus
from ghostbox.session.record import VmState
from ghostbox.session.view import VmStatus
from ghostbox.terminal import PlainConsole

ZEROES: dict[str, Any] = {
    "pages": dict.fromkeys(("total", "resident", "inactive", "on_donor", "dirty"), 0),
    "faults": dict.fromkeys(("missing_fetch", "missing_zero", "minor"), 0),
    "evictions": dict.fromkeys(("clean", "dirty", "zero"), 0),
    "latency": {"fetch": {}},
    "cache_bytes": 1 << 30,
    "donors": [],
}


def status_of(pager: dict[str, Any], width: int = 200, **more: Any) -> str:
    console = PlainConsole(width=width)
    fields = dict.fromkeys(VmStatus.__dataclass_fields__)
    with console.capture() as captured:
        known = {"name": "lab", "state": VmState.RUNNING, "pager": PagerStatus.model_validate(pager)}
        console.print(show.status(VmStatus(**{**fields, **known, **more})))
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


def test_status_says_that_a_donor_refuses_writes() -> None:
    sizes = dict.fromkeys(("export_bytes", "read_bytes", "written_bytes"), 0)
    well = {**sizes, "uri": "nbd://b/x", "state": "up", "name": "attic:10810", "errors": 0, "writes_refused": 7}
    full = {**well, "uri": "nbd://a/x", "errors": 345, "refuses_s": 12.0, "writes_refused": 345}
    text = status_of({**ZEROES, "dirty_tracking": "wp-async", "features": {}, "donors": [full]})
    assert "\n  attic:10810: refuses writes for 12.0 s, 345 so far" in text
    assert "refuses" not in status_of({**ZEROES, "dirty_tracking": "wp-async", "features": {}, "donors": [well]})


def test_status_says_why_a_donor_is_away() -> None:
    sizes = dict.fromkeys(("export_bytes", "read_bytes", "written_bytes", "errors"), 0)
    away = {**sizes, "uri": "nbd://a/x", "name": "attic:10810", "state": "down", "down_s": 12.0, "why": "no route"}
    well = {**sizes, "uri": "nbd://b/x", "state": "up", "down_s": None, "why": None}
    text = status_of({**ZEROES, "dirty_tracking": "wp-async", "features": {}, "donors": [away, well]})
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert lines["attic:10810"][0] == "down"
    assert "\n  attic:10810: away 12.0 s: no route" in text
    assert lines["nbd://b/x"][0] == "up"
    assert lines["nbd://b/x"][-1] == "0"


def donor(name: str, state: str = "up", **more: Any) -> dict[str, Any]:
    sizes = dict.fromkeys(("export_bytes", "read_bytes", "written_bytes"), 123 << 30)
    return {"uri": f"nbd://{name}/x", "name": name, "state": state, "errors": 0, **sizes, **more}


def test_status_shows_how_the_bytes_go_and_warns_once_of_what_is_not_encrypted() -> None:
    well = [donor("attic", channel="tls"), donor("cellar", channel="local"), donor("disk", backup=True)]
    bad = [donor("shed", channel=way) for way in ("tls", "insecure")] + [donor("barn", channel="insecure")]
    gone = donor("old", "removed", channel="insecure")
    pager = {**ZEROES, "dirty_tracking": "wp-async", "features": {}, "donors": [*well, *bad, gone]}
    lines = {line.split()[0]: line.split() for line in status_of(pager).splitlines() if line.strip()}
    shown = {name: lines[name][2] for name in ("attic", "cellar", "shed", "barn")}
    assert shown == {"attic": "tls", "cellar": "local", "shed": "insecure", "barn": "insecure"}
    fields: dict[str, Any] = {**dict.fromkeys(VmStatus.__dataclass_fields__), "name": "lab"}
    [line] = show.channel_notes(VmStatus(**{**fields, "pager": PagerStatus.model_validate(pager)}))
    assert line.startswith("warning: what VM 'lab' keeps on shed, barn is neither encrypted nor protected (--insecure)")
    assert "ghostbox token create; here: ghostbox donor add TOKEN" in line
    safe = PagerStatus.model_validate({**pager, "donors": [*well, gone]})
    assert show.channel_notes(VmStatus(**{**fields, "pager": safe})) == []
    assert show.channel_notes(VmStatus(**fields)) == []


def test_status_says_how_much_memory_there_is_and_how_much_is_used() -> None:
    pages = {**ZEROES["pages"], "total": 8 << 20}
    text = status_of({**ZEROES, "dirty_tracking": "wp-async", "features": {}, "pages": pages}, in_use_bytes=13 << 28)
    assert re.search("^remote +32 GiB, 3.2 GiB in use", text, re.MULTILINE)
    assert [line.split()[0] for line in text.splitlines()[:6]] == ["VM", "state", "health", "remote", "cache", "on"]


def test_donors_that_were_removed_are_not_shown_unless_memory_was_lost_with_them() -> None:
    gone = [donor("attic", "removed"), donor("cellar", "removed", lost_pages=7), donor("tower"), donor("tower")]
    lines = status_of({**ZEROES, "dirty_tracking": "wp-async", "features": {}, "donors": gone}).splitlines()
    assert not [line for line in lines if line.startswith("attic")]
    assert [line.split()[:2] for line in lines if line.startswith(("cellar", "tower"))] == [
        ["cellar", "removed"],
        ["tower", "up"],
    ]
    assert "246 GiB" in next(line for line in lines if line.startswith("tower"))


def test_status_fits_on_80_columns_and_24_lines() -> None:
    donors = [donor("[fd00:1234:5678:9abc::7]:10810", "draining"), donor("198.51.100.234:10810", "down", down_s=99.0)]
    away = {**donors[1], "why": "connection refused: " + "nobody listens there " * 4}
    features = {"wp_async": False, "poison": False}
    text = status_of({**ZEROES, "dirty_tracking": "wp-fault", "features": features, "donors": [donors[0], away]}, 80)
    lines = text.rstrip().splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 80, text
    assert "…" not in text
    for word in ("[fd00:1234:5678:9abc::7]:10810", "draining", "198.51.100.234:10810", "123 GiB", "ERRORS"):
        assert word in text, text
    assert "connection refused" in text


def test_what_a_newer_pager_says_besides_is_in_the_json_as_it_came() -> None:
    answer = {**ZEROES, "dirty_tracking": "wp-async", "features": {}, "news": {"of": [1, 2.5, None]}, "uptime_s": 3}
    answer["donors"] = [{**donor("attic", down_s=None), "identity": "x", "latency": {"buckets": [[1.5, 2]]}}]
    assert output.plain(PagerStatus.model_validate(answer)) == answer
