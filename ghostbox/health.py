# SPDX-License-Identifier: MIT
"""How a VM's remote memory does, and what to do about it. Pure: the pager's status comes in (ARCHITECTURE.md).

ok         every page has all its copies, every donor answers in time
degraded   nothing is lost, but a donor is away, slow or leaving, or copies are missing
lost       pages are gone, or lie on lost donors only
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostbox.units import PAGE_BYTES, format_bytes, format_duration

Status = Mapping[str, Any]
_GONE = ("down", "lost")
_SAME_MTU = "give both ends, and all that is between them, the same MTU; ping -M do -s 8972 shows what passes"
_ON_DISK = "the copy on disk"
_WISHES = {
    "asked": "its owner asks for it",
    "ending": "it is being shut down, and ends when it is empty or its owner forces it",
    "pressure": "its machine is short of memory",
}


class Level(enum.StrEnum):
    """How it is, in a word."""

    OK = "ok"
    DEGRADED = "degraded"
    LOST = "lost"


@dataclass(frozen=True)
class Problem:
    """What is not as it should be, and what to do (a command to paste, where there is one)."""

    text: str
    advice: str | None = None


@dataclass(frozen=True)
class Health:
    """How a VM's remote memory does."""

    level: Level
    problems: tuple[Problem, ...] = ()


def assess(vm: str, status: Status, addresses: Mapping[str, str] | None = None) -> Health:
    """Return how the memory of ``vm`` does.

    Args:
        vm: its name, for the commands in the advice.
        status: the pager's answer.
        addresses: the control addresses of donors by their NBD URIs; people know them by these.
    """
    problems = (*_donors(vm, status, addresses or {}), *_copies(vm, status))
    return Health(level(status), problems)


def disk_problem(file: Path, free_bytes: int, *, full: bool) -> Problem:
    """Return what to tell of a disk whose writes failed; until they succeed the VM is paused.

    Args:
        file: the disk.
        free_bytes: what its file system has left.
        full: it has no room; otherwise the write failed for another reason, such as a quota or a broken disk.
    """
    free = f"{format_bytes(free_bytes)} are free in {file.parent}"
    if full:
        return Problem(
            f"the VM is paused: no room for its disk {file} to grow, {free}",
            "make room there: the VM goes on by itself",
        )
    return Problem(
        f"the VM is paused: its disk {file} cannot be written, {free}",
        "if a quota is used up there, raise it; otherwise dmesg says what is wrong: the VM goes on by itself",
    )


def level(status: Status) -> Level:
    """Return the pager's own word."""
    return Level(status.get("health", Level.OK))


def sole_copies_away(status: Status) -> list[Status]:
    """Return the donors that are away and hold pages of which no other copy can be read, as far as can be told.

    One that is lost does not come back: waiting for it would be for ever.
    """
    away = [donor for donor in status["donors"] if donor["state"] == "down" and _current(donor)]
    if not away:
        return []
    backups = [donor for donor in status["donors"] if donor.get("backup") and donor["state"] in ("up", "slow")]
    if any(not donor["copies"]["stale"] and not donor["copies"]["filling"] for donor in backups):
        return []
    pool = status.get("pool", {})
    hosts = {
        donor.get("host", donor["uri"]) for donor in status["donors"] if donor["state"] in _GONE and _current(donor)
    }
    if len(hosts) >= int(pool.get("replicas", 1)):
        return away
    # The other copies of what it holds are complete only if none but its own are missing.
    return away if int(pool.get("filling_copies", 0)) + int(pool.get("stale_copies", 0)) else []


def name_of(donor: Status) -> str:
    """Return what people call a donor of a status that has names; its URI where there is none."""
    return _ON_DISK if donor.get("backup") else str(donor.get("name") or donor["uri"])


def together(donors: Sequence[Status]) -> dict[tuple[str, str], list[Status]]:
    """Return donors by their names and states: one that lends several pieces of memory is one.

    Those that were removed are left out, unless memory was lost with them.
    """
    found: dict[tuple[str, str], list[Status]] = {}
    for donor in donors:
        if donor["state"] != "removed" or donor.get("lost_pages"):
            found.setdefault((name_of(donor), str(donor["state"])), []).append(donor)
    return found


def absence(donor: Status) -> str:
    """Return since when a donor is away, and why: ``away 12 s: connection refused``; empty if it is not."""
    if donor["state"] != "down":
        return ""
    down_s = float(donor.get("down_s") or 0.0)
    return (f"away {format_duration(down_s)}" if down_s else "away") + _cause([donor])


def _cause(donors: Sequence[Status]) -> str:
    """Return why donors do not answer, to be put behind a sentence that says so."""
    known = dict.fromkeys(str(donor["why"]) for donor in donors if donor.get("why"))
    return f": {', '.join(known)}" if known else ""


