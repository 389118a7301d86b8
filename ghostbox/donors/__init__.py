# SPDX-License-Identifier: MIT
"""Talk to donors: their control API, leases, which donors this host knows, and how fast their links are."""

from ghostbox.donors.leases import (
    Assignment,
    Survey,
    acquire,
    donor_key,
    machine_at,
    nbd_uri,
    oddities,
    offer_of,
    query,
    release,
    survey,
)

__all__ = [
    "Assignment",
    "Survey",
    "acquire",
    "donor_key",
    "machine_at",
    "nbd_uri",
    "oddities",
    "offer_of",
    "query",
    "release",
    "survey",
]
