# SPDX-License-Identifier: MIT
"""NBD clients of other projects work with the server."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path

from helpers.memserver import Server, running_server
from helpers.nbd_raw import RawClient, connect


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    words = [str(word) for word in argv]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def random_file(path: Path, n_bytes: int) -> Path:
    path.write_bytes(os.urandom(n_bytes))
    return path


def sparse_file(path: Path) -> Path:
    """Return a file of 64 MiB with data in two places, one of which is not aligned."""
    with path.open("wb") as stream:
        stream.truncate(64 << 20)
        stream.seek(3 << 20)
        stream.write(os.urandom(5 << 20))
        stream.seek((40 << 20) + 1234)
        stream.write(os.urandom(98765))
    return path


def test_nbdinfo_reads_every_fact_of_an_export(server: Server) -> None:
    # Without --no-content nbdinfo prints the output of file(1); if that is not installed, bytes of its own memory.
    facts = json.loads(run("nbdinfo", "--json", "--no-content", server.uri("a")))
    export = facts["exports"][0]
    assert facts["structured"] is True
    assert (export["export-name"], export["export-size"]) == ("a", 64 << 20)
    assert export["description"] == f"GhostBox memory {server.export('a')['incarnation']}"
    assert export["contexts"] == ["base:allocation", "x-ghostbox:demand"]
    assert export["is_read_only"] is False
    can = ("can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero")
    assert all(export[name] for name in can)
    sizes = [export[f"block_size_{name}"] for name in ("minimum", "preferred", "maximum")]
    assert sizes == [1, 4096, 32 << 20]


def test_nbdinfo_lists_all_exports() -> None:
    with running_server("--export", "one=1M", "--export", "two=2M", "--export", "naïve name=4K") as server:
        facts = json.loads(run("nbdinfo", "--json", "--list", f"nbd://{server.host}:{server.port}"))
    listed = {export["export-name"]: export["export-size"] for export in facts["exports"]}
    assert listed == {"one": 1 << 20, "two": 2 << 20, "naïve name": 4096}


def test_nbdinfo_map_shows_data_and_holes(server: Server, client: RawClient) -> None:
    client.write(8192, b"x" * 4096)
    extents = json.loads(run("nbdinfo", "--map", "--json", server.uri("a")))
    kinds = [(extent["offset"], extent["length"], extent["description"]) for extent in extents]
    assert kinds == [(0, 8192, "hole,zero"), (8192, 4096, "data"), (12288, (64 << 20) - 12288, "hole,zero")]


def test_nbdcopy_both_ways_returns_the_same_bytes(server: Server, tmp_path: Path) -> None:
    source = random_file(tmp_path / "source", 64 << 20)
    run("nbdcopy", source, server.uri("a"))
    run("nbdcopy", server.uri("a"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_nbdcopy_of_a_sparse_file_keeps_it_sparse(server: Server, tmp_path: Path) -> None:
    source = sparse_file(tmp_path / "source")
    run("nbdcopy", source, server.uri("a"))
    assert server.export("a")["resident_bytes"] < 6 << 20
    run("nbdcopy", server.uri("a"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_nbdcopy_between_two_exports(tmp_path: Path) -> None:
    source = random_file(tmp_path / "source", 16 << 20)
    with running_server("--export", "from=16M", "--export", "to=16M") as server:
        run("nbdcopy", source, server.uri("from"))
        run("nbdcopy", server.uri("from"), server.uri("to"))
        run("nbdcopy", server.uri("to"), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()


def test_qemu_img_converts_and_compares(server: Server, tmp_path: Path) -> None:
    source = sparse_file(tmp_path / "source")
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, server.uri("a"))
    assert "identical" in run("qemu-img", "compare", "-f", "raw", source, server.uri("a"))
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", server.uri("a"), tmp_path / "back")
    assert "identical" in run("qemu-img", "compare", source, tmp_path / "back")


def test_fio_verifies_what_it_wrote(server: Server, tmp_path: Path) -> None:
    options = "--rw=randrw --bsrange=512-64k --bs_unaligned=1 --iodepth=16 --size=32M --verify=crc32c"
    uri = f"--uri={server.uri('a')}"
    # fio writes the state of its verification into the directory where it runs.
    run("fio", "--name=v", "--ioengine=nbd", uri, *options.split(), f"--aux-path={tmp_path}", cwd=tmp_path)
    assert server.status()["counters"]["errors"] == 0


def test_libnbd_client_sees_holes_trim_and_zeroes(server: Server) -> None:
    script = """
h.add_meta_context("base:allocation")
h.connect_uri(URI)
h.pwrite(b"a" * 16384, 0)
h.trim(4096, 4096)
h.zero(4096, 8192, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(16384, 0) == b"a" * 4096 + bytes(8192) + b"a" * 4096
seen = []
h.block_status(16384, 0, lambda context, offset, extents, err: seen.extend(extents))
assert seen == [4096, 0, 8192, 3, 4096, 0], seen
chunks = []
h.pread_structured(16384, 0, lambda data, offset, kind, err: chunks.append((offset, len(data), kind)))
assert chunks == [(0, 4096, nbd.READ_DATA), (4096, 8192, nbd.READ_HOLE), (12288, 4096, nbd.READ_DATA)], chunks
h.flush()
h.cache(4096, 0)
h.pwrite(b"b", 0, nbd.CMD_FLAG_FUA)
"""
    # The system's Python: libnbd's module is a system package.
    run("/usr/bin/python3", "-m", "nbd", "-c", f"URI = {server.uri('a')!r}", "-c", script)


def test_64_connections_at_once_each_see_their_own_data_and_the_others(server: Server) -> None:
    clients = [connect(server.port, "a") for _ in range(64)]
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            for step in range(20):
                page = bytes([index, step]) * 2048
                clients[index].write((index * 20 + step) * 4096, page)
                assert clients[index].read((index * 20 + step) * 4096, 4096) == page
        except BaseException as err:
            failures.append(err)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert server.status()["connections"] == 64
    expected = b"".join(bytes([index, step]) * 2048 for index in range(64) for step in range(20))
    assert clients[0].read(0, 64 * 20 * 4096) == expected
    for client in clients:
        client.socket.close()
