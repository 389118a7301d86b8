# SPDX-License-Identifier: MIT
"""Decide how much of its RAM a donor may lend: ``--size`` and ``--reserve`` compared with the available memory.

The donor's owner has priority: what is lent can never exceed the available memory, less the reserve. Available is the
kernel's own estimate (``MemAvailable``, proc(5)), or the room below the memory limit of this process's control group if
that is smaller (a container, a systemd slice). Of the two limits of cgroup version 2 the lower counts: the kernel does
not end a group above ``memory.high``, but throttles all programs in it until they hardly run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import psutil

from ghostbox.errors import Refused, UsageError
from ghostbox.units import MIB, PAGE_BYTES, format_bytes, missing_unit, parse_bytes

AUTO = "auto"
SMALLEST_BYTES = MIB
_PERCENT = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*%")
_HINT_SIZE = "write a size such as 16G, a share of the machine's RAM such as 50%, or auto"


@dataclass(frozen=True)
class MemoryFacts:
    """Holds the machine's memory, in bytes; ``limited_by`` names the control group whose limit is smaller."""

    total_bytes: int
    available_bytes: int
    limited_by: str | None = None


@dataclass(frozen=True)
class _GroupFiles:
    """Holds the names of a control group's files in one version of the interface (kernel: cgroup-v1, cgroup-v2)."""

    limits: tuple[str, ...]
    usage: str
    reclaimable_key: str


_V1 = _GroupFiles(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _GroupFiles(("memory.max", "memory.high"), "memory.current", "inactive_file")


def read_facts(
    proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup"), *, member: str = "self"
) -> MemoryFacts:
    """Return the machine's RAM, or the room in the tightest control group of process ``member`` if that is less."""
    memory = psutil.virtual_memory()
    facts = MemoryFacts(memory.total, memory.available)
    for directory, files in _own_groups(proc / member / "cgroup", groups):
        facts = _limit_by_group(facts, directory, files)
    return facts


def _own_groups(membership: Path, groups: Path) -> list[tuple[Path, _GroupFiles]]:
    """Return the process's memory control group and all its ancestors, in both versions of the interface."""
    found: list[tuple[Path, _GroupFiles]] = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, files = groups, _V2
        elif "memory" in controllers.split(","):
            root, files = groups / "memory", _V1
        else:
            continue
        group = root / path.lstrip("/")
        found += [(group, files)] + [(parent, files) for parent in group.parents if parent.is_relative_to(root)]
    return found


def _limit_by_group(facts: MemoryFacts, group: Path, files: _GroupFiles) -> MemoryFacts:
    """Return ``facts``, lowered to the limit of ``group`` if it has one."""
    limits = [limit for name in files.limits if (limit := _number(group / name)) is not None]
    usage_bytes = _number(group / files.usage)
    try:
        stat = (group / "memory.stat").read_text().split()
    except OSError:  # this group does not exist at this place
        return facts
    if not limits or usage_bytes is None:
        return facts
    limit_bytes = min(limits)
    reclaimable = dict(zip(stat[::2], stat[1::2], strict=False)).get(files.reclaimable_key, "0")
    room_bytes = max(0, limit_bytes - usage_bytes + int(reclaimable))
    if limit_bytes >= facts.total_bytes and room_bytes >= facts.available_bytes:
        return facts
    return MemoryFacts(min(facts.total_bytes, limit_bytes), min(facts.available_bytes, room_bytes), str(group))


def _number(file: Path) -> int | None:
    """Return the number in a group's file; None if the file does not exist, or says "max": no limit."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def requested_bytes(size: str, facts: MemoryFacts) -> int | None:
    """Return the bytes that ``--size`` names, rounded down to whole pages, or None for ``auto``.

    Raises:
        UsageError: ``size`` is neither a size, nor a percentage, nor ``auto``.
    """
    if size.strip().lower() == AUTO:
        return None
    return _amount(size, facts)


def size_to_lend(size: str, reserve_bytes: int, facts: MemoryFacts) -> int:
    """Return how many bytes to lend, in whole pages.

    Args:
        size: ``16G``, ``50%`` (of all RAM) or ``auto`` (all that is available, less the reserve).
        reserve_bytes: what must stay free for the machine's owner.
        facts: the machine's present memory.

    Raises:
        UsageError: ``size`` cannot be read or is too little.
        Refused: ``size`` is more than is available less the reserve, or that is too little to be of use.
    """
    lendable = max(0, facts.available_bytes - reserve_bytes) // PAGE_BYTES * PAGE_BYTES
    wanted = requested_bytes(size, facts)
    n_bytes = lendable if wanted is None else wanted
    if wanted is not None and wanted < SMALLEST_BYTES:
        raise UsageError(f"--size {size} is too little to lend", hint=missing_unit(size) or "lend 1 MiB or more")
    if n_bytes > lendable or lendable < SMALLEST_BYTES:
        what = "memory" if wanted is None else format_bytes(wanted)
        raise Refused(
            f"cannot lend {what}: {format_bytes(facts.available_bytes)} of"
            f" {format_bytes(facts.total_bytes)} are available, {format_bytes(reserve_bytes)} of them are kept in"
            f" reserve, which leaves {format_bytes(lendable)}",
            why=f"the limit of control group {facts.limited_by} counts" if facts.limited_by else None,
            hint="end something that uses memory, or lower --reserve"
            if lendable < SMALLEST_BYTES
            else f"--size {lendable // MIB}M, --size auto, or a lower --reserve",
        )
    return n_bytes


def _amount(text: str, facts: MemoryFacts) -> int:
    """Return the bytes of a size, or of a percentage of all RAM, in whole pages."""
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        try:
            n_bytes = parse_bytes(text)
        except UsageError as err:
            raise UsageError(err.message, hint=_HINT_SIZE) from err
    elif float(match["number"]) > 100:
        raise UsageError(f"'{text}' is more than all RAM", hint=_HINT_SIZE)
    else:
        n_bytes = int(facts.total_bytes * float(match["number"]) / 100)
    return n_bytes // PAGE_BYTES * PAGE_BYTES
