# SPDX-License-Identifier: MIT
"""Sizes and durations are parsed and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostbox.errors import UsageError
from ghostbox.units import GIB, KIB, MIB, exact_bytes, format_bytes, format_duration, parse_bytes, parse_duration


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        (4096, 4096),
        ("64K", 64 * KIB),
        ("512MiB", 512 * MIB),
        ("1.5G", 3 * GIB // 2),
        (" 2 gb ", 2 * GIB),
    ],
)
def test_size_is_read(text: str | int, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize("text", ["", "G", "4Q", "-1", "1.2.3M", "4 GiB more", True, -5])
def test_what_is_no_size_is_refused(text: str | int) -> None:
    with pytest.raises(UsageError, match="is not a size") as caught:
        parse_bytes(text)
    assert caught.value.hint == "write a size such as 512M or 4GiB"


@given(st.integers(min_value=0, max_value=2**60))
def test_an_exact_size_is_read_back_unchanged(n_bytes: int) -> None:
    assert parse_bytes(exact_bytes(n_bytes)) == n_bytes


@pytest.mark.parametrize(("n_bytes", "text"), [(512, "512 B"), (4096, "4 KiB"), (3 * GIB // 2, "1.5 GiB")])
def test_size_is_shown(n_bytes: int, text: str) -> None:
    assert format_bytes(n_bytes) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("5m", 300), ("1.5h", 5400), ("200ms", 0.2), ("1d", 86400), (7, 7)]
)
def test_duration_is_read(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "soon", "5 weeks", "-1s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.21, "3.2 s"), (59.99, "1 min 0 s"), (119.9, "2 min 0 s"), (125, "2 min 5 s"), (3780, "1 h 3 min")],
)
def test_duration_is_shown(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
