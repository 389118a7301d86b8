# SPDX-License-Identifier: MIT
"""Know which donors the VMs of this host use without encryption: commands on these VMs need no consent of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from ghostbox.donors.address import parse_address
from ghostbox.errors import GhostboxError
from ghostbox.paths import Paths
from ghostbox.session import unreleased
from ghostbox.session.record import THIS_HOST, Book, LeaseRecord, names


def donors(paths: Paths) -> frozenset[str]:
    """Return the donors, as ``host:port`` in lower case (`Address.key`), that were used without TLS, or may be.

    These are the lenders of plain leases, of VMs and of former VMs, and all donors of a VM that was started with
    ``pool.insecure``. A record that cannot be read names none.
    """
    return frozenset(parse_address(each).key for each in _addresses(paths))


def _addresses(paths: Paths) -> Iterator[str]:
    for name in names(paths):
        with suppress(GhostboxError):
            record = Book(paths.vm(name)).load()
            if record is not None:
                yield from _lenders(record.leases)
                yield from record.donors if record.insecure else ()
    with suppress(GhostboxError):
        yield from _lenders(each.lease for each in unreleased.load(paths.state))


def _lenders(leases: Iterable[LeaseRecord]) -> Iterator[str]:
    for lease in leases:
        if lease.donor != THIS_HOST and not (lease.nbd_uri or "").startswith("nbds:"):
            yield lease.donor
