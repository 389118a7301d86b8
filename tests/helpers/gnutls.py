# SPDX-License-Identifier: MIT
"""Use GnuTLS through ctypes: TLS peers that offer what a test chooses, also what no correct peer would.

    with RawClient(port) as client:
        client.option(nbd.STARTTLS)
        client.socket = Session.client(client.socket, "a", KEY)

A session has ``sendall``, ``recv`` and ``close``, like a socket.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from pathlib import Path
from typing import Any

PSK_DHE = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+ECDHE-PSK:+DHE-PSK"
PSK_PLAIN = "NORMAL:-VERS-ALL:+VERS-TLS1.3:-KX-ALL:+PSK"
TLS_1_2 = "NORMAL:-VERS-ALL:+VERS-TLS1.2:-KX-ALL:+ECDHE-PSK:+DHE-PSK"
TIMEOUT_S = 20
_SERVER, _CLIENT = 1, 2
_CREDENTIALS_PSK = 4
_KEY_RAW = 0
_lib = ctypes.CDLL("libgnutls.so.30")
_lib.gnutls_strerror.restype = ctypes.c_char_p
_lib.gnutls_alert_get_name.restype = ctypes.c_char_p
_lib.gnutls_record_send.restype = _lib.gnutls_record_recv.restype = ctypes.c_ssize_t
_lib.gnutls_record_send.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
_lib.gnutls_record_recv.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]


class TlsError(Exception):
    """Is raised if the handshake or a record fails; the text is GnuTLS's, or the peer's alert."""


class _Datum(ctypes.Structure):
    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_uint))


def key_file(path: Path, **keys: str) -> Path:
    """Write a file of keys like psktool: identity and hexadecimal key."""
    path.touch(0o600)
    path.write_text("".join(f"{identity}:{key}\n" for identity, key in keys.items()))
    return path


class Session:
    """Is an end of a connection whose other end is a TLS peer. It takes over the socket."""

    def __init__(self, sock: socket.socket, flags: int, priority: str) -> None:
        self._socket = sock
        self._session = ctypes.c_void_p()
        self._credentials = ctypes.c_void_p()
        # GnuTLS waits in recv(2): Python's time limit would make the descriptor non-blocking.
        sock.settimeout(None)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", TIMEOUT_S, 0))
        self._check(_lib.gnutls_init(ctypes.byref(self._session), flags))
        self._check(_lib.gnutls_priority_set_direct(self._session, priority.encode(), None))
        _lib.gnutls_transport_set_int2(self._session, sock.fileno(), sock.fileno())

    @classmethod
    def client(cls, sock: Any, identity: str, key: str, *, priority: str = PSK_DHE) -> Session:
        """Shake hands as a client with a hexadecimal key. Raises ``TlsError``."""
        self, raw = cls(sock, _CLIENT, priority), bytes.fromhex(key)
        self._check(_lib.gnutls_psk_allocate_client_credentials(ctypes.byref(self._credentials)))
        datum = _Datum(raw, len(raw))
        self._check(
            _lib.gnutls_psk_set_client_credentials(self._credentials, identity.encode(), ctypes.byref(datum), _KEY_RAW)
        )
        self._shake()
        return self

    @classmethod
    def server(cls, sock: Any, keys: Path, *, priority: str = PSK_DHE) -> Session:
        """Shake hands as a server with a file of keys. Raises ``TlsError``."""
        self = cls(sock, _SERVER, priority)
        self._check(_lib.gnutls_psk_allocate_server_credentials(ctypes.byref(self._credentials)))
        self._check(_lib.gnutls_psk_set_server_credentials_file(self._credentials, str(keys).encode()))
        self._shake()
        return self

    def _shake(self) -> None:
        self._check(_lib.gnutls_credentials_set(self._session, _CREDENTIALS_PSK, self._credentials))
        self._check(_lib.gnutls_handshake(self._session))

    def _check(self, rc: int) -> int:
        if rc >= 0:
            return rc
        alert = _lib.gnutls_alert_get_name(_lib.gnutls_alert_get(self._session)) if rc == -12 else None
        raise TlsError((alert or _lib.gnutls_strerror(rc)).decode())

    def sendall(self, data: bytes) -> None:
        """Send all of the data."""
        while data:
            data = data[self._check(_lib.gnutls_record_send(self._session, data, len(data))) :]

    def recv(self, length: int) -> bytes:
        """Return some bytes; none at the end."""
        buffer = ctypes.create_string_buffer(length)
        got = _lib.gnutls_record_recv(self._session, buffer, length)
        while got in (-28, -52):  # GNUTLS_E_AGAIN (after a message that holds no data), GNUTLS_E_INTERRUPTED
            got = _lib.gnutls_record_recv(self._session, buffer, length)
        if got in (-110, -54):  # the peer closed the connection without close_notify
            return b""
        return buffer.raw[: self._check(got)]

    def update_key(self) -> None:
        """Change the keys of both directions."""
        self._check(_lib.gnutls_session_key_update(self._session, 1))

    def close(self) -> None:
        """Close the socket without close_notify."""
        self._socket.close()
