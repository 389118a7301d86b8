# SPDX-License-Identifier: MIT
"""Write and read pairing tokens: the line that a donor's owner gives to a host's user, who pastes it once.

A token is text, ``gbt1_`` and base64url without padding, of these bytes:

    0   32   SHA-256 of the donor's certificate (DER): the host talks to no other donor
    32   8   id of the token at the donor
    40  16   secret, which the donor accepts once and only until the token expires
    56   n   addresses of the donor's control API, separated by spaces (UTF-8)
    56+n 4   first bytes of the SHA-256 of all that is before: tells a torn line from a forged one

Only a token expires, never a pairing that was made by it. A token is as good as a password until it is used.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

from ghostbox.errors import UsageError

PREFIX = "gbt1_"
ID_BYTES = 8
SECRET_BYTES = 16
FINGERPRINT_BYTES = 32

_CHECK_BYTES = 4
_FIXED_BYTES = FINGERPRINT_BYTES + ID_BYTES + SECRET_BYTES
_LONGEST = 2048
_HINT = "paste the whole line that the donor printed, or have it print a new one there: ghostbox token create"


@dataclass(frozen=True)
class Token:
    """Holds what a token says. ``addresses`` are ``host:port`` of the control API, the best one first."""

    addresses: tuple[str, ...]
    fingerprint: bytes
    id: bytes
    secret: bytes = field(repr=False)

    def text(self) -> str:
        """Return the line to paste."""
        body = self.fingerprint + self.id + self.secret + " ".join(self.addresses).encode()
        return PREFIX + base64.urlsafe_b64encode(body + _check(body)).decode().rstrip("=")


def is_token(text: str) -> bool:
    """Tell whether a word is meant as a token, of this or another version, and not as an address or a name."""
    head, found, _ = text.strip().partition("_")
    return bool(found) and head.startswith("gbt") and head[3:].isdigit()


def parse(text: str) -> Token:
    """Return what a token says.

    Raises:
        UsageError: the text is no token, is of another version, or is incomplete. The text itself is not repeated.
    """
    line = text.strip()
    if is_token(line) and not line.startswith(PREFIX):
        version = line.partition("_")[0].removeprefix("gbt")
        raise UsageError(
            f"this token is of version {version}, and this host reads version 1",
            hint="use one version of GhostBox on both machines",
        )
    if not line.startswith(PREFIX) or len(line) > _LONGEST:
        raise UsageError("this is no pairing token", hint=_HINT)
    try:
        data = line.removeprefix(PREFIX)
        whole = base64.b64decode(data + "=" * (-len(data) % 4), altchars=b"-_", validate=True)
        body, check = whole[:-_CHECK_BYTES], whole[-_CHECK_BYTES:]
        if len(body) <= _FIXED_BYTES or check != _check(body):
            raise ValueError("checksum")
        addresses = tuple(body[_FIXED_BYTES:].decode().split(" "))
    except (ValueError, binascii.Error):
        # The error is not chained: it may repeat the token.
        raise UsageError("the token is incomplete, or was changed on the way", hint=_HINT) from None
    id_end = FINGERPRINT_BYTES + ID_BYTES
    return Token(addresses, body[:FINGERPRINT_BYTES], body[FINGERPRINT_BYTES:id_end], body[id_end:_FIXED_BYTES])


def _check(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:_CHECK_BYTES]