def _lost_bytes(donors: Sequence[Status]) -> int:
    return sum(int(donor.get("lost_pages", 0)) for donor in donors) * PAGE_BYTES


def _current(donor: Status) -> int:
    return int(donor.get("copies", {}).get("current", donor.get("extents", 0)))


def _donors(vm: str, status: Status, addresses: Mapping[str, str]) -> Iterator[Problem]:
    """Yield a problem a donor, even if it lends several pieces of memory."""
    extent_bytes = int(status.get("pool", {}).get("extent_bytes", 0))
    alike: dict[tuple[str, str], list[Status]] = {}
    for donor in status["donors"]:
        uri = str(donor["uri"])
        name = _ON_DISK if donor.get("backup") else addresses.get(uri, uri)
        alike.setdefault((name, str(donor["state"])), []).append(donor)
    for (name, state), donors in alike.items():
        holds = sum(map(_current, donors)) * extent_bytes
        drain = None if name == _ON_DISK else f"ghostbox donor drain {name} --vm {vm}"
        yield from _donor(name if name == _ON_DISK else f"donor {name}", state, donors, holds, drain)


def _donor(name: str, state: str, donors: Sequence[Status], holds: int, drain: str | None) -> Iterator[Problem]:
    if state == "down":
        down_s = max(float(donor.get("down_s") or 0.0) for donor in donors)
        since = f" for {format_duration(down_s)}" if down_s else ""
        what = f"; it holds {format_bytes(holds)}" if holds else "; all that it held is elsewhere"
        no_pages = any("MTU" in str(donor.get("why")) for donor in donors)
        does = "lets no page pass" if no_pages else "has not answered"
        advice = _SAME_MTU if no_pages else "start it again, or look at its cable"
        advice += f"; or, if it will not be back: {drain}" if drain else ""
        yield Problem(f"{name} {does}{since}{_cause(donors)}{what}", advice)
    elif state == "lost":
        n_bytes = _lost_bytes(donors)
        lost = f": {format_bytes(n_bytes)} had no other copy" if n_bytes else "; all of it has another copy"
        yield Problem(f"{name} ({donors[0]['uri']}) came back without its memory{lost}", drain)
    elif state == "removed" and (n_bytes := _lost_bytes(donors)):
        uris = ", ".join(str(donor["uri"]) for donor in donors if donor.get("lost_pages"))
        yield Problem(f"{format_bytes(n_bytes)} were on {uris} alone, which came back without its memory")
    elif state == "slow":
        slow_us = max(float(donor.get("smoothed_us", 0)) for donor in donors)
        yield Problem(f"{name} is slow ({slow_us / 1000:.0f} ms on average): it is used last", drain)
    elif state == "draining":
        yield _leaving(name, donors[0].get("leaving"), holds, drain)


def _leaving(name: str, leaving: Status | None, holds: int, drain: str | None) -> Problem:
    """Return the problem of a donor that is drained, or wants to be (`session.leaving`)."""
    if leaving is None:
        return Problem(f"{name} is being drained, {format_bytes(holds)} are left", "nothing: it is under way")
    why = " and ".join(_WISHES.get(str(cause), str(cause)) for cause in leaving["causes"])
    text = f"{name} wants its memory back ({why}); it holds {format_bytes(holds)}"
    if leaving["stays"] is None:
        return Problem(f"{text}, which move to the others", "nothing: it is under way")
    return Problem(
        f"{text}, which have no room elsewhere: {leaving['stays']}",
        f"add a donor (ghostbox donor add ADDRESS), or move it to this host: {drain} --to-host",
    )


def _copies(vm: str, status: Status) -> Iterator[Problem]:
    pool = status.get("pool", {})
    extent_bytes = int(pool.get("extent_bytes", 0))
    lost = max(int(pool.get("lost_pages", 0)), int(status["pages"].get("poisoned", 0)))
    if lost:
        kept = status.get("features", {}).get("poison", True)
        fate = "programs that touch them are killed" if kept else "whoever touches them waits for ever"
        yield Problem(
            f"{format_bytes(lost * PAGE_BYTES)} of the VM's memory are lost: {fate}",
            f"save what matters, then ghostbox down {vm} and ghostbox up {vm}",
        )
    short = int(pool.get("missing_copies", 0)) + int(pool.get("stale_copies", 0)) + int(pool.get("filling_copies", 0))
    if not short:
        return
    text = f"{format_bytes(short * extent_bytes)} lack a copy"
    if pool.get("rebuild", {}).get("active"):
        yield Problem(f"{text}; copies are being made", "nothing: it is under way")
    else:
        yield Problem(text, f"give them room: ghostbox donor add ADDRESS --vm {vm}")
