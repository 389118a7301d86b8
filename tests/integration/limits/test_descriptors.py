# SPDX-License-Identifier: MIT
"""A program without free file descriptors reports it, waits, and goes on when there are some."""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI

from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.memserver.http_server import HttpLimits, HttpServer
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers.donor import donor_environment, running_donor
from helpers.late_link import late_link
from helpers.pager import memory_client, running_memserver, running_pager


@pytest.mark.parametrize("n_files", [8, 10])
def test_a_command_without_descriptors_says_what_raises_the_limit(tmp_path: Path, n_files: int) -> None:
    """One limit is too low for the command itself; the other is too low only for the start of the data plane."""
    words = ["memserver", "--name", "x", "--size", "8M", "--reserve", "0", "--port", "0", "--control-port", "0"]
    argv = ["prlimit", f"--nofile={n_files}:{n_files}", sys.executable, "-m", "ghostbox.cli.main", *words]
    env = donor_environment(tmp_path, tmp_path)
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done
    assert re.search("error: .*: ([Tt]oo many open files|too many files are open)", done.stderr), done.stderr
    assert "fix: raise the limit: ulimit -n" in done.stderr


def test_a_control_plane_bounds_its_connections_and_survives_without_descriptors(tmp_path: Path) -> None:
    with running_donor(tmp_path, prefix=["prlimit", "--nofile=80:80"]) as donor:
        host, _, port = donor.address.rpartition(":")
        with DonorClient(donor.address) as client:
            client.create_lease("one", MIB, Holder("tower", "ana"))
        crowd = [socket.create_connection((host, int(port)), timeout=20) for _ in range(30)]
        donor.wait_for_log("control API: refused a connection, 16 are open")
        assert sum(_is_closed(sock) for sock in crowd) == 14
        n_open = len(list(Path(f"/proc/{donor.process.pid}/fd").iterdir()))
        resource.prlimit(donor.process.pid, resource.RLIMIT_NOFILE, (n_open, n_open))
        crowd.append(socket.create_connection((host, int(port)), timeout=20))
        donor.wait_for_log("control API: cannot accept a connection: Too many open files")
        for sock in crowd:
            sock.close()
        with DonorClient(donor.address) as client:
            assert [lease.name for lease in client.leases()] == ["one"]


def _is_closed(sock: socket.socket) -> bool:
    """Tell whether the other side has closed a connection; an open connection has nothing to read."""
    sock.settimeout(0.2)
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


def test_a_connection_that_brings_no_request_is_closed() -> None:
    async def scenario() -> tuple[bytes, bytes]:
        ready = asyncio.Event()
        app = FastAPI()
        app.get("/x")(lambda: "here")
        server = HttpServer(app, ready.set, HttpLimits(8, request_timeout_s=0.2))
        with socket.create_server(("127.0.0.1", 0)) as listener:
            serving = asyncio.create_task(server.serve([listener]))
            await ready.wait()
            address = listener.getsockname()
            silent_reader, dripping = await asyncio.open_connection(*address)
            dripping.write(b"GET /x HTTP/1.1\r\nHost: ")  # and the rest of the request never comes
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = await reader.readline()
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(silent_reader.read(), 20) == b""
            writer.write(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            rest = await asyncio.wait_for(reader.read(), 20)  # a connection with a request in time lives
            dripping.close()
            writer.close()
            server.should_exit = True
            await serving
        return answer, rest

    answer, rest = asyncio.run(scenario())
    assert answer == b"HTTP/1.1 200 OK\r\n"
    assert rest.count(b"HTTP/1.1 200 OK") == 1


def test_a_pager_without_descriptors_for_its_donor_waits_until_it_has_them() -> None:
    with (
        running_memserver(a="16M") as donor,
        late_link(donor.address) as link,
        running_pager([f"nbd://{link.address}/a"], cache="2M") as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", seed=1)
        pid = pager.process.pid
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))  # open connections stay
        link.cut()
        processes.wait_until(lambda: "connection lost" in pager.log(), timeout_s=30, what="the pager's notice")
        client.start("verify", seed=1)
        assert client.answers_nothing("verify", for_s=0.5)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        assert client.result("verify", timeout_s=90)["ok"]
