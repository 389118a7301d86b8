# SPDX-License-Identifier: MIT
"""Judge the health of a VM's remote memory from the pager's status (docs/reference/pager.md). All functions are pure.

ok         every page has all its copies, every donor answers in time
degraded   no memory is lost, but a donor is down, slow, leaving or refuses writes, or copies are missing
lost       pages are lost, or have copies on lost donors only
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ghostbox.pager.model import Leaving, PagerDonor, PagerStatus
from ghostbox.units import PAGE_BYTES, format_bytes, format_duration

_GONE = ("down", "lost")
_SAME_MTU = "give both ends, and all devices between them, the same MTU; ping -M do -s 8972 tests it"
_ON_DISK = "the copy on disk"
_WISHES = {
    "asked": "its owner asks for it",
    "ending": "it is being shut down, and ends when it is empty or its owner forces the end",
    "pressure": "its machine is short of memory",
}


class Level(enum.StrEnum):
    """Names a level of health."""

    OK = "ok"
    DEGRADED = "degraded"
    LOST = "lost"


@dataclass(frozen=True)
class Problem:
    """Describes a problem, and what to do (a command to paste, where there is one)."""

    text: str
    advice: str | None = None


@dataclass(frozen=True)
class Health:
    """Holds the health of a VM's remote memory."""

    level: Level
    problems: tuple[Problem, ...] = ()


def assess(vm: str, status: PagerStatus, addresses: Mapping[str, str] | None = None) -> Health:
    """Return the health of the memory of ``vm``.

    Args:
        vm: its name, for the commands in the advice.
        status: the pager's answer.
        addresses: the control addresses of donors, which people know them by, by their NBD URIs.
    """
    problems = (*_donors(vm, status, addresses or {}), *_standstill(status, addresses or {}), *_copies(vm, status))
    return Health(level(status), problems)


def disk_problem(file: Path, free_bytes: int, *, full: bool) -> Problem:
    """Return the problem of a disk whose writes fail; the VM is paused until they succeed.

    Args:
        file: the disk.
        free_bytes: the free space of its file system.
        full: the file system has no space; otherwise the cause is another, such as a quota or a broken disk.
    """
    free = f"{format_bytes(free_bytes)} are free in {file.parent}"
    if full:
        return Problem(
            f"the VM is paused: no space for its disk {file} to grow, {free}",
            "make space there: the VM resumes by itself",
        )
    return Problem(
        f"the VM is paused: its disk {file} cannot be written, {free}",
        "if a quota is used up there, raise it; otherwise dmesg shows the cause: the VM resumes by itself",
    )


def level(status: PagerStatus) -> Level:
    """Return the pager's own judgement."""
    return Level(status.health)


def sole_copies_away(status: PagerStatus) -> list[PagerDonor]:
    """Return the donors that are down and may hold pages of which no other copy can be read.

    A donor whose memory is lost is not among them: waiting for that memory would never end.
    """
    away = [donor for donor in status.donors if donor.state == "down" and donor.current_extents]
    if not away:
        return []
    backups = [donor for donor in status.donors if donor.backup and donor.state in ("up", "slow")]
    if any(donor.copies and not donor.copies.stale and not donor.copies.filling for donor in backups):
        return []
    pool = status.pool
    hosts = {donor.host or donor.uri for donor in status.donors if donor.state in _GONE and donor.current_extents}
    if len(hosts) >= pool.replicas:
        return away
    # The other copies of the donor's extents are complete only if no copy is stale or being filled.
    return away if pool.filling_copies + pool.stale_copies else []


def name_of(donor: PagerDonor) -> str:
    """Return a donor's name for people: its name, or its URI if the status has no names."""
    return _ON_DISK if donor.backup else donor.name or donor.uri


def together(donors: Sequence[PagerDonor]) -> dict[tuple[str, str], list[PagerDonor]]:
    """Return donors by name and state: a donor with several leases appears once.

    Removed donors are left out, unless memory was lost with them.
    """
    found: dict[tuple[str, str], list[PagerDonor]] = {}
    for donor in donors:
        if donor.state != "removed" or donor.lost_pages:
            found.setdefault((name_of(donor), donor.state), []).append(donor)
    return found


def absence(donor: PagerDonor) -> str:
    """Return since when and why a donor is down: ``away 12 s: connection refused``; empty if it is not down."""
    if donor.state != "down":
        return ""
    return (f"away {format_duration(donor.down_s)}" if donor.down_s else "away") + _cause([donor])


def refusal(donors: Sequence[PagerDonor]) -> str:
    """Return for how long a donor has refused writes, and how many; empty if it takes them."""
    since = [donor.refuses_s for donor in donors if donor.refuses_s is not None]
    if not since:
        return ""
    return f"refuses writes for {format_duration(max(since))}, {sum(donor.writes_refused for donor in donors)} so far"


def _cause(donors: Sequence[PagerDonor]) -> str:
    """Return why donors do not answer, to be appended to a sentence."""
    known = dict.fromkeys(donor.why for donor in donors if donor.why)
    return f": {', '.join(known)}" if known else ""


def _lost_bytes(donors: Sequence[PagerDonor]) -> int:
    return sum(donor.lost_pages for donor in donors) * PAGE_BYTES


