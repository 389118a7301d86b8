# SPDX-License-Identifier: MIT
"""Logins other than root deploy by sudo, asked once at most, or into their home directory; systemd runs a service."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import deploying as deploys
from helpers.deploying import SMALL, call, deploy, lease, leases, refused, undeploy
from helpers.ports import free_port
from helpers.secure_host import Host
from helpers.ssh_machine import PASSWORD, SshMachine, ssh_machine, ssh_to_systemd
from helpers.systemd import user_systemd

cache, host = deploys.cache, deploys.host


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[SshMachine]:
    """Return a machine on which ana logs in."""
    with ssh_machine(tmp_path / "tower") as made:
        made.configure(user="ana")
        yield made


def owner(machine: SshMachine, path: str) -> str:
    return machine.sh(f"stat -c %U '{path}'").strip()


def test_sudo_that_asks_nothing(host: Host, machine: SshMachine) -> None:
    before = machine.files()
    machine.let_sudo("ana ALL=(ALL) NOPASSWD: ALL")
    done = deploy(host, machine, *SMALL)
    assert done["changes"][0].endswith(", as root")
    assert (done["place"], owner(machine, "/opt/ghostbox")) == ("/opt/ghostbox", "root")
    undeploy(host, machine)
    assert machine.files() == before


@pytest.mark.parametrize("rule", ["", "ana ALL=(ALL) ALL"])
def test_no_rights_and_no_terminal(host: Host, machine: SshMachine, rule: str) -> None:
    before = machine.files()
    machine.let_sudo(rule)
    code, err = refused(host, machine, *SMALL)
    assert code == 5
    assert (
        "ana may not install for all of tower why: sudo wants a password, or refuses; without a terminal it cannot be"
        " asked for fix: log in as root; or add --user, which installs into /srv/ana/.local/lib/ghostbox of ana"
    ) in err
    assert machine.files() == before


def test_no_sudo(host: Host, machine: SshMachine) -> None:
    before = machine.files()
    machine.hide_from_logins("sudo")
    code, err = refused(host, machine, *SMALL)
    assert code == 5
    assert "ana may not install for all of tower why: sudo is not installed there fix: log in as root" in err
    assert machine.files() == before


def test_sudo_asks_once(host: Host, machine: SshMachine) -> None:
    machine.let_sudo("ana ALL=(ALL) ALL")
    code, seen = on_a_terminal(host, machine, PASSWORD)
    assert code == 0, seen
    assert seen.count("sudo's password of ana on tower") == 1
    assert PASSWORD not in seen
    assert owner(machine, "/opt/ghostbox") == "root"
    assert PASSWORD not in machine.sh("cat /opt/ghostbox/*.json /opt/ghostbox/arguments /proc/*/cmdline; env")


def test_a_wrong_password_changes_nothing(host: Host, machine: SshMachine) -> None:
    before = machine.files()
    machine.let_sudo("ana ALL=(ALL) ALL")
    code, seen = on_a_terminal(host, machine, "wrong horse")
    assert code == 5
    assert "sudo does not let ana be root on tower" in seen
    assert machine.files() == before


def on_a_terminal(host: Host, machine: SshMachine, answer: str) -> tuple[int, str]:
    """Deploy on a terminal, and answer its question; return the exit code and what the terminal has shown."""
    words = ["donor", "deploy", "tower", "--ssh-config", str(machine.config), *SMALL]
    leader, follower = pty.openpty()
    argv = ["setsid", "--ctty", "--wait", sys.executable, "-m", "ghostbox", *words]
    with subprocess.Popen(argv, env=host.env, stdin=follower, stdout=follower, stderr=follower) as child:
        os.close(follower)
        seen, answered = "", False
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if select.select([leader], [], [], 0.2)[0]:
                try:
                    seen += os.read(leader, 65536).decode(errors="replace")
                except OSError:  # nobody has the other end any more
                    break
            if not answered and "sudo's password of ana on tower:" in seen:
                os.write(leader, f"{answer}\n".encode())
                answered = True
        os.close(leader)
        return child.wait(60), " ".join(seen.split())


def test_into_the_home_directory(host: Host, machine: SshMachine) -> None:
    before = machine.files()
    done = deploy(host, machine, "--user", *SMALL)
    assert (done["place"], done["start"]) == ("/srv/ana/.local/lib/ghostbox", "background")
    assert owner(machine, done["place"]) == "ana"
    assert machine.sh("readlink /srv/ana/.local/bin/ghostbox") == f"{done['place']}/bin/ghostbox\n"
    lease(host)
    deploy(host, machine, "--user")
    assert leases(host) == ["a"]
    code, err = refused(host, machine, "--yes", "--user", command="undeploy")
    assert code == 5
    assert "tower: hosts hold 1 leases of memserver 'attic'" in err
    with_lease_ended(host)
    undeploy(host, machine, "--user")
    assert machine.files() == before
    assert machine.processes() == []


def with_lease_ended(host: Host) -> None:
    [known] = host.pairings()
    code, _, err = host.cli("donor", "release", known["addresses"][0], "a", "-y")
    assert code == 0, err


def test_under_systemd_it_is_a_service_that_goes_on_with_its_leases(host: Host, tmp_path: Path) -> None:
    with user_systemd() as systemd, ssh_to_systemd(tmp_path / "tower", systemd) as machine:
        ports = ("--port", str(free_port()), "--control-port", str(free_port()), "--no-announce")
        done = deploy(host, machine, "--user", *SMALL, *ports)
        assert done["start"] == "service"
        unit = "ghostbox-donor.service"
        assert systemd.show(unit, "ActiveState") == "active"
        lease(host)
        pid = systemd.show(unit, "MainPID")
        deploy(host, machine, "--user")
        assert systemd.show(unit, "MainPID") != pid
        assert leases(host) == ["a"]

        code, _, err = call(host, machine, "deploy", "--user", "--", "--size", "48M", "--reserve", "0")
        assert code == 1
        assert "tower: memserver 'attic' does not start" in err  # the journal, which is not here, would say why
        assert leases(host) == ["a"]

        with_lease_ended(host)
        undeploy(host, machine, "--user")
        assert systemd.show(unit, "ActiveState") == "inactive"
        assert not (systemd.home / f".config/systemd/user/{unit}").exists()
        assert not (systemd.home / ".local/lib").exists()
