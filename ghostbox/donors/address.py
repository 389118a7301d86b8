# SPDX-License-Identifier: MIT
"""Read and write the addresses of donors' control APIs."""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass

from ghostbox.errors import UsageError

CONTROL_PORT = 10810
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>\d{1,5}))?")


@dataclass(frozen=True)
class Address:
    """Is the address of a donor's control API."""

    host: str
    port: int = CONTROL_PORT

    def __str__(self) -> str:
        return f"{self.url_host}:{self.port}"

    @property
    def url_host(self) -> str:
        """Return the host as people and httpx write it: an IPv6 address in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def uri_host(self) -> str:
        """Return the host as a URI has it: a link-local address's interface behind ``%25`` (RFC 6874)."""
        return self.url_host.replace("%", "%25")

    @property
    def key(self) -> str:
        """Return the address as text that is the same for all its spellings."""
        return str(self).lower()

    @property
    def is_loopback(self) -> bool:
        """Tell whether what is sent to the address stays on this machine."""
        if self.host.lower() == "localhost":
            return True
        try:
            # inet_aton(3) also reads short spellings, such as 127.1.
            found = ipaddress.ip_address(self.host if ":" in self.host else socket.inet_aton(self.host))
        except (OSError, ValueError):
            return False
        mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
        place = mapped or found
        return place.is_loopback or place.is_unspecified  # connections to 0.0.0.0 go to this machine


def parse_address(text: str) -> Address:
    """Return the address that ``host``, ``host:port`` or ``[IPv6]:port`` names; the port defaults to 10810.

    Raises:
        UsageError: ``text`` is none of these.
    """
    match = _ADDRESS.fullmatch(text.strip())
    port = CONTROL_PORT if match is None or match["port"] is None else int(match["port"])
    if match is None or not 1 <= port <= 65535:
        hint = "write HOST, HOST:PORT or [IPV6]:PORT"
        if text.count(":") > 1 and "[" not in text:
            hint = f"write an IPv6 address in brackets: [{text}]"
        raise UsageError(f"'{text}' is not the address of a donor", hint=hint)
    return Address(match["six"] or match["host"], port)
