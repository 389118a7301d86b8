# SPDX-License-Identifier: MIT
"""The units of the services, read by systemd's own tools; and what is said where systemd does not run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ghostbox import services
from ghostbox.paths import Paths
from ghostbox.services import Kind, Scope, Service

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
GOOD_SCORE = 3.0  # systemd-analyze security: 0 is best, 10 worst; below 4 it says OK

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def paths(root: Path) -> Paths:
    return Paths(root / "s", root / "r/ghostbox", root / "c", root / "config.yaml", root / "n")


def write_unit(root: Path, service: Service, *arguments: str) -> Path:
    file = root / service.unit
    file.write_text(services.unit_text(service, arguments, paths(root)))
    return file


def analyze(*words: str | Path) -> str:
    done = subprocess.run(
        ["systemd-analyze", *map(str, words)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout + done.stderr


@needs_analyze
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("scope", Scope)
def test_systemd_finds_nothing_wrong_with_a_unit(tmp_path: Path, kind: Kind, scope: Scope) -> None:
    file = write_unit(tmp_path, Service(kind, scope), "--name", "a b%c$d")
    found = analyze("verify", "--user" if scope is Scope.USER else "--system", file)
    assert [line for line in found.splitlines() if file.name in line] == []


@needs_analyze
def test_a_donor_of_the_system_is_hardened(tmp_path: Path) -> None:
    file = write_unit(tmp_path, Service(Kind.DONOR, Scope.SYSTEM))
    found = analyze("security", "--offline=yes", "--no-pager", file)
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", found)
    assert score is not None, found
    assert float(score[1]) < GOOD_SCORE


def test_words_reach_the_command_as_they_are(tmp_path: Path) -> None:
    text = services.unit_text(Service(Kind.DONOR, Scope.SYSTEM), ('a "b" %c $d \\e',), paths(tmp_path))
    assert '"a \\"b\\" %%c $$d \\\\e"\n' in text


def test_stopping_a_service_ends_nothing_that_holds_memory(tmp_path: Path) -> None:
    for kind in Kind:
        lines = services.unit_text(Service(kind, Scope.SYSTEM), (), paths(tmp_path)).splitlines()
        assert {"KillMode=process", "SendSIGKILL=no"} <= set(lines)


def test_systemd_waits_for_the_hosts_without_limit_and_shows_what_for(tmp_path: Path) -> None:
    """A limit would cost VMs that run their memory. While a machine shuts down, its console shows the description."""
    for scope, journal in ((Scope.SYSTEM, "journalctl"), (Scope.USER, "journalctl --user")):
        lines = services.unit_text(Service(Kind.DONOR, scope), (), paths(tmp_path)).splitlines()
        assert "TimeoutStopSec=infinity" in lines
        asked = f"(who does: {journal} -u ghostbox-donor.service)"
        assert f"Description=GhostBox: lends memory, stops when no host holds any {asked}" in lines


@pytest.mark.parametrize("words", [("install", "donor"), ("install", "host"), ("uninstall", "donor"), ("status",)])
def test_without_systemd_it_says_so_and_installs_nothing(
    ghostbox_cli: Cli, tmp_path: Path, words: tuple[str, ...]
) -> None:
    if Path("/run/systemd/system").exists():
        pytest.skip("cannot run here: systemd runs")
    done = ghostbox_cli(
        "service", *words, "--user", env={"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "x")}
    )
    assert done.returncode == 5
    assert "error: systemd does not run on this machine: there are no services here" in done.stderr
    assert "why: /run/systemd/system is not there" in done.stderr
    assert "fix: start `ghostbox memserver`" in done.stderr
    assert not os.path.lexists(tmp_path / "x")
