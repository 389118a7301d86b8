# SPDX-License-Identifier: MIT
"""Under a real systemd a donor's service starts, is started again after a kill, goes on, and can be uninstalled."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ghostbox.donors.client import DonorClient
from ghostbox.donors.models import Holder
from ghostbox.system.processes import control_request, wait_until
from helpers.ports import free_port
from helpers.systemd import Systemd, user_systemd

UNIT = "ghostbox-donor.service"


@dataclass(frozen=True)
class Installation:
    """Run GhostBox beside a systemd, with directories of its own."""

    systemd: Systemd
    port: int

    @property
    def unit_file(self) -> Path:
        """Return the path of the donor's unit."""
        return self.systemd.home / ".config/systemd/user" / UNIT

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        env = {
            f"GHOSTBOX_{kind}_DIR": str(self.systemd.home / "a b%c" / kind) for kind in ("STATE", "RUNTIME", "CACHE")
        }
        return self.systemd.run(sys.executable, "-m", "ghostbox", "service", *words, env=env)

    def install(self, size: str) -> dict[str, Any]:
        """Install a donor; return the command's output."""
        options = ("--size", size, "--reserve", "0", "--port", "0", "--control-port", str(self.port))
        done = self.cli("install", "donor", "--user", *options, "--json")
        assert done.returncode == 0, done.stderr + self.systemd.run("systemctl", "--user", "status", UNIT).stdout
        return dict(json.loads(done.stdout))

    def donor(self) -> DonorClient:
        """Return a client of the donor, which may take a moment to listen."""

        def answers() -> bool:
            try:
                with DonorClient(f"127.0.0.1:{self.port}") as client:
                    return client.status().state != ""
            except Exception:
                return False

        wait_until(answers, timeout_s=60, what="the donor", interval_s=0.1)
        return DonorClient(f"127.0.0.1:{self.port}")


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    with user_systemd() as systemd:
        yield Installation(systemd, free_port())


def test_a_donor_is_started_and_its_service_shown(installation: Installation) -> None:
    found = installation.install("64M")
    assert (found["kind"], found["unit"], found["scope"], found["at_boot"]) == ("donor", UNIT, "user", True)
    assert found["state"] == "active (running)"
    assert found["notes"] == [
        "it starts when root logs in; to start it with the machine: sudo loginctl enable-linger root"
    ]
    with installation.donor() as client:
        assert client.status().size_bytes == 64 << 20
    (control,) = (installation.systemd.home / "a b%c" / "RUNTIME").glob("memservers/*/control.sock")
    assert control_request(control, "status")["seccomp"] is True, "the unit's own list lets it ask for a shorter one"
    donor, host = json.loads(installation.cli("status", "--user", "--json").stdout)
    assert donor == found
    assert (host["kind"], host["unit_file"], host["at_boot"]) == ("host", None, False)
    shown = installation.cli("status", "--user").stdout
    assert "ghostbox-donor.service (user)" in shown
    assert "not installed" in shown


def test_installed_again_it_has_the_new_options(installation: Installation) -> None:
    installation.install("32M")
    with installation.donor() as client:
        assert client.status().size_bytes == 32 << 20


def test_installed_again_and_again_it_starts_each_time(installation: Installation) -> None:
    """Though systemd refuses a unit that is started too often. (Debian 12's forgets them at each installation.)"""
    limit = installation.systemd.home / f".config/systemd/user/{UNIT}.d/limit.conf"
    limit.parent.mkdir(parents=True)
    limit.write_text("[Unit]\nStartLimitBurst=2\nStartLimitIntervalSec=1h\n", encoding="utf-8")
    try:
        for _ in range(3):
            assert installation.install("32M")["state"] == "active (running)"
    finally:
        shutil.rmtree(limit.parent)


def test_a_donor_that_is_killed_is_started_again_and_still_holds_its_leases(installation: Installation) -> None:
    installation.install("48M")
    with installation.donor() as client:
        client.create_lease("a", 8 << 20, Holder("here", "vm"))
        before = client.status()
    pid = installation.systemd.show(UNIT, "MainPID")
    assert installation.systemd.run("kill", "-KILL", pid).returncode == 0
    wait_until(lambda: installation.systemd.show(UNIT, "NRestarts") == "1", timeout_s=60, what="another start")
    with installation.donor() as client:
        assert [lease.name for lease in client.leases()] == ["a"]
        assert client.status().id == before.id
        client.release_lease("a")


def test_a_donor_that_is_stopped_waits_for_its_leases_without_limit(installation: Installation) -> None:
    installation.install("48M")
    with installation.donor() as client:
        client.create_lease("a", 8 << 20, Holder("here", "vm"))
        try:
            installation.systemd.run("systemctl", "--user", "stop", "--no-block", UNIT)
            wait_until(lambda: client.status().draining, timeout_s=60, what="the donor drains")
            assert installation.systemd.show(UNIT, "ActiveState") == "deactivating"
            assert installation.systemd.show(UNIT, "TimeoutStopUSec") == "infinity"
            assert [lease.name for lease in client.leases()] == ["a"]
        finally:
            client.release_lease("a")
    wait_until(lambda: installation.systemd.show(UNIT, "ActiveState") == "inactive", timeout_s=60, what="its end")


def test_a_command_that_may_wait_for_hosts_says_so(installation: Installation) -> None:
    installation.install("48M")
    done = installation.cli("uninstall", "donor", "--user")
    told = f"{UNIT} stops once no host holds its memory; to see the holders: journalctl --user -u {UNIT}"
    assert told in " ".join(done.stderr.split())


def test_uninstalled_nothing_is_left(installation: Installation) -> None:
    installation.install("16M")
    done = installation.cli("uninstall", "donor", "--user", "--json")
    assert json.loads(done.stdout) == {"unit": UNIT, "removed": True}
    assert not installation.unit_file.exists()
    assert installation.systemd.show(UNIT, "ActiveState") == "inactive"
    assert installation.cli("uninstall", "donor", "--user").stdout == f"{UNIT} was not installed\n"


def test_a_unit_that_ghostbox_did_not_write_is_left_alone(installation: Installation) -> None:
    installation.unit_file.parent.mkdir(parents=True, exist_ok=True)
    installation.unit_file.write_text("[Service]\nExecStart=/bin/true\n")
    try:
        for words in (("install", "donor", "--user"), ("uninstall", "donor", "--user")):
            done = installation.cli(*words)
            assert done.returncode == 5
            assert f"error: {installation.unit_file} was not written by ghostbox" in " ".join(done.stderr.split())
        assert installation.unit_file.read_text() == "[Service]\nExecStart=/bin/true\n"
    finally:
        installation.unit_file.unlink()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("donor", "--sise", "1G"), "No such option"),
        (("donor", "--size", "much"), "'much' is not a size"),
        (("host", "--size", "1G"), "'host' takes no options: --size 1G"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_installed(
    installation: Installation, words: tuple[str, ...], text: str
) -> None:
    done = installation.cli("install", "--user", *words)
    assert done.returncode == 2
    assert text in done.stderr
    assert not installation.unit_file.exists()


def test_the_vms_of_a_host_are_started_by_a_service(installation: Installation) -> None:
    done = installation.cli("install", "host", "--user", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["unit"], found["state"], found["at_boot"]) == ("ghostbox-host.service", "active (exited)", True)
    assert installation.cli("uninstall", "host", "--user").stdout == "ghostbox-host.service is uninstalled\n"
