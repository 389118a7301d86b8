# SPDX-License-Identifier: MIT
"""The shell offers the names that exist: VMs, images, donors, keys."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ghostbox.donors import code
from ghostbox.donors.request_models import PairingAsk
from ghostbox.memserver.clients import open_store
from ghostbox.memserver.requests import RequestStore
from helpers.stopped import here, stopped_vm

Cli = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def offered(ghostbox_dirs: Path, quick_cli: Cli) -> Callable[[str, str], set[str]]:
    """Return the words that a shell offers after a line.

    There are two VMs, an image, two donors and two memservers, with one of which a host is paired and another asks.
    """
    stopped_vm("work")
    stopped_vm("play")
    here().images.mkdir(parents=True)
    (here().images / "ubuntu.json").write_text("{}")
    for name in ("shelf", "rack"):
        here().memserver_state(name).mkdir(parents=True)
        (here().memserver_state(name) / "identity.json").write_text("{}")
    ask_and_approve(here().memserver_state("shelf") / "clients.sqlite3")
    (here().memserver_state("rack") / "clients.sqlite3").write_text("nonsense")
    (ghostbox_dirs / "ghostbox.yaml").write_text("pool: {donors: [tower]}\n")
    (here().state / "known-donors.json").write_text(json.dumps({"format": 1, "donors": [{"address": "attic"}]}))

    def complete(line: str, shell: str = "bash") -> set[str]:
        words = line.split(" ")
        env = {"_GHOSTBOX_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        if shell == "fish":
            env["COMP_CWORD"] = words[-1]
        said = quick_cli(env=env).stdout.splitlines()
        if shell == "zsh":
            return set(said[1::3])
        return {line.partition(",")[2].partition("\t")[0] for line in said}

    return complete


def ask_and_approve(file: Path) -> None:
    """Let two hosts ask to be paired, and approve one."""
    with open_store(file, "d0" * 8) as store:
        requests = RequestStore(store, b"f" * 32)
        for host, digest in (("box", "11" * 32), ("cellar", "33" * 32)):
            committed = code.commitment("00" * 32, digest, "22" * 8)
            said = {"commitment": committed, "credential_sha256": digest, "host_id": "22" * 8, "version": "1"}
            number = requests.ask(PairingAsk(**said, host=host), None).id
            requests.open(number, "00" * 32)
            if host == "box":
                requests.approve(number)


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("ghostbox down ", {"work", "play"}),
        ("ghostbox ssh w", {"work"}),
        ("ghostbox config show --vm p", {"play"}),
        ("ghostbox up --image ", {"debian", "ubuntu"}),
        ("ghostbox image delete u", {"ubuntu"}),
        ("ghostbox up --donor ", {"tower", "attic"}),
        ("ghostbox donor drain t", {"tower"}),
        ("ghostbox set work vm.mem", {"vm.memory="}),
        ("ghostbox set --unset pool.sl", {"pool.slow"}),
        ("ghostbox memserver audit --name ", {"shelf", "rack"}),
        ("ghostbox memserver drain --name r", {"rack"}),
        ("ghostbox token create --name r", {"rack"}),
        ("ghostbox memserver a", {"audit", "approve"}),
        ("ghostbox memserver approve ", {"cellar"}),
        ("ghostbox memserver deny c", {"cellar"}),
        ("ghostbox memserver suspend ", {"box"}),
        ("ghostbox memserver resume b", {"box"}),
        ("ghostbox memserver revoke ", {"box"}),
    ],
)
def test_names_are_completed(offered: Callable[..., set[str]], line: str, names: set[str]) -> None:
    assert offered(line) == names


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_every_shell_hears_the_names(offered: Callable[..., set[str]], shell: str) -> None:
    assert offered("ghostbox start ", shell) == {"work", "play"}


def test_what_cannot_be_read_offers_nothing_and_disturbs_nobody(offered: Callable[..., set[str]]) -> None:
    (here().state / "known-donors.json").write_text("nonsense")
    assert offered("ghostbox up --donor ") <= {""}


def test_the_hosts_of_the_users_ssh_configuration_are_offered(
    offered: Callable[[str, str], set[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host tower attic\n  User ana\nhost *.example !bad\n")
    assert offered("ghostbox donor deploy ", "bash") == {"tower", "attic"}
    assert offered("ghostbox donor undeploy t", "bash") == {"tower"}
    (tmp_path / ".ssh/config").unlink()
    assert offered("ghostbox donor deploy ", "bash") <= {""}