def _donors(vm: str, status: PagerStatus, addresses: Mapping[str, str]) -> Iterator[Problem]:
    """Yield a problem for each donor, however many leases it has."""
    alike: dict[tuple[str, str], list[PagerDonor]] = {}
    for donor in status.donors:
        alike.setdefault((_called(donor, addresses), donor.state), []).append(donor)
    for (name, state), donors in alike.items():
        holds = sum(donor.current_extents for donor in donors) * status.pool.extent_bytes
        drain = None if name == _ON_DISK else f"ghostbox donor drain {name} --vm {vm}"
        title = name if name == _ON_DISK else f"donor {name}"
        yield from _donor(title, state, donors, holds, drain)
        if refuses := refusal(donors):
            yield _refusing(title, refuses, vm, drain)


def _called(donor: PagerDonor, addresses: Mapping[str, str]) -> str:
    return _ON_DISK if donor.backup else addresses.get(donor.uri, donor.uri)


def _refusing(title: str, refuses: str, vm: str, drain: str | None) -> Problem:
    """Return the problem of a donor that has no room for what is written to it."""
    stays = "what it does not take stays in the cache, nothing is lost"
    if drain is None:
        return Problem(f"{title} {refuses}: its disk is full", "make space there: df -h shows it")
    return Problem(
        f"{title} {refuses}: no room, what its owner lets this host have there is used up; {stays}",
        "have its owner raise the limit, on the donor: ghostbox memserver client set HOST --memory SIZE (ghostbox"
        f" memserver clients shows it); or use another donor: ghostbox donor add ADDRESS --vm {vm}, then {drain}",
    )


def _standstill(status: PagerStatus, addresses: Mapping[str, str]) -> Iterator[Problem]:
    """Yield the problem of a VM that waits since its cache is full of pages which no donor takes."""
    refusing = dict.fromkeys(_called(each, addresses) for each in status.donors if refusal([each]) and not each.backup)
    dirty_bytes = status.pages.dirty * PAGE_BYTES
    # A page may have left the cache just now.
    if not refusing or not status.pages.waiting or dirty_bytes < status.cache_bytes * 15 // 16:
        return
    yield Problem(
        f"the VM waits: its cache of {format_bytes(status.cache_bytes)} is full of changed pages that donor"
        f" {', '.join(refusing)} refuses, so that no page comes in ({status.pages.waiting} are wanted)",
        "nothing more than above: the VM goes on by itself as soon as the pages can be written",
    )


def _donor(name: str, state: str, donors: Sequence[PagerDonor], holds: int, drain: str | None) -> Iterator[Problem]:
    if state == "down":
        down_s = max(donor.down_s or 0.0 for donor in donors)
        since = f" for {format_duration(down_s)}" if down_s else ""
        what = f"; it holds {format_bytes(holds)}" if holds else "; all its content has other copies"
        no_pages = any("MTU" in (donor.why or "") for donor in donors)
        does = "lets no page pass" if no_pages else "has not answered"
        advice = _SAME_MTU if no_pages else "start the donor again, or check its network"
        advice += f"; or, if it is gone for good: {drain}" if drain else ""
        yield Problem(f"{name} {does}{since}{_cause(donors)}{what}", advice)
    elif state == "lost":
        n_bytes = _lost_bytes(donors)
        lost = f": {format_bytes(n_bytes)} had no other copy" if n_bytes else "; all of it has another copy"
        yield Problem(f"{name} ({donors[0].uri}) came back without its memory{lost}", drain)
    elif state == "removed" and (n_bytes := _lost_bytes(donors)):
        uris = ", ".join(donor.uri for donor in donors if donor.lost_pages)
        yield Problem(f"{format_bytes(n_bytes)} were on {uris} alone, which came back without its memory")
    elif state == "slow":
        slow_us = max(donor.smoothed_us for donor in donors)
        yield Problem(f"{name} is slow ({slow_us / 1000:.0f} ms on average): it is used last", drain)
    elif state == "draining":
        yield _leaving(name, donors[0].leaving, holds, drain)


def _leaving(name: str, leaving: Leaving | None, holds: int, drain: str | None) -> Problem:
    """Return the problem of a donor that is being drained, or wants its memory back (`session.leaving`)."""
    if leaving is None:
        return Problem(f"{name} is being drained, {format_bytes(holds)} are left", "nothing: this is under way")
    why = " and ".join(_WISHES.get(cause, cause) for cause in leaving.causes)
    text = f"{name} wants its memory back ({why}); it holds {format_bytes(holds)}"
    if leaving.stays is None:
        return Problem(f"{text}, which move to the others", "nothing: this is under way")
    return Problem(
        f"{text}, which have no room elsewhere: {leaving.stays}",
        f"add a donor (ghostbox donor add ADDRESS), or move the content to this host: {drain} --to-host",
    )


def _copies(vm: str, status: PagerStatus) -> Iterator[Problem]:
    pool = status.pool
    lost = max(pool.lost_pages, status.pages.poisoned)
    if lost:
        kept = status.features.get("poison", True)
        fate = "programs that touch them are killed" if kept else "programs that touch them wait for ever"
        yield Problem(
            f"{format_bytes(lost * PAGE_BYTES)} of the VM's memory are lost: {fate}",
            f"save what matters, then ghostbox down {vm} and ghostbox up {vm}",
        )
    short = pool.missing_copies + pool.stale_copies + pool.filling_copies
    if not short:
        return
    text = f"{format_bytes(short * pool.extent_bytes)} lack a copy"
    if pool.rebuild.active:
        yield Problem(f"{text}; copies are being made", "nothing: this is under way")
    else:
        yield Problem(text, f"add room for copies: ghostbox donor add ADDRESS --vm {vm}")
