# SPDX-License-Identifier: MIT
"""The keys of a VM's leases are in one file, which its owner alone can read, and go with the leases."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

import pytest

from ghostbox import donors
from ghostbox.donors.client import Lease
from ghostbox.donors.models import Holder
from ghostbox.errors import GhostboxError
from ghostbox.paths import VmPaths
from ghostbox.session import lease_keys

NOW = datetime.datetime.now(datetime.UTC)
LEASE = Lease(
    "a:1", "attic", "i", "p", "m", 10809, "one", "one", 4096, 0, "x", Holder("h", "v"), NOW, 0, 0.0, "ab" * 32
)


@pytest.fixture
def files(tmp_path: Path) -> VmPaths:
    return VmPaths(tmp_path, tmp_path)


def test_each_key_is_a_line_and_only_the_owner_reads_them(files: VmPaths) -> None:
    lease_keys.add(files, [LEASE, replace(LEASE, export="two", tls_psk="cd" * 32), replace(LEASE, tls_psk=None)])
    assert files.lease_keys.read_text() == f"one:{'ab' * 32}\ntwo:{'cd' * 32}\n"
    assert files.lease_keys.stat().st_mode & 0o777 == 0o600
    lease_keys.add(files, [replace(LEASE, tls_psk="ef" * 32)])
    assert files.lease_keys.read_text() == f"two:{'cd' * 32}\none:{'ef' * 32}\n"


def test_a_key_goes_with_its_lease_and_the_file_with_the_last(files: VmPaths) -> None:
    lease_keys.add(files, [LEASE, replace(LEASE, export="two")])
    lease_keys.keep(files, ["two", "without a key"])
    assert files.lease_keys.read_text() == f"two:{'ab' * 32}\n"
    lease_keys.keep(files, [])
    assert list(files.state.iterdir()) == []
    lease_keys.keep(files, [])


def test_without_keys_there_is_no_file(files: VmPaths) -> None:
    lease_keys.add(files, [replace(LEASE, tls_psk=None)])
    assert not files.lease_keys.exists()


def test_a_file_that_cannot_be_used_is_named(files: VmPaths) -> None:
    files.lease_keys.mkdir()
    with pytest.raises(GhostboxError, match="cannot read the keys of the leases, .*lease-keys: Is a directory"):
        lease_keys.add(files, [LEASE])
    nowhere = VmPaths(files.state / "gone", files.state)
    with pytest.raises(GhostboxError, match="cannot write the keys of the leases, .*lease-keys: No such file"):
        lease_keys.add(nowhere, [LEASE])


def test_the_uri_names_the_file_and_never_the_key() -> None:
    uri = donors.nbd_uri("[fe80::1%eth0]:1", LEASE, Path("/var/lib/odd name & more/lease-keys"))
    assert uri == ("nbds://one@[fe80::1%25eth0]:10809/one?tls-psk-file=/var/lib/odd%20name%20%26%20more/lease-keys")
    assert donors.nbd_uri("a:1", replace(LEASE, tls_psk=None)) == "nbd://a:10809/one"
