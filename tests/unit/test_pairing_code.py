# SPDX-License-Identifier: MIT
"""The words that host and donor show: both compute the same ones, and any other input gives other words."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from ghostbox.donors import code
from ghostbox.donors.words import WORDS

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
ids = st.binary(min_size=8, max_size=8).map(bytes.hex)
inputs = st.tuples(digests, digests, digests, digests)


def test_the_list_is_the_whole_english_list_of_bip_39() -> None:
    text = "".join(f"{word}\n" for word in WORDS)
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "2f5eed53a4727b4bf8880d8f3f199efc90e58503646d9ff8eff3a2ed3b24dbda"
    )
    assert len({word[:4] for word in WORDS}) == 2048


def test_known_answers() -> None:
    zeroes, ones = "00" * 32, "11" * 32
    text = b"ghostbox pairing code 1\0" + bytes(32) + b"\x11" * 32 + b"\x22" * 32 + b"\x33" * 32
    number = int.from_bytes(hashlib.sha256(text).digest()[:6], "big") >> 4
    spelt = [WORDS[int(f"{number:044b}"[at : at + 11], 2)] for at in (0, 11, 22, 33)]
    assert code.words(zeroes, ones, "22" * 32, "33" * 32) == " ".join(spelt) == "labor smile wink shy"
    text = b"ghostbox pairing commitment 1\0" + b"\x22" * 32 + b"\x11" * 32 + b"\x44" * 8
    assert code.commitment("22" * 32, ones, "44" * 8) == hashlib.sha256(text).hexdigest()


@given(inputs, st.integers(0, 3), st.integers(0, 255))
def test_any_other_bit_of_any_input_gives_other_words(given_: tuple[str, ...], place: int, bit: int) -> None:
    changed = list(given_)
    changed[place] = f"{int(changed[place], 16) ^ (1 << bit):064x}"
    assert code.words(*given_) == code.words(*given_)
    assert code.words(*changed) != code.words(*given_)  # but once in 2^44


@given(digests, digests, ids, st.integers(0, 255))
def test_a_commitment_binds_the_host_to_nonce_credential_and_id(nonce: str, sha256: str, number: str, bit: int) -> None:
    made = code.commitment(nonce, sha256, number)
    other = f"{int(nonce, 16) ^ (1 << bit):064x}"
    assert made != code.commitment(other, sha256, number)
    assert made != code.commitment(nonce, other if other != sha256 else "00" * 32, number)
    assert made != code.commitment(nonce, sha256, f"{int(number, 16) ^ (1 << bit % 64):016x}")


def test_words_are_compared_as_people_type_them() -> None:
    assert code.is_same("Zoo-lamp  RIVER\nable", "zoo lamp river able")
    assert not code.is_same("zoo lamp river", "zoo lamp river able")
    assert not code.is_same("", "zoo lamp river able")


@given(st.tuples(digests, digests, digests, digests))
def test_a_code_is_four_words_of_the_list(given_: tuple[str, str, str, str]) -> None:
    words = code.words(*given_).split(" ")
    assert len(words) == 4
    assert set(words) <= set(WORDS)
