# SPDX-License-Identifier: MIT
"""Lent memory leaks nowhere: not after the end of its lease, not into a core dump, not into swap."""

from __future__ import annotations

import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.system import processes
from helpers import gnutls, process_memory
from helpers import nbd_raw as nbd
from helpers.memserver import Server, program, running_server
from helpers.nbd_raw import RawClient, connect

MIB = 1 << 20
SECRET = secrets.token_bytes(32)
PAGE = SECRET * (4096 // len(SECRET))


def holds_secret(content: bytes) -> bool:
    return SECRET in content


@pytest.fixture
def lent() -> Iterator[Server]:
    with running_server("--export", "a=4M") as server:
        yield server


def fill(client: RawClient) -> None:
    """Bring the secret to each place that requests use: small writes and large ones, and both kinds of read."""
    client.write(0, PAGE * 64)
    client.write(MIB, SECRET)
    client.write(2 * MIB + 512, SECRET * 3)
    assert client.read(0, 64 * 4096) == PAGE * 64
    assert client.read(MIB, 512)[: len(SECRET)] == SECRET


def test_nothing_of_a_lease_is_left_anywhere_in_the_process_after_its_end(lent: Server) -> None:
    with (
        connect(lent.port, "a") as old,
        connect(lent.port, "a", structured=False) as half,
        connect(lent.port, "a") as slow,
    ):
        fill(old)
        # One client is in the middle of a small write, another one reads nothing of its reply.
        half.socket.sendall(half.pack(nbd.WRITE, 0, 1024) + SECRET * 8)
        for _ in range(64):
            slow.send(nbd.READ, 0, 64 * 4096)
        assert process_memory.places(lent.process.pid, holds_secret)
        lent.command("export-remove", name="a", force=True)
        assert not process_memory.places(lent.process.pid, holds_secret)
        assert old.is_closed()


def test_nothing_is_left_of_a_lease_that_was_used_over_tls(tmp_path: Path) -> None:
    key = secrets.token_hex(32)
    keys = gnutls.key_file(tmp_path / "keys.psk", a=key)
    with running_server("--export", "a=4M", "--tls-psk", str(keys)) as server, RawClient(server.port) as client:
        assert client.option(nbd.STARTTLS) == [(nbd.ACK, b"")]
        client.socket = gnutls.Session.client(client.socket, "a", key)  # type: ignore[assignment]
        client.negotiate_structured()
        client.go("a")
        for n in range(1, 30):  # records of all sizes: GnuTLS has blocks of malloc for them
            fill(client)
            client.write(3 * MIB, SECRET * n)
            assert client.read(3 * MIB, len(SECRET) * n) == SECRET * n
        assert process_memory.places(server.process.pid, holds_secret)
        server.command("export-remove", name="a", force=True)
        assert not process_memory.places(server.process.pid, holds_secret)


def test_neither_an_old_connection_nor_a_new_export_of_the_name_reads_what_was_there(lent: Server) -> None:
    with connect(lent.port, "a") as old:
        fill(old)
        lent.command("export-remove", name="a", force=True)
        lent.command("export-add", name="a", size_bytes=4 * MIB)
        with pytest.raises((EOFError, ConnectionError)):
            old.read(0, 4096)
    with connect(lent.port, "a") as new:
        assert b"".join(new.read(at, MIB) for at in range(0, 4 * MIB, MIB)) == bytes(4 * MIB)


def test_what_is_trimmed_is_gone_from_the_process(lent: Server) -> None:
    with connect(lent.port, "a") as client:
        client.write(0, PAGE * 64)
        client.socket.sendall(client.pack(nbd.TRIM, 0, 64 * 4096, cookie=77))
        assert client.reply().cookie == 77
        (export,) = [each for each in process_memory.mappings(lent.process.pid) if each.end - each.start == 4 * MIB]
        assert export.resident_bytes == 0


def test_a_core_dump_holds_no_page(lent: Server) -> None:
    with connect(lent.port, "a") as client, connect(lent.port, "a") as half:
        fill(client)
        half.socket.sendall(half.pack(nbd.WRITE, 0, 1024) + SECRET * 8)
        pid = lent.process.pid
        processes.wait_until(
            lambda: len(process_memory.places(pid, holds_secret)) >= 2, timeout_s=20, what="the export and a buffer"
        )
        dumped = [
            each for each in process_memory.places(pid, holds_secret) if process_memory.NOT_DUMPED not in each.flags
        ]
        assert not dumped


def test_a_core_dump_holds_no_key(tmp_path: Path) -> None:
    key = secrets.token_bytes(32)
    keys = gnutls.key_file(tmp_path / "keys.psk", a=key.hex())
    with running_server("--export", "a=4M", "--tls-psk", str(keys)) as server, RawClient(server.port) as client:
        assert client.option(nbd.STARTTLS) == [(nbd.ACK, b"")]
        client.socket = gnutls.Session.client(client.socket, "a", key.hex())  # type: ignore[assignment]
        client.go("a")
        found = process_memory.places(server.process.pid, lambda content: key in content)
        assert found
        assert not [each for each in found if process_memory.NOT_DUMPED not in each.flags]


def test_locked_memory_is_locked_as_it_is_touched_and_can_still_be_trimmed() -> None:
    with running_server("--export", "a=4M", "--lock-memory", size="64M") as server, connect(server.port, "a") as client:
        assert server.status()["locked"] is True

        def export() -> process_memory.Mapping:
            found = process_memory.mappings(server.process.pid)
            return next(
                each for each in found if each.end - each.start == 4 * MIB and process_memory.NOT_DUMPED in each.flags
            )

        assert export().resident_bytes == 0
        client.write(0, PAGE * 64)
        assert process_memory.LOCKED in export().flags
        assert export().resident_bytes == 64 * 4096
        assert client.command(nbd.TRIM, 0, 64 * 4096).error == 0
        assert (export().resident_bytes, server.export("a")["resident_bytes"]) == (0, 0)
        assert client.read(0, 4096) == bytes(4096)
        assert "cannot give" not in server.log()


def mib_to_lock(said: str) -> float:
    """Return how much memory the server says that it cannot lock."""
    found = re.search(r"cannot lock ([\d.]+) (MiB|GiB) of memory", said)
    assert found is not None, said
    return float(found[1]) * (1024 if found[2] == "GiB" else 1)


def test_memory_that_may_not_be_locked_is_not_lent_and_the_remedy_is_said() -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("cannot run here: it takes setpriv to do without the right to lock memory")
    bounds = ["prlimit", "--memlock=65536:65536", "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]
    argv = [*bounds, program(), "--size", "64M", "--port", "0", "--lock-memory"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=20)
    assert (done.returncode, done.stdout) == (1, "")
    secure = subprocess.run([*argv, "--tls", "require"], capture_output=True, text=True, check=False, timeout=20)
    assert mib_to_lock(secure.stderr) - mib_to_lock(done.stderr) > 100  # a TLS session for each connection
    assert "error ghostbox-memserver: cannot lock " in done.stderr
    assert (
        "this process may lock 64 KiB (RLIMIT_MEMLOCK): raise that by ulimit -l unlimited, or LimitMEMLOCK=infinity"
        " in a service, or run as root"
    ) in done.stderr
