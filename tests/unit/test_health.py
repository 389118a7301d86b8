# SPDX-License-Identifier: MIT
"""The pager's status becomes a user's report: the state of the memory, problems with their cure, and events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ghostbox.pager import health
from ghostbox.pager.health import Level
from ghostbox.pager.model import PagerStatus
from ghostbox.session import reconcile

A, B, C = "nbd://a:1/x", "nbd://b:1/x", "nbd://c:1/x"
NAMES = {A: "attic:10810", B: "barn:10810"}


def donor(uri: str, **changed: Any) -> dict[str, Any]:
    usual = {
        "uri": uri,
        "host": uri[6],
        "state": "up",
        "backup": False,
        "copies": {"current": 4, "filling": 0, "stale": 0},
        "used_slots": 4,
        "down_s": None,
        "lost_pages": 0,
        "smoothed_us": 90,
    }
    return {**usual, **changed}


def status(*donors: dict[str, Any], word: str = "ok", lost: int = 0, **pool: Any) -> PagerStatus:
    usual = {
        "extent_bytes": 16 << 20,
        "replicas": 1,
        "missing_copies": 0,
        "stale_copies": 0,
        "filling_copies": 0,
        "lost_pages": lost,
        "rebuild": {"active": False, "extents_left": 0},
    }
    parts = {"health": word, "donors": donors, "pool": {**usual, **pool}, "pages": {"poisoned": lost}}
    return PagerStatus.model_validate(parts)


def said(found: PagerStatus) -> list[tuple[str, str | None]]:
    return [(problem.text, problem.advice) for problem in health.assess("lab", found, NAMES).problems]


@pytest.mark.parametrize(
    ("full", "text", "advice"),
    [
        (
            True,
            "the VM is paused: no space for its disk /s/vms/lab/disk.qcow2 to grow, 1 MiB are free in /s/vms/lab",
            "make space there: the VM resumes by itself",
        ),
        (
            False,
            "the VM is paused: its disk /s/vms/lab/disk.qcow2 cannot be written, 1 MiB are free in /s/vms/lab",
            "if a quota is used up there, raise it; otherwise dmesg shows the cause: the VM resumes by itself",
        ),
    ],
)
def test_disk_that_cannot_be_written_is_said_with_what_to_do(full: bool, text: str, advice: str) -> None:
    found = health.disk_problem(Path("/s/vms/lab/disk.qcow2"), 1 << 20, full=full)
    assert (found.text, found.advice) == (text, advice)


def test_memory_that_is_well_has_no_problem() -> None:
    assert health.assess("lab", status(donor(A), donor(B))) == health.Health(Level.OK)


@pytest.mark.parametrize(
    ("changed", "text", "advice"),
    [
        (
            {"state": "down", "down_s": 12.0},
            "donor attic:10810 has not answered for 12.0 s; it holds 64 MiB",
            "start the donor again, or check its network;"
            " or, if it is gone for good: ghostbox donor drain attic:10810 --vm lab",
        ),
        (
            {"state": "down", "down_s": 12.0, "why": "connection refused"},
            "donor attic:10810 has not answered for 12.0 s: connection refused; it holds 64 MiB",
            "start the donor again, or check its network;"
            " or, if it is gone for good: ghostbox donor drain attic:10810 --vm lab",
        ),
        (
            {"state": "down", "down_s": 12.0, "why": "pages are not: is the MTU the same on the whole way?"},
            "donor attic:10810 lets no page pass for 12.0 s: pages are not: is the MTU the same on the whole way?;"
            " it holds 64 MiB",
            "give both ends, and all devices between them, the same MTU; ping -M do -s 8972 tests it;"
            " or, if it is gone for good: ghostbox donor drain attic:10810 --vm lab",
        ),
        (
            {"state": "lost", "lost_pages": 512},
            f"donor attic:10810 ({A}) came back without its memory: 2 MiB had no other copy",
            "ghostbox donor drain attic:10810 --vm lab",
        ),
        (
            {"state": "lost"},
            f"donor attic:10810 ({A}) came back without its memory; all of it has another copy",
            "ghostbox donor drain attic:10810 --vm lab",
        ),
        (
            {"state": "removed", "lost_pages": 512},
            f"2 MiB were on {A} alone, which came back without its memory",
            None,
        ),
        (
            {"state": "slow", "smoothed_us": 81_000},
            "donor attic:10810 is slow (81 ms on average): it is used last",
            "ghostbox donor drain attic:10810 --vm lab",
        ),
        ({"state": "draining"}, "donor attic:10810 is being drained, 64 MiB are left", "nothing: this is under way"),
        (
            {"refuses_s": 12.0, "writes_refused": 345},
            "donor attic:10810 refuses writes for 12.0 s, 345 so far: no room, what its owner lets this host have there"
            " is used up; what it does not take stays in the cache, nothing is lost",
            "have its owner raise the limit, on the donor: ghostbox memserver client set HOST --memory SIZE (ghostbox"
            " memserver clients shows it); or use another donor: ghostbox donor add ADDRESS --vm lab, then"
            " ghostbox donor drain attic:10810 --vm lab",
        ),
        (
            {"refuses_s": 12.0, "writes_refused": 345, "backup": True},
            "the copy on disk refuses writes for 12.0 s, 345 so far: its disk is full",
            "make space there: df -h shows it",
        ),
        (
            {"state": "down", "backup": True},
            "the copy on disk has not answered; it holds 64 MiB",
            "start the donor again, or check its network",
        ),
    ],
)
def test_donor_that_is_not_well_is_named_with_what_to_do(changed: dict[str, Any], text: str, advice: str) -> None:
    assert said(status(donor(A, **changed), donor(B), word="degraded")) == [(text, advice)]


def test_a_donor_that_refused_writes_and_takes_them_again_is_no_problem() -> None:
    assert said(status(donor(A, refuses_s=None, writes_refused=345))) == []


@pytest.mark.parametrize(
    ("changed", "waits"),
    [
        ({}, True),
        ({"pages": {"waiting": 0, "dirty": 1024}}, False),
        ({"pages": {"waiting": 3, "dirty": 512}}, False),
        ({"donors": [donor(A)]}, False),
    ],
)
def test_a_vm_whose_cache_is_full_of_pages_that_are_refused_is_said_to_wait(
    changed: dict[str, Any], waits: bool
) -> None:
    full = donor(A, refuses_s=2.0, writes_refused=20)
    parts = {"cache_bytes": 4 << 20, "pages": {"waiting": 3, "dirty": 1024}, "donors": [full], "health": "degraded"}
    texts = said(PagerStatus.model_validate({**parts, **changed}))
    wanted = (
        "the VM waits: its cache of 4 MiB is full of changed pages that donor attic:10810 refuses, so that no page"
        " comes in (3 are wanted)",
        "nothing more than above: the VM goes on by itself as soon as the pages can be written",
    )
    assert (wanted in texts) is waits
    assert len([text for text, _ in texts if "refuses writes" in text]) == ("donors" not in changed)


def test_donor_that_lends_twice_is_named_once() -> None:
    twice = [donor(A, state="down", down_s=3.0), donor(C, state="down", down_s=4.0, copies={"current": 2})]
    names = {A: "attic:10810", C: "attic:10810"}
    [problem] = health.assess("lab", status(*twice, donor(B)), names).problems
    assert problem.text == "donor attic:10810 has not answered for 4.0 s; it holds 96 MiB"
    empty = status(donor(A, state="down", down_s=3.0, copies={"current": 0}), donor(B))
    assert "; all its content has other copies" in said(empty)[0][0]


def test_missing_copies_are_counted_and_what_helps_is_said() -> None:
    lack = {"missing_copies": 2, "filling_copies": 1, "replicas": 2}
    short = status(donor(A), word="degraded", **lack)
    assert said(short) == [("48 MiB lack a copy", "add room for copies: ghostbox donor add ADDRESS --vm lab")]
    mended = status(donor(A), word="degraded", rebuild={"active": True, "extents_left": 3}, **lack)
    assert said(mended) == [("48 MiB lack a copy; copies are being made", "nothing: this is under way")]


def test_lost_memory_is_told_in_mib() -> None:
    [(text, advice)] = said(status(donor(A), word="lost", lost=256))
    assert text == "1 MiB of the VM's memory are lost: programs that touch them are killed"
    assert advice == "save what matters, then ghostbox down lab and ghostbox up lab"
    without_kvm = status(donor(A), word="lost", lost=256).model_copy(update={"features": {"poison": False}})
    assert said(without_kvm)[0][0] == "1 MiB of the VM's memory are lost: programs that touch them wait for ever"


@pytest.mark.parametrize(
    ("found", "away"),
    [
        (status(donor(A), donor(B)), []),
        (status(donor(A, state="down"), donor(B)), [A]),
        (status(donor(A, state="down", copies={"current": 0}), donor(B)), []),
        (status(donor(A, state="lost"), donor(B)), []),
        (status(donor(A, state="down"), donor(B), replicas=2), []),
        (status(donor(A, state="down"), donor(B), replicas=2, stale_copies=1), [A]),
        (status(donor(A, state="down"), donor(B, state="down"), donor(C), replicas=2), [A, B]),
        (status(donor(A, state="down"), donor(B, state="lost"), donor(C), replicas=2), [A]),
        (status(donor(A, state="down"), donor(B, backup=True)), []),
        (status(donor(A, state="down"), donor(B, backup=True, copies={"current": 3, "stale": 1, "filling": 0})), [A]),
    ],
)
def test_vm_is_paused_only_for_a_donor_that_alone_has_pages_and_may_come_back(
    found: PagerStatus, away: list[str]
) -> None:
    assert [each.uri for each in health.sole_copies_away(found)] == away


def test_what_happened_between_two_looks() -> None:
    before = status(donor(A), donor(B), donor(C, state="drained"))
    gone = donor(A, state="lost", lost_pages=256)
    after = status(gone, donor(B), donor(C, state="removed"), word="lost", rebuild={"active": True, "extents_left": 3})
    assert reconcile.changes(None, after, NAMES) == []
    assert reconcile.changes(before, after, NAMES) == [
        ("donor-lost", "donor attic:10810 was up and is lost", A),
        ("memory-lost", f"1 MiB were on donor attic:10810 ({A}) alone", A),
        ("copying-begun", "copies of 48 MiB are being made", None),
        ("health", "the VM's memory was ok and is lost", None),
    ]
    assert ("copying-ended", "no copy is being made any more", None) in reconcile.changes(after, before, NAMES)


def test_a_donor_that_begins_or_ends_to_refuse_writes_is_an_event() -> None:
    well, full = status(donor(A)), status(donor(A, refuses_s=0.5, writes_refused=5))
    refuses = ("donor-full", "donor attic:10810 refuses writes: it has no room", A)
    assert reconcile.changes(well, full, NAMES) == [refuses]
    assert reconcile.changes(full, full, NAMES) == []
    assert reconcile.changes(full, well, NAMES) == [
        ("donor-has-room", "donor attic:10810 refuses no writes any more", A)
    ]
