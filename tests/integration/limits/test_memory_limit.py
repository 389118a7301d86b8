# SPDX-License-Identifier: MIT
"""A donor with a memory limit: the start is refused, or a lease is, or the kernel ends the donor and hosts are told."""

from __future__ import annotations

import resource
import socket
from pathlib import Path

import pytest

from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.errors import DonorError
from ghostbox.memserver.leases import DrainCause
from ghostbox.system import processes
from ghostbox.units import MIB
from helpers.donor import running_donor
from helpers.limits import memory_group, memory_pressure
from helpers.memserver import running_server
from helpers.nbd_raw import connect
from helpers.pager import memory_client, running_pager

ANA = Holder("tower", "ana")


def test_address_space_that_ends_refuses_exports_and_connections_and_nobody_else() -> None:
    with running_server("--export", "a=16M", size="8G") as server, connect(server.port, "a") as client:
        client.write(0, b"x" * 4096)
        pid = server.process.pid
        used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * 4096
        resource.prlimit(pid, resource.RLIMIT_AS, (used + 4 * MIB, resource.RLIM_INFINITY))
        with pytest.raises(processes.ControlError, match="export 'b': Cannot allocate memory") as refused:
            server.command("export-add", name="b", size_bytes=4 << 30)
        assert refused.value.code == "too-small"
        more = [socket.create_connection((server.host, server.port), timeout=20) for _ in range(100)]
        server.wait_for_log("cannot serve: Cannot allocate memory")
        for sock in more:
            sock.close()
        assert client.read(0, 4096) == b"x" * 4096
        resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        server.command("export-add", name="b", size_bytes=64 * MIB)
        with connect(server.port, "b") as later:
            assert later.read(0, 16) == bytes(16)


def test_memory_taken_away_by_the_control_group_ends_the_data_plane_and_the_host_is_told(tmp_path: Path) -> None:
    """The kernel sends SIGKILL when the limit is exceeded: the pages are lost, and never read as zeroes."""
    with running_donor(tmp_path, size="128M") as donor, DonorClient(donor.address) as client:
        lease = client.create_lease("one", 64 * MIB, ANA)
        first = donor.data_plane_pid
        with (
            running_pager([donor.uri("one")], cache="4M") as pager,
            memory_client("64M", pager) as guest,
        ):
            with memory_group(first, 24 * MIB):
                guest.start("fill", seed=1)
                donor.wait_for_log(f"the data plane (pid {first}) died: killed by SIGKILL")
            donor.wait_for_log("the memory of lease one (held by tower/ana) was lost")
            donor.wait_for_log("the data plane was restarted with empty memory; 1 leases lost their content")
            assert client.lease("one").incarnation != lease.incarnation
            processes.wait_until(
                lambda: pager.status()["donors"][0]["state"] == "lost", timeout_s=60, what="the pager's notice"
            )
            assert "lost" in pager.log()
            assert pager.status()["pages"]["poisoned"] >= 0
            guest.process.kill()
            guest.process.wait(10)


def test_pressure_that_the_kernel_tells_of_drains_a_donor(tmp_path: Path) -> None:
    """Another program of the donor's machine lacks memory: with real reclaim, real stalls and the kernel's figures."""
    with (
        memory_pressure(tmp_path) as pressure,
        running_donor(tmp_path, drain_on_pressure="3%", pressure_file=str(pressure)) as donor,
        DonorClient(donor.address) as client,
    ):
        donor.wait_for_log("memory pressure: tasks waited for memory in ", timeout_s=60)
        assert client.status().drain_causes == (DrainCause.PRESSURE,)
        with pytest.raises(DonorError, match="this donor is short of memory and gives no new leases"):
            client.create_lease("one", 4 * MIB, ANA)
