# SPDX-License-Identifier: MIT
"""Look at a donor as a stranger does: ask each route and each NBD option, and print the answers as JSON.

    python3 - HOST CONTROL-PORT DATA-PORT '["GET /v1/status", …]' < outside_probe.py

It runs where nothing of this project is installed, such as in a guest. ``helpers/outside.py`` calls it.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import struct
import sys

TIMEOUT_S = 20
OPTION_MAGIC = 0x49484156454F5054
NAME = b"\0\0\0\1a\0\0"  # of an export, and no information asked for
# Numbers and names of the NBD specification; 4 is withdrawn, 99 nobody knows.
OPTIONS = {
    "EXPORT_NAME": (1, b"a"),
    "ABORT": (2, b""),
    "LIST": (3, b""),
    "PEEK_EXPORT": (4, b""),
    "STARTTLS": (5, b""),
    "INFO": (6, NAME),
    "GO": (7, NAME),
    "STRUCTURED_REPLY": (8, b""),
    "LIST_META_CONTEXT": (9, b"\0\0\0\1a\0\0\0\0"),
    "SET_META_CONTEXT": (10, b"\0\0\0\1a\0\0\0\1\0\0\0\x0fbase:allocation"),
    "EXTENDED_HEADERS": (11, b""),
    "99": (99, b""),
}
ACK, NEEDS_TLS = 1, 0x80000005
KINDS = {ACK: "ACK", NEEDS_TLS: "ERR_TLS_REQD"}


def client(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    """Return a context that looks at no certificate and speaks one version of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    return context


def is_open(host: str, port: int) -> bool:
    """Tell whether a connection is made."""
    try:
        socket.create_connection((host, port), TIMEOUT_S).close()
    except OSError:
        return False
    return True


def route(connection: http.client.HTTPConnection, words: str) -> str:
    """Return status and error code of an answer, or the names in its document."""
    method, path = words.split()
    connection.request(method, path)
    answer = connection.getresponse()
    document = json.loads(answer.read())
    error = document.get("error", {})
    return f"{answer.status} {error.get('code') or ', '.join(document)}"


def otherwise(host: str, port: int) -> dict[str, str]:
    """Ask without TLS, and over an older one."""
    ways = {
        "plain HTTP": http.client.HTTPConnection(host, port, timeout=TIMEOUT_S),
        "TLS 1.2": http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=client(ssl.TLSVersion.TLSv1_2)),
    }
    found = {}
    for name, connection in ways.items():
        try:
            found[name] = route(connection, "GET /v1/version")
        except (OSError, http.client.HTTPException):
            found[name] = "no answer"
    return found


def option(host: str, port: int, number: int, data: bytes) -> str:
    """Return a server's answer to an option, on a connection of its own."""
    with socket.create_connection((host, port), TIMEOUT_S) as sock, sock.makefile("rb") as stream:
        greeting = stream.read(18)
        assert greeting.startswith(b"NBDMAGICIHAVEOPT"), greeting
        sock.sendall(struct.pack(">IQII", 3, OPTION_MAGIC, number, len(data)) + data)
        try:
            head = stream.read(20)
        except ConnectionResetError:
            return "closed"
        if not head:
            return "closed"
        kind, length = struct.unpack(">II", head[12:])
        said = f"{KINDS.get(kind, hex(kind))} {stream.read(length).decode()}".strip()
        if (number, kind) == (5, ACK):
            try:
                client().wrap_socket(sock)
            except OSError:
                return f"{said}, and no TLS without a key"
        return said


def main() -> None:
    """Print what the command line asks for."""
    host, control, data = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    found: dict[str, object] = {"control": is_open(host, control), "data": is_open(host, data)}
    if found["control"]:
        connection = http.client.HTTPSConnection(host, control, timeout=TIMEOUT_S, context=client())
        found["routes"] = {words: route(connection, words) for words in json.loads(sys.argv[4])}
        found["otherwise"] = otherwise(host, control)
    if found["data"]:
        found["options"] = {name: option(host, data, *asked) for name, asked in OPTIONS.items()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
