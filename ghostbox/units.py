# SPDX-License-Identifier: MIT
"""Convert sizes and durations: inside they are bytes and seconds; configuration and output have MiB, GiB, minutes."""

from __future__ import annotations

import re
from decimal import Decimal

from ghostbox.errors import UsageError

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB
PAGE_BYTES = 4096

MEMORY_BLOCK_BYTES = 128 * MIB
"""Linux on x86-64 assigns memory to NUMA nodes in blocks of this size (Documentation/admin-guide/mm/memory-hotplug)."""

_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?:I?B)?", re.IGNORECASE)
_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h|d|)", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_bytes(text: str | int) -> int:
    """Return the bytes that ``text`` names: ``4096``, ``64K``, ``512MiB``, ``1.5G`` (powers of 1024).

    Raises:
        UsageError: ``text`` is not a size.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise UsageError(f"'{text}' is not a size", hint="write a size such as 512M or 4GiB")
        return text
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise UsageError(f"'{text}' is not a size", hint="write a size such as 512M or 4GiB")
    return int(Decimal(match["number"]) * _FACTORS[match["unit"].upper()])


def missing_unit(text: object) -> str | None:
    """Return advice for a number of bytes below a page, whose unit was probably forgotten; None for other numbers."""
    number = str(text).strip()
    if not re.fullmatch(r"[0-9]+", number) or not 0 < int(number) < PAGE_BYTES:
        return None
    return f"write its unit: {number}{'G' if int(number) < 64 else 'M'}"


def format_bytes(n_bytes: int) -> str:
    """Return ``n_bytes`` for people: ``4 GiB``, ``1.5 MiB``, ``512 B``."""
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if abs(n_bytes) >= factor:
            return f"{n_bytes / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{n_bytes} B"


def exact_bytes(n_bytes: int) -> str:
    """Return ``n_bytes`` as a size that `parse_bytes` reads back unchanged: ``4GiB``, ``1536MiB``, ``4097``."""
    for unit, factor in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if n_bytes and n_bytes % factor == 0:
            return f"{n_bytes // factor}{unit}"
    return str(n_bytes)


def parse_duration(text: str | float) -> float:
    """Return the seconds that ``text`` names: ``90``, ``90s``, ``5m``, ``1.5h``, ``200ms``.

    Raises:
        UsageError: ``text`` is not a duration.
    """
    match = _DURATION.fullmatch(str(text).strip())
    if match is None or isinstance(text, bool):
        raise UsageError(f"'{text}' is not a duration", hint="write a duration such as 90s or 5m")
    return float(match["number"]) * _SECONDS[match["unit"].lower()]


def format_duration(seconds: float) -> str:
    """Return ``seconds`` for people: ``3.2 s``, ``2 min 5 s``, ``1 h 3 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    seconds = round(seconds)
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
