# SPDX-License-Identifier: MIT
"""A pairing token is read as it was written; everything else is refused and not repeated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostbox.donors import token
from ghostbox.donors.token import Token
from ghostbox.errors import UsageError

MADE = Token(("192.168.7.2:10810", "[fd00::2]:10810"), b"f" * 32, b"i" * 8, b"s" * 16)


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=8, max_size=8), st.binary(min_size=16, max_size=16))
def test_a_token_is_read_as_it_was_written(fingerprint: bytes, number: bytes, secret: bytes) -> None:
    made = Token(("tower:10810",), fingerprint, number, secret)
    assert token.parse(f" {made.text()}\n") == made
    assert token.is_token(made.text())


def test_the_secret_is_in_no_repr() -> None:
    assert "sss" not in repr(MADE)


@pytest.mark.parametrize("place", range(len(MADE.text())))
def test_a_token_with_a_changed_or_missing_character_is_refused(place: int) -> None:
    text = MADE.text()
    changed = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
    for bad in (changed, text[:place]):
        with pytest.raises(UsageError) as caught:
            token.parse(bad)
        assert text[5:40] not in f"{caught.value.message}{caught.value.why}{caught.value.hint}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "this is no pairing token"),
        ("tower:10810", "this is no pairing token"),
        ("gbt1_", "the token is incomplete, or was changed on the way"),
        ("gbt1_äöü", "the token is incomplete, or was changed on the way"),
        ("gbt1_" + "A" * 5000, "this is no pairing token"),
        (MADE.text()[:-1], "the token is incomplete, or was changed on the way"),
        ("gbt2_AAAA", "this token is of version 2, and this host reads version 1"),
    ],
)
def test_what_is_no_token_is_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        token.parse(text)


@pytest.mark.parametrize("word", ["tower", "gbt", "gbt_x", "gbtower_1", "192.168.7.2:10810", "[fd00::2]"])
def test_an_address_or_a_name_is_not_meant_as_a_token(word: str) -> None:
    assert not token.is_token(word)
