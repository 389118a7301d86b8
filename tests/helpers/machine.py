# SPDX-License-Identifier: MIT
"""Drive a VM under test: what tests ask of it, and do to it, again and again."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ghostbox.donors.client import DonorClient
from ghostbox.session import supervisor
from ghostbox.system import processes
from helpers.donor import RunningDonor
from helpers.lab import Belongings, Host, Run


@dataclass
class Machine:
    """Holds the VM under test, what existed before it, and the output of ``up``."""

    name: str
    host: Host
    donors: list[RunningDonor]
    before: Belongings
    web_port: int
    up: Run
    options: list[str | Path] = field(default_factory=list)

    def cli(self, command: str, *words: str, check: bool = True) -> Run:
        """Run a command on the VM; unless told otherwise, a failure fails the test."""
        return self.host.cli(command, self.name, *words, check=check)

    def guest(self, command: str) -> str:
        """Run a command in the guest; return its output."""
        return self.host.cli("shell", self.name, "--", command, check=True).stdout

    def status(self) -> dict[str, Any]:
        """Return `ghostbox status`, which starts a missing pager or supervisor."""
        return dict(json.loads(self.cli("status", "--json", check=False).stdout))

    def pager_pid(self) -> int:
        """Return the pager's process id."""
        return int(self.status()["pager"]["pid"])

    def kept_by_donors_bytes(self) -> int:
        """Return how much memory the donors' leases take now."""
        found = 0
        for donor in self.donors:
            with DonorClient(donor.address) as client:
                found += client.status().resident_bytes
        return found

    def outside(self) -> Belongings:
        """Return what the VM has outside its state directory, which stays until the VM is deleted."""
        return self.host.belongings(self.donors)


def same_but_for_state(now: Belongings, before: Belongings) -> bool:
    """Tell whether only state directories have changed."""
    kept = (now.processes, now.domains, now.files, now.leases)
    return kept == (before.processes, before.domains, before.files, before.leases)


def leases_at(donor: RunningDonor) -> int:
    """Return how many leases a donor has."""
    with DonorClient(donor.address) as client:
        return len(client.leases())


@contextlib.contextmanager
def unsupervised(machine: Machine) -> Iterator[None]:
    """End the supervisor and keep another one from starting."""
    files = machine.host.paths.vm(machine.name)
    taken: list[int] = []

    def take() -> bool:
        """Take the lock; a supervisor that a command has just started may not hold it yet, or may take it first."""
        supervisor.stop(files)
        descriptor = supervisor.lock(files)
        taken.extend([] if descriptor is None else [descriptor])
        return bool(taken)

    processes.wait_until(take, timeout_s=60, what="the supervisor's lock")
    try:
        yield
    finally:
        os.close(taken[0])


def watched_pid(machine: Machine) -> int | None:
    """Return the pager's process id without changing anything."""
    found = json.loads(machine.cli("status", "--no-recover", "--json", check=False).stdout)["pager"]
    return None if found is None else int(found["pid"])


def broken(machine: Machine) -> bool:
    """Tell whether the VM is frozen, without changing anything."""
    found = json.loads(machine.cli("status", "--no-recover", "--json", check=False).stdout)
    return bool(found["state"] == "broken")


def wait_for_paging(machine: Machine, work: subprocess.Popen[str]) -> int:
    """Wait until this pager has sent pages to the donors and fetched some; return its process id."""

    def paged() -> bool:
        assert work.poll() is None, work.communicate()
        pager = machine.status()["pager"]
        return bool(pager["faults"]["missing_fetch"] > 200 and pager["evictions"]["dirty"] > 200)

    processes.wait_until(paged, timeout_s=120, what="eviction and fetches", interval_s=0.2)
    return machine.pager_pid()
