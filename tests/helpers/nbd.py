# SPDX-License-Identifier: MIT
"""Copy bytes into and out of NBD exports, with the tools of libnbd."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from ghostbox.system import processes


def write_export(uri: str, content: Path) -> None:
    """Copy a file into an export of at least its size."""
    subprocess.run(["nbdcopy", str(content), uri], check=True, timeout=60)


def read_export(uri: str, path: Path) -> bytes:
    """Return all bytes of an export; ``path`` is a file for the copy."""
    subprocess.run(["nbdcopy", uri, str(path)], check=True, timeout=60)
    return path.read_bytes()


def system_python() -> dict[str, str]:
    """Return an environment in which nbdsh finds the system's Python, the only one with the nbd module."""
    return {**os.environ, "PATH": "/usr/bin:/bin"}


def wait_for_greeting(address: tuple[str, int] | Path) -> None:
    """Wait until a server greets: before its main loop, qemu-nbd listens but would ignore SIGTERM."""
    processes.wait_until(lambda: _greets(address), timeout_s=30, what=f"the greeting of {address}")


def _greets(address: tuple[str, int] | Path) -> bool:
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(5)
        try:
            sock.connect(str(address) if isinstance(address, Path) else address)
            return sock.recv(8) == b"NBDMAGIC"
        except OSError:
            return False


@contextlib.contextmanager
def held_connection(uri: str) -> Iterator[subprocess.Popen[str]]:
    """Hold a connection to an export open until the end of the block."""
    script = f"import sys; h.connect_uri({uri!r}); print('connected', flush=True); sys.stdin.read()"
    client = subprocess.Popen(
        ["nbdsh", "-c", script], env=system_python(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdin is not None
    assert client.stdout is not None
    try:
        assert client.stdout.readline() == "connected\n"
        yield client
    finally:
        client.stdin.close()
        client.wait(20)
        client.stdout.close()


_FLIP = """
h.connect_uri({uri!r})
for offset, mask in {masks!r}.items():
    h.pwrite(bytes([h.pread(1, offset)[0] ^ mask]), offset)
h.shutdown()
"""


def flip(uri: str, masks: Mapping[int, int]) -> None:
    """Change bits of an export, given by offset in bytes and bits of that byte."""
    script = _FLIP.format(uri=uri, masks=dict(masks))
    subprocess.run(["nbdsh", "-c", script], env=system_python(), check=True, timeout=60)
