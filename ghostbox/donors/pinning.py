# SPDX-License-Identifier: MIT
"""Speak TLS with a donor whose certificate is known: its SHA-256 is compared, and nothing else of it counts.

A donor signs its certificate itself, so no authority is asked, and neither names nor times in it mean anything. The
comparison is made right after the handshake, before a byte of a request is sent: another server learns nothing from the
host, not even which donor it looks for (no SNI).
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import ssl
from typing import Any

from ghostbox.donors.address import Address


class ForeignCertificate(OSError):
    """Is raised right after the handshake with a server that has another certificate; nothing was sent to it."""


class PinnedContext(ssl.SSLContext):
    """Makes TLS 1.3 connections to the server with one certificate; `pinned` makes the context."""

    fingerprint: str | None = None

    def wrap_socket(self, sock: socket.socket, *_: Any, **__: Any) -> ssl.SSLSocket:
        """Do the handshake as a client, then compare the certificate. All options of the caller are ignored.

        Raises:
            ForeignCertificate: the server has another certificate.
            OSError: the handshake failed.
        """
        made = super().wrap_socket(sock)
        found = _fingerprint_of(made)
        if self.fingerprint is not None and not hmac.compare_digest(found, self.fingerprint):
            made.close()
            raise ForeignCertificate(f"the server's certificate has the SHA-256 {found}")
        return made

    def wrap_bio(self, *_: Any, **__: Any) -> ssl.SSLObject:
        """Refuse connections that are not sockets: their handshake comes later, and would not be checked."""
        raise NotImplementedError("only sockets are checked")


def pinned(fingerprint: str | None) -> PinnedContext:
    """Return a context for the server whose certificate has this SHA-256 (hexadecimal); None takes any server.

    Without a fingerprint, the caller must send nothing that is not for everybody.
    """
    context = PinnedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.fingerprint = fingerprint
    return context


def fingerprint_at(address: Address, timeout_s: float) -> str | None:
    """Return the SHA-256 of the certificate of the server at an address; None if no server there speaks TLS 1.3."""
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=timeout_s) as plain,
            pinned(None).wrap_socket(plain) as sealed,
        ):
            return _fingerprint_of(sealed)
    except OSError:
        return None


def _fingerprint_of(sealed: ssl.SSLSocket) -> str:
    return hashlib.sha256(sealed.getpeercert(binary_form=True) or b"").hexdigest()
