# SPDX-License-Identifier: MIT
"""Serve chosen answers over HTTPS on loopback, with a certificate of its own, and keep all that clients send.

    with tls_server(tmp_path, answers) as server:
        DonorClient(server.address, channel=to_be_paired(server.fingerprint))

Tests use it where a real donor would have to misbehave, or to be killed at a certain moment.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.server
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

Answer = tuple[int, Any] | Callable[["Seen"], "tuple[int, Any] | None"]


@dataclass(frozen=True)
class Seen:
    """Is a request."""

    method: str
    path: str
    authorization: str | None
    body: str


@dataclass
class TlsServer:
    """Is a running server; ``requests`` are all that it has got, ``answers`` may be changed."""

    address: str
    fingerprint: bytes
    answers: dict[str, Answer]
    requests: list[Seen] = field(default_factory=list)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the server's table says; None cuts the connection off without an answer."""

    protocol_version = "HTTP/1.1"
    shown: TlsServer

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        path = self.path.partition("?")[0]
        seen = Seen(self.command, path, self.headers.get("Authorization"), body)
        self.shown.requests.append(seen)
        unknown = (404, {"error": {"code": "not-found", "message": "Not Found", "hint": None}})
        found = self.shown.answers.get(f"{self.command} {path}", unknown)
        answer = found(seen) if callable(found) else found
        if answer is None:
            self.close_connection = True
            return
        content = b"" if answer[1] is None else json.dumps(answer[1]).encode()
        self.send_response(answer[0])
        if content:  # an answer 204 has none, and no length
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """Does each handshake in its connection's own thread, and says nothing of those that fail."""

    daemon_threads = True
    context: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(OSError):
            sealed = request if self.context is None else self.context.wrap_socket(request, server_side=True)
            super().finish_request(sealed, client_address)
            sealed.close()


def certificate(directory: Path, name: str = "server") -> tuple[Path, Path, bytes]:
    """Make a key and a certificate that signs itself; return both files, and the certificate's SHA-256."""
    key = ed25519.Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    # Its validity is over: hosts look at the certificate itself and nothing in it.
    began = datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(began)
        .not_valid_after(began + datetime.timedelta(days=1))
        .sign(key, None)
    )
    files = directory / f"{name}.pem", directory / f"{name}-key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return *files, hashlib.sha256(made.public_bytes(serialization.Encoding.DER)).digest()


@contextlib.contextmanager
def tls_server(
    directory: Path,
    answers: Mapping[str, Answer],
    *,
    name: str = "server",
    port: int = 0,
    plain: bool = False,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> Iterator[TlsServer]:
    """Run a server until the end of the block.

    Args:
        directory: where its certificate goes.
        answers: status and document by ``METHOD /path``, or a function of the request that returns them.
        name: of the certificate; servers of one directory with one name have different keys all the same.
        port: to listen on; 0 takes a free one.
        plain: speak HTTP without TLS.
        newest: the newest version of TLS that it speaks.
    """
    file, key, fingerprint = certificate(directory, name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    context.maximum_version = newest
    Server.allow_reuse_address = True
    handler = type("OwnHandler", (Handler,), {})
    server = Server(("127.0.0.1", port), handler)
    server.context = None if plain else context
    shown = TlsServer(f"127.0.0.1:{server.server_port}", fingerprint, dict(answers))
    handler.shown = shown  # type: ignore[attr-defined]
    # shutdown() waits for the end of a poll, half a second by default: longer than most tests.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield shown
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
