# SPDX-License-Identifier: MIT
"""Define what a donor announces of itself by multicast DNS (RFC 6762, 6763); donors and hosts both use this.

The service is ``_ghostbox._tcp``. Its SRV record has the port of the control API, its TXT record these keys:

    txtvers      1
    name         the memserver's name
    id           the memserver's id, 16 hexadecimal digits
    version      GhostBox's version
    fingerprint  SHA-256 of its certificate, hexadecimal; not there if the donor speaks without TLS

Nothing is said of leases, hosts or sizes. Whoever is on the network can announce whatever they like, so none of it is
believed: it only says where to ask.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

SERVICE = "_ghostbox._tcp.local."
LONGEST_TXT = 1300
"""Most bytes of a TXT record that are looked at (RFC 6763, section 6.2: more does not fit into a packet)."""

_TXT_VERSION = "1"
_FORMS = {
    "txtvers": re.compile(r"\d{1,3}"),
    "name": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"),
    "id": re.compile(r"[0-9a-f]{16}"),
    "version": re.compile(r"[0-9A-Za-z][0-9A-Za-z.+_-]{0,31}"),
    "fingerprint": re.compile(r"[0-9a-f]{64}"),
}


@dataclass(frozen=True)
class Announced:
    """Holds what a donor announces. ``fingerprint`` is empty if the donor speaks without TLS."""

    name: str
    id: str
    version: str
    fingerprint: str = ""

    def properties(self) -> dict[str, str]:
        """Return the keys and values of the TXT record."""
        said = {"txtvers": _TXT_VERSION, "name": self.name, "id": self.id, "version": self.version}
        return said | ({"fingerprint": self.fingerprint} if self.fingerprint else {})


def parse(text: bytes) -> Announced:
    """Return what a TXT record says.

    Raises:
        ValueError: the record is not one of ours; the message says why, and repeats nothing of the record.
    """
    if len(text) > LONGEST_TXT:
        raise ValueError(f"it is longer than {LONGEST_TXT} bytes")
    said = _strings(text)
    for key in ("txtvers", "name", "id", "version"):
        if key not in said:
            raise ValueError(f"it has no {key}")
    values = {}
    for key, form in _FORMS.items():
        value = said.get(key, b"").decode("ascii", "replace")
        if key in said and not form.fullmatch(value):
            raise ValueError(f"its {key} has a wrong form")
        values[key] = value
    if values.pop("txtvers") != _TXT_VERSION:
        raise ValueError("it is of a newer form; use one version of GhostBox on both machines")
    return Announced(**values)


def _strings(text: bytes) -> dict[str, bytes]:
    """Return the keys of a TXT record that are known here, each with its first value (RFC 6763, section 6.4)."""
    found: dict[str, bytes] = {}
    at = 0
    while at < len(text):
        end = at + 1 + text[at]
        key, equals, value = text[at + 1 : end].partition(b"=")
        name = key.decode("ascii", "replace").lower()
        if equals and name in _FORMS:
            found.setdefault(name, value)
        at = end
    return found
