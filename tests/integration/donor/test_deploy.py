# SPDX-License-Identifier: MIT
"""`ghostbox donor deploy` makes a donor of a machine that has nothing but ssh, and `undeploy` leaves nothing there."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox import paths
from ghostbox.deploy import bundle, deploying
from ghostbox.donors import pairings
from ghostbox.errors import NoAnswer
from helpers import deploying as deploys
from helpers.deploying import SMALL, call, deploy, lease, leases, refused, undeploy
from helpers.donor import ROOT
from helpers.ports import free_port
from helpers.secure_host import Host
from helpers.ssh_machine import SshMachine, ssh_machine

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
cache, host = deploys.cache, deploys.host


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[SshMachine]:
    with ssh_machine(tmp_path / "tower") as made:
        yield made


def data_plane(machine: SshMachine) -> str:
    [line] = [line for line in machine.sh("ps -eww -o pid=,args=").splitlines() if "ghostbox-memserver --bind" in line]
    return line


def test_a_dry_run_says_all_that_would_be_changed_and_changes_nothing(host: Host, machine: SshMachine) -> None:
    before = machine.files()
    code, out, err = call(host, machine, "deploy", "--dry-run", *SMALL)
    assert code == 0, err
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0] == "would change on tower:"
    assert lines[1].startswith("copy ")
    assert "MiB to /opt/ghostbox/versions/0." in lines[1]
    assert lines[1].endswith(", as root")
    assert lines[2].startswith("let /opt/ghostbox/current be 0.")
    assert lines[3:] == [
        "link /usr/local/bin/ghostbox, unless something is there",
        "start memserver --size 64M --reserve 0 --bind 0.0.0.0, in the background",
        "pair this host with donor 'attic', unless it is, and note it for `ghostbox up`",
    ]
    assert machine.files() == before
    assert machine.processes() == []


def test_a_donor_is_deployed_answers_over_tls_and_is_removed_without_a_trace(host: Host, machine: SshMachine) -> None:
    before = machine.files()
    code, out, err = call(host, machine, "deploy", *SMALL)
    assert code == 0, err
    assert out == (f"donor 'attic' on tower lends 64 MiB at {machine.address}:10810, over TLS; `ghostbox up` uses it\n")
    assert "it runs in the background, and does not start with the machine: there is no systemd there" in err
    [row] = host.json("donor", "list")
    assert (row["status"]["name"], row["channel"], row["known"]) == ("attic", "tls", True)
    assert "attic" not in machine.sh("cat /opt/ghostbox/arguments").partition("\n")[2], "its name is said once"
    assert json.loads(machine.sh("/usr/local/bin/ghostbox memserver clients --name attic --json"))

    code, err = refused(host, machine, command="undeploy")
    assert code == 2
    assert "Remove the donor on tower? cannot be asked without a terminal fix: add --yes" in err
    dry = host.json("donor", "undeploy", "tower", "--ssh-config", str(machine.config), "--dry-run")
    assert (dry["removed"], dry["donor"], dry["place"]) == (False, "attic", "/opt/ghostbox")
    assert host.json("donor", "list")[0]["status"]["name"] == "attic"
    done = undeploy(host, machine)
    assert done["removed"] is True
    assert machine.files() == before
    assert machine.processes() == []
    assert host.pairings() == []
    code, _, err = host.cli("donor", "list")
    assert "no donor is known" in err
    code, err = refused(host, machine, "--yes", command="undeploy")
    assert code == 4
    assert "no donor was deployed on tower why: there is none in /opt/ghostbox or /root/.local/lib/ghostbox" in err


def test_deployed_again_it_is_of_the_new_version_and_no_lease_is_lost(
    host: Host, machine: SshMachine, tmp_path: Path
) -> None:
    first = deploy(host, machine, *SMALL)
    lease(host)
    before, paired_as = data_plane(machine), host.pairings()
    shutil.copytree(ROOT / "ghostbox", tmp_path / "newer/ghostbox", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "newer/ghostbox/news.py").write_text('"""Is of the next version."""\n')
    shutil.copy(ROOT / "config.yaml", tmp_path / "newer")
    newer = Host(host.root, {**host.more, "PYTHONPATH": str(tmp_path / "newer"), "PYTHONSAFEPATH": "1"})
    second = deploy(newer, machine)
    assert second["version"] != first["version"]
    assert second["paired"] is False
    assert second["changes"][1] == f"let /opt/ghostbox/current be {second['version']}, instead of {first['version']}"
    assert "memserver --size 64M --reserve 0 --bind 0.0.0.0, in the background; leases stay" in second["changes"][2]
    assert machine.sh("readlink /opt/ghostbox/current") == f"versions/{second['version']}\n"
    assert machine.has(f"/opt/ghostbox/current/lib/python{PYTHON}/site-packages/ghostbox/news.py")
    assert data_plane(machine) == before
    assert leases(host) == ["a"]
    assert host.pairings() == paired_as
    assert machine.has(f"/opt/ghostbox/versions/{first['version']}"), "the program that holds the lease is of it"

    code, err = refused(host, machine, "--yes", command="undeploy")
    assert code == 5
    assert "error: tower: hosts hold 1 leases of memserver 'attic' why: here/work: 8 MiB fix: end their VMs, or" in err
    assert leases(host) == ["a"]
    assert host.json("donor", "list")[0]["status"]["draining"] is False


def test_options_that_the_donor_refuses_change_nothing(host: Host, machine: SshMachine) -> None:
    deploy(host, machine, *SMALL)
    lease(host)
    before = machine.sh("cat /opt/ghostbox/arguments")
    code, err = refused(host, machine, "--", "--size", "48M", "--reserve", "0")
    assert code == 1
    assert "error: tower: memserver 'attic' does not start why:" in err
    assert "it lends 64 MiB, --size says 48M" in err
    assert machine.sh("cat /opt/ghostbox/arguments") == before
    assert leases(host) == ["a"]


def test_a_first_donor_that_does_not_start_leaves_nothing(host: Host, machine: SshMachine) -> None:
    before = machine.files()
    code, err = refused(host, machine, "--", "--size", "900T", "--name", "attic")
    assert code == 1
    assert "error: tower: memserver 'attic' does not start why:" in err
    assert machine.files() == before
    assert machine.processes() == []
    assert not (host.root / "state/pairings.json").exists()


def test_a_machine_without_the_libraries_gets_them(host: Host, machine: SshMachine) -> None:
    lacking = [each for each in bundle._libraries(paths.find().memserver_program) if "jansson" in each.name]
    machine.sh(f"mount --bind /dev/null {lacking[0].resolve()}")
    done = deploy(host, machine, *SMALL)
    [place] = machine.sh(f"find /opt/ghostbox/versions/{done['version']} -name '{lacking[0].name}'").splitlines()
    assert place.endswith(f"/site-packages/ghostbox/native/lib/{lacking[0].name}")
    assert place in machine.sh("cat /proc/$(pgrep ghostbox-mem)/maps")


def test_a_donor_that_this_host_does_not_reach_is_said_to_run(host: Host, machine: SshMachine) -> None:
    code, err = refused(host, machine, *SMALL, "--bind", "127.0.0.1", "--secure", "--control-port", str(free_port()))
    assert code == 1
    assert "error: memserver 'attic' runs on tower, and this host does not reach it: " in err
    assert "then again: ghostbox donor deploy tower" in err
    assert any("memserver --name attic" in line for line in machine.processes())


def test_what_has_another_version_is_not_said_to_be_deployed(
    host: Host, machine: SshMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(host, machine, *SMALL)
    monkeypatch.setenv("GHOSTBOX_STATE_DIR", host.env["GHOSTBOX_STATE_DIR"])
    monkeypatch.setattr(deploying, "__version__", "0.0.9")
    [known] = pairings.load(paths.find())
    with pytest.raises(NoAnswer, match=r"is of version 0\.1\.0, and 0\.0\.9 was deployed"):
        deploying._asked(known)


def test_a_donor_that_has_died_is_removed_and_forgotten_all_the_same(host: Host, machine: SshMachine) -> None:
    before = machine.files()
    deploy(host, machine, *SMALL)
    machine.sh("kill -KILL $(pgrep -f '[g]hostbox memserver')")
    code, err = refused(host, machine, "--yes", command="undeploy")
    assert code == 1
    assert re.search(
        r"error: tower: programs of /opt/ghostbox still run: \d+ \(ghostbox-memserv?e?r?\) why: one of", err
    )
    deploy(host, machine)
    machine.sh("kill -KILL $(pgrep -f '[g]hostbox memserver') $(pgrep ghostbox-mem)")
    undeploy(host, machine)
    assert machine.files() == before
    assert host.pairings() == []
