# SPDX-License-Identifier: MIT
"""Serve the control socket of a C program of another version, with the answers that a test gives."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def fake_control(path: Path, results: Mapping[str, object]) -> Iterator[None]:
    """Answer commands on a Unix socket until the end of the block: with the given result, or as an unknown command."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(8)
        server = threading.Thread(target=_serve, args=(listener, results))
        server.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            server.join()


def _serve(listener: socket.socket, results: Mapping[str, object]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # the listener was shut down
            return
        with connection, connection.makefile("rwb") as stream:
            asked = json.loads(stream.readline())
            cmd = asked["cmd"]
            reply: dict[str, object] = {"id": asked["id"], "ok": True, "result": results.get(cmd)}
            if cmd not in results:
                reply = {"id": asked["id"], "ok": False, "error": {"code": "unknown-command", "message": cmd}}
            stream.write(json.dumps(reply).encode() + b"\n")
