# SPDX-License-Identifier: MIT
"""Compute the code of a request to be paired: four words that host and donor both show (docs/reference/pairing.md).

The code has 44 bits. A program in the middle that knew all inputs could look for keys of its own that give the same
words on both sides; about 2^22 tries would do. So the host commits to its nonce before it learns the donor's, and opens
the nonce afterwards: whoever is in the middle has to choose all of its own inputs before it knows what the words will
be, and is right once in 2^44.

All inputs and digests are hexadecimal, of fixed lengths, so that no two lists of inputs give one text.
"""

from __future__ import annotations

import hashlib

from ghostbox.donors.words import WORDS

NONCE_BYTES = 32
_COMMITMENT = b"ghostbox pairing commitment 1\0"
_CODE = b"ghostbox pairing code 1\0"
_N_WORDS = 4
_WORD_BITS = 11
_DIGEST_CHARS = 64
_HOST_ID_CHARS = 16


def commitment(host_nonce: str, credential_sha256: str, host_id: str) -> str:
    """Return what a host sends before it learns the donor's nonce: a digest of its own nonce, credential and id."""
    whole = _joined(_COMMITMENT, host_nonce, credential_sha256) + _bytes(host_id, _HOST_ID_CHARS)
    return hashlib.sha256(whole).hexdigest()


def words(fingerprint: str, credential_sha256: str, host_nonce: str, donor_nonce: str) -> str:
    """Return the code: four words, with a space between two.

    Args:
        fingerprint: SHA-256 of the donor's certificate, as this side sees it.
        credential_sha256: SHA-256 of the credential that the host will show to the donor.
        host_nonce: what the host has drawn, and committed to.
        donor_nonce: what the donor has drawn after that.
    """
    whole = hashlib.sha256(_joined(_CODE, fingerprint, credential_sha256, host_nonce, donor_nonce)).digest()
    number = int.from_bytes(whole, "big") >> (len(whole) * 8 - _N_WORDS * _WORD_BITS)
    places = [number >> (_WORD_BITS * place) & (len(WORDS) - 1) for place in reversed(range(_N_WORDS))]
    return " ".join(WORDS[place] for place in places)


def digest(secret: str) -> str:
    """Return the SHA-256 of a secret's bytes, which may be shown; both are hexadecimal."""
    return hashlib.sha256(bytes.fromhex(secret)).hexdigest()


def is_same(one: str, other: str) -> bool:
    """Tell whether two codes, as people type them, are one: case, hyphens and spaces do not count."""
    return one.lower().replace("-", " ").split() == other.lower().replace("-", " ").split()


def _joined(domain: bytes, *digests: str) -> bytes:
    return domain + b"".join(_bytes(each, _DIGEST_CHARS) for each in digests)


def _bytes(text: str, n_chars: int) -> bytes:
    assert len(text) == n_chars, "inputs have fixed lengths: the models have checked them"
    return bytes.fromhex(text)
