# SPDX-License-Identifier: MIT
"""Many connections and misbehaving clients do not disturb the other clients. No time is asserted."""

from __future__ import annotations

import json
import re
import subprocess

from ghostbox import paths
from ghostbox.bench.crowd import CROWD
from ghostbox.system import processes
from helpers import nbd_raw as nbd
from helpers.memserver import Server, running_server
from helpers.nbd_raw import RawClient, connect

MIB = 1 << 20
N_PEERS = sum(CROWD.values())


def _start_crowd(server: Server, ms: int) -> subprocess.Popen[str]:
    words = {"port": server.port, "export": "a", "ms": ms, **CROWD}
    argv = [str(paths.find().native / "ghostbox-bench-client"), "crowd"]
    argv += [f"{key}={value}" for key, value in words.items()]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _unsent_bytes(server: Server) -> int:
    """Return the bytes of the server's answers that the kernel holds (ss(8): skmem, w), in all."""
    argv = ["ss", "-tmnH", "state", "established", f"( sport = :{server.port} )"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=20).stdout
    return sum(int(found) for found in re.findall(r"skmem:\(.*?,w(\d+),", said))


def test_all_are_served_among_500_connections_in_bounded_memory() -> None:
    with running_server("--export", "a=64M", "--export", "b=64M") as server, connect(server.port, "b") as other:
        with connect(server.port, "a") as filling:
            for index in range(64):
                other.write(index * MIB, bytes([index + 1]) * MIB)
                filling.write(index * MIB, b"a" * MIB)
        before_bytes = server.memory_bytes()
        crowd = _start_crowd(server, 2500)
        try:
            processes.wait_until(
                lambda: server.status()["connections"] >= N_PEERS, timeout_s=30, what="the crowd", interval_s=0.005
            )
            held_bytes = 0
            while crowd.poll() is None:
                for index in range(64):
                    assert other.read(index * MIB + 4096, 4096) == bytes([index + 1]) * 4096
                held_bytes = max(held_bytes, _unsent_bytes(server))
                assert server.memory_bytes() - before_bytes < 64 * MIB  # 100 KiB a connection and its page tables
            out, err = crowd.communicate(timeout=30)
        finally:
            crowd.kill()
            crowd.wait()
        assert crowd.returncode == 0, err
        found = json.loads(out)
        assert found["least_served"] >= 2, found
        assert found["asked"] - found["served"] <= CROWD["trickle"], found  # the last requests had no time
        assert found["vanished"] > 0
        assert held_bytes < CROWD["slow"] * MIB  # each would take up to 4 MiB without a limit
        processes.wait_until(lambda: server.status()["connections"] == 1, timeout_s=20, what="the others to be gone")
        assert server.memory_bytes() - before_bytes < 16 * MIB


def test_a_client_that_takes_nothing_is_given_up() -> None:
    with running_server("--export", "a=64M", "--peer-timeout", "1") as server, connect(server.port, "a") as other:
        other.write(0, b"x" * MIB)
        with connect(server.port, "a") as stopped:
            for _ in range(64):
                stopped.socket.sendall(RawClient.pack(nbd.READ, 0, MIB))
            server.wait_for_log(
                "connection closed: the client has vanished, or does not read its answers (--peer-timeout)"
            )
            processes.wait_until(lambda: server.status()["connections"] == 1, timeout_s=20, what="its end")
        assert other.read(0, 16) == b"x" * 16  # a connection without requests is not closed


def test_the_crowd_is_refused_over_the_limit_and_says_so() -> None:
    with running_server("--export", "a=64M", "--max-connections", "100") as server:
        crowd = _start_crowd(server, 1000)
        _, err = crowd.communicate(timeout=30)
        assert crowd.returncode == 1
        assert "the handshake failed" in err
        server.wait_for_log("refused: 100 connections are open (--max-connections)")
        processes.wait_until(lambda: server.status()["connections"] == 0, timeout_s=20, what="all to be gone")
