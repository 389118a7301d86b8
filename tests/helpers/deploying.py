# SPDX-License-Identifier: MIT
"""Deploy donors to machines of tests by the real commands, and say what is to be seen afterwards.

The fixtures of hosts are for modules: cache, host = deploying.cache, deploying.host
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import paired
from helpers.secure_host import Host
from helpers.ssh_machine import SshMachine

SMALL = ("--", "--size", "64M", "--reserve", "0", "--name", "attic")
"""Options of a small memserver, which stand last."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache that all hosts of a module share, so that a bundle is made once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def host(tmp_path: Path, cache: Path) -> Host:
    """Return a host that has no donor yet."""
    return Host(tmp_path / "host", {"GHOSTBOX_CACHE_DIR": str(cache)})


def call(host: Host, machine: SshMachine, command: str, *words: str) -> tuple[int, str, str]:
    """Run `donor deploy` or `donor undeploy` for the machine; return exit code, stdout, and stderr on one line."""
    return host.cli("donor", command, "tower", "--ssh-config", str(machine.config), *words)


def deploy(host: Host, machine: SshMachine, *words: str) -> dict[str, Any]:
    """Deploy, and return what the command prints as JSON."""
    code, out, err = call(host, machine, "deploy", "-o", "json", *words)
    assert code == 0, err
    return dict(json.loads(out))


def undeploy(host: Host, machine: SshMachine, *words: str) -> dict[str, Any]:
    """Undeploy without a question, and return what the command prints as JSON."""
    code, out, err = call(host, machine, "undeploy", "--yes", "--json", *words)
    assert code == 0, err
    return dict(json.loads(out))


def refused(host: Host, machine: SshMachine, *words: str, command: str = "deploy") -> tuple[int, str]:
    """Run a command that must fail; return exit code and stderr on one line."""
    code, out, err = call(host, machine, command, *words)
    assert code != 0, out
    return code, err


def as_paired(host: Host) -> paired.Host:
    """Return the host as its only donor knows it, to lease by hand."""
    [known] = host.pairings()
    return paired.Host(known["addresses"][0], known["client"], known["credential"])


def lease(host: Host, name: str = "a") -> None:
    """Have a lease of 8 MiB."""
    with as_paired(host).http() as http:
        body = {"name": name, "size_bytes": 8 << 20, "holder": {"host": "here", "vm": "work"}}
        answer = http.post("/v1/leases", json=body)
        assert answer.status_code == 201, answer.text


def leases(host: Host) -> list[str]:
    """Return the names of the host's leases."""
    with as_paired(host).http() as http:
        return [each["name"] for each in http.get("/v1/leases").json()]
