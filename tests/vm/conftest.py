# SPDX-License-Identifier: MIT
"""Fixtures of several modules: a Debian guest on the memory of two donors, each a machine (namespace) of its own.

``test_up.py`` is the last of the modules (they run in the order of their names): it stops the VM and breaks it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import netns
from helpers.donor import RunningDonor, running_donor
from helpers.lab import lab
from helpers.machine import Machine
from helpers.main_vm import CACHE_MIB, CLOUD_INIT, NEVER_SLOW, ODD, VM
from helpers.ports import free_port


@pytest.fixture(scope="session")
def donor_machines() -> Iterator[list[netns.Machine]]:
    with netns.machines(2) as made:
        yield made


@pytest.fixture(scope="session")
def donors(
    donor_machines: list[netns.Machine], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[RunningDonor]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                running_donor(
                    tmp_path_factory.mktemp("donor"), size="448M", name=f"gbt-{number}", bind=machine.address,
                    insecure="", prefix=machine.prefix,
                )
            )
            for number, machine in enumerate(donor_machines)
        ]  # fmt: skip


@pytest.fixture(scope="session")
def secure_donor(
    donor_machines: list[netns.Machine], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningDonor]:
    """Yield a secure donor at the usual ports of the first machine, which lends the VM nothing."""
    machine = donor_machines[0]
    with running_donor(
        tmp_path_factory.mktemp("donor"), size="16M", name="gbt-secure", bind=machine.address, port="10809",
        control_port="10810", prefix=machine.prefix,
    ) as made:  # fmt: skip
        yield made


@pytest.fixture(scope="session")
def machine(donors: list[RunningDonor]) -> Iterator[Machine]:
    with lab(state=ODD, umask=0o077, GHOSTBOX_POOL_INSECURE="true") as host:
        extra = host.root / "extra.yaml"
        extra.write_text(CLOUD_INIT)
        (host.root / "ghostbox.yaml").write_text(f"guest: {{tiering: numa}}\n{NEVER_SLOW}")
        port = free_port()
        options: list[str | Path] = ["--memory", "768M", "--remote-memory", "512M", "--cache", f"{CACHE_MIB}M"]
        options += ["--cpus", "2", "--disk", "6G", "--image", "debian", "--cloud-init", extra, "-p", f"{port}:8000"]
        for donor in donors:
            options += ["--donor", donor.address]
        before = host.belongings(donors)
        done = host.cli("up", VM, *options, "--timeout", "4m", "--json", check=True)
        yield Machine(VM, host, donors, before, port, done, options)
