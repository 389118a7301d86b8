# SPDX-License-Identifier: MIT
"""Search a process's memory as its owner or a core dump would: /proc/PID/mem and smaps, proc(5)."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ghostbox.units import PAGE_BYTES

Finder = Callable[[bytes], bool]
NOT_DUMPED, LOCKED = "dd", "lo"
"""Flags of a mapping: MADV_DONTDUMP, mlock."""
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)")


@dataclass(frozen=True)
class Mapping:
    """Is a range of addresses with its name and its flags (``VmFlags``)."""

    start: int
    end: int
    readable: bool
    name: str
    flags: frozenset[str]
    resident_bytes: int


def mappings(pid: int) -> list[Mapping]:
    """Return all of a process's mappings."""
    found: list[Mapping] = []
    head, resident = None, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if (begun := _MAPPING.fullmatch(line)) is not None:
            head = begun
        elif line.startswith("Rss:"):
            resident = int(line.split()[1]) * 1024
        elif line.startswith("VmFlags:") and head is not None:
            start, end = int(head[1], 16), int(head[2], 16)
            flags = frozenset(line.split()[1:])
            found.append(Mapping(start, end, head[3].startswith("r"), head[4], flags, resident))
    return found


def places(pid: int, holds: Finder) -> list[Mapping]:
    """Return the mappings of a process in which ``holds`` finds something."""
    return [mapping for mapping, content in _contents(pid) if holds(content)]


def present_pages(pid: int, count: int) -> list[int]:
    """Return which pages a process can read without a fault, of its one shared mapping of so many pages.

    Source: Documentation/admin-guide/mm/pagemap.rst (bit 63: the page is present).
    """
    [found] = [each for each in mappings(pid) if each.end - each.start == count * PAGE_BYTES and "memfd" in each.name]
    with Path(f"/proc/{pid}/pagemap").open("rb", buffering=0) as pagemap:
        pagemap.seek(found.start // PAGE_BYTES * 8)
        words = struct.unpack(f"<{count}Q", pagemap.read(count * 8))
    return [page for page, word in enumerate(words) if word >> 63]


def _contents(pid: int) -> Iterator[tuple[Mapping, bytes]]:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for mapping in mappings(pid):
            # A mapping that was never touched holds nothing; [vvar] cannot be read.
            if mapping.readable and mapping.resident_bytes > 0:
                with contextlib.suppress(OSError):
                    memory.seek(mapping.start)
                    yield mapping, memory.read(mapping.end - mapping.start)
