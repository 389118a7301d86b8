# SPDX-License-Identifier: MIT
"""A donor's certificate stays with its id, names no date, and is never replaced while hosts may know it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from ghostbox.errors import GhostboxError
from ghostbox.memserver.certificate import ensure, server_context
from ghostbox.memserver.identity import donor_id

DONOR = "d0" * 8


def test_it_is_made_once_and_its_fingerprint_is_that_of_the_der_form(tmp_path: Path) -> None:
    made = ensure(tmp_path, DONOR)
    assert ensure(tmp_path, DONOR) == made
    found = x509.load_pem_x509_certificate(made.file.read_bytes())
    assert hashlib.sha256(found.public_bytes(serialization.Encoding.DER)).digest() == made.fingerprint
    assert (found.not_valid_before_utc.year, found.not_valid_after_utc.year) == (1970, 9999)
    assert [path.stat().st_mode & 0o777 for path in (made.file, made.key)] == [0o600, 0o600]
    server_context(made)


def test_a_copied_state_directory_gets_another_certificate_with_another_id(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).write_text(name)
    first = ensure(tmp_path, donor_id(tmp_path, machine_id=tmp_path / "here"))
    second = ensure(tmp_path, donor_id(tmp_path, machine_id=tmp_path / "there"))
    assert first.fingerprint != second.fingerprint


def test_a_key_without_certificate_was_never_shown_and_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("a kill left this")
    assert ensure(tmp_path, DONOR) == ensure(tmp_path, DONOR)


@pytest.mark.parametrize("name", ["certificate.pem", "key.pem"])
@pytest.mark.parametrize("damage", ["cut off", "another one's"])
def test_damage_is_an_error_and_no_new_certificate(tmp_path: Path, name: str, damage: str) -> None:
    ensure(tmp_path, DONOR)
    (tmp_path / "other").mkdir()
    ensure(tmp_path / "other", DONOR)
    content = (tmp_path / "other" / name).read_bytes()
    (tmp_path / name).write_bytes(content if damage == "another one's" else content[:60])
    before = (tmp_path / "certificate.pem").read_bytes()
    damaged = "key.pem" if damage == "another one's" else name
    with pytest.raises(GhostboxError, match=f"cannot use {tmp_path}/{damaged}") as caught:
        ensure(tmp_path, DONOR)
    assert caught.value.hint == (
        f"bring it back from a copy; without one: rm {tmp_path}/certificate.pem, and pair each host again"
        " (ghostbox token create)"
    )
    assert (tmp_path / "certificate.pem").read_bytes() == before


def test_a_missing_key_is_an_error(tmp_path: Path) -> None:
    ensure(tmp_path, DONOR).key.unlink()
    with pytest.raises(GhostboxError, match=f"cannot use {tmp_path}/key.pem"):
        ensure(tmp_path, DONOR)
