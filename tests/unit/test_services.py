# SPDX-License-Identifier: MIT
"""systemd's own tools read the services' units; a machine without systemd gets a clear error."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ghostbox.errors import GhostboxError, ProgramError, Refused
from ghostbox.paths import Paths
from ghostbox.system import services
from ghostbox.system.services import Kind, Scope, Service
from helpers.killed import killed_at
from helpers.limits import small_disk

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
GOOD_SCORE = 3.0  # systemd-analyze security gives 0 (best) to 10 (worst), and OK below 4

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")


def paths(root: Path) -> Paths:
    return Paths(root / "s", root / "r/ghostbox", root / "c", root / "config.yaml", root / "n")


def verified_unit(root: Path, service: Service, *arguments: str) -> Path:
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
    file = verified_unit(tmp_path, Service(kind, scope), "--name", "a b%c$d")
    found = analyze("verify", "--user" if scope is Scope.USER else "--system", file)
    assert [line for line in found.splitlines() if file.name in line] == []


@needs_analyze
def test_a_donor_of_the_system_is_hardened(tmp_path: Path) -> None:
    file = verified_unit(tmp_path, Service(Kind.DONOR, Scope.SYSTEM))
    found = analyze("security", "--offline=yes", "--no-pager", file)
    score = re.search(r"Overall exposure level for \S+: ([\d.]+)", found)
    assert score is not None, found
    assert float(score[1]) < GOOD_SCORE


@pytest.fixture
def users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "x"))
    return Service(Kind.DONOR, Scope.USER)


def test_unit_can_be_read_by_all_whatever_the_umask_is(tmp_path: Path, users_own: Service) -> None:
    before = os.umask(0o077)
    try:
        services.write_unit(users_own, ("--size", "1G"), paths(tmp_path))
    finally:
        os.umask(before)
    assert users_own.file.stat().st_mode & 0o777 == 0o644
    assert users_own.file.read_text() == services.unit_text(users_own, ("--size", "1G"), paths(tmp_path))


@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_installation_that_is_killed_leaves_the_unit_as_it_was(
    tmp_path: Path, users_own: Service, owner: object, name: str
) -> None:
    services.write_unit(users_own, ("--size", "1G"), paths(tmp_path))
    before = users_own.file.read_text()
    killed_at(owner, name, lambda: services.write_unit(users_own, ("--size", "2G"), paths(tmp_path)))
    assert users_own.file.read_text() == before
    services.write_unit(users_own, ("--size", "2G"), paths(tmp_path))
    assert [entry.name for entry in users_own.file.parent.iterdir()] == [users_own.unit]


def test_full_disk_leaves_the_unit_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk() as disk:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(disk.path))
        service = Service(Kind.DONOR, Scope.USER)
        services.write_unit(service, (), paths(disk.path))
        before = service.file.read_text()
        disk.fill()
        with pytest.raises(GhostboxError, match=r"cannot write .*ghostbox-donor\.service: No space left on device"):
            services.write_unit(service, ("--size", "2G", "--name", "x" * 5000), paths(disk.path))
        assert service.file.read_text() == before


def test_empty_unit_that_an_earlier_version_left_on_a_full_disk_is_ours(tmp_path: Path, users_own: Service) -> None:
    users_own.file.parent.mkdir(parents=True)
    users_own.file.touch()
    services.write_unit(users_own, (), paths(tmp_path))
    assert users_own.file.read_text().startswith("# Written by `ghostbox service install`")


@pytest.mark.parametrize("content", [b"[Unit]\n", b"\xff\n"])
def test_unit_of_another_hand_is_left_alone(tmp_path: Path, users_own: Service, content: bytes) -> None:
    users_own.file.parent.mkdir(parents=True)
    users_own.file.write_bytes(content)
    with pytest.raises(Refused, match=r"ghostbox-donor\.service was not written by ghostbox"):
        services.write_unit(users_own, (), paths(tmp_path))
    assert users_own.file.read_bytes() == content


def test_words_reach_the_command_as_they_are(tmp_path: Path) -> None:
    text = services.unit_text(Service(Kind.DONOR, Scope.SYSTEM), ('a "b" %c $d \\e',), paths(tmp_path))
    assert '"a \\"b\\" %%c $$d \\\\e"\n' in text


def test_stopping_a_service_ends_nothing_that_holds_memory(tmp_path: Path) -> None:
    for kind in Kind:
        lines = services.unit_text(Service(kind, Scope.SYSTEM), (), paths(tmp_path)).splitlines()
        assert {"KillMode=process", "SendSIGKILL=no"} <= set(lines)


def test_systemd_waits_for_the_hosts_without_limit_and_shows_what_for(tmp_path: Path) -> None:
    """A limit would cost VMs their memory. While a machine shuts down, its console shows the description."""
    for scope, journal in ((Scope.SYSTEM, "journalctl"), (Scope.USER, "journalctl --user")):
        lines = services.unit_text(Service(Kind.DONOR, scope), (), paths(tmp_path)).splitlines()
        assert "TimeoutStopSec=infinity" in lines
        asked = f"(holders: {journal} -u ghostbox-donor.service)"
        assert f"Description=GhostBox: lends memory, stops when no host holds any {asked}" in lines


@pytest.mark.parametrize("words", [("install", "donor"), ("install", "host"), ("uninstall", "donor"), ("status",)])
def test_without_systemd_it_says_so_and_installs_nothing(
    quick_cli: Cli, tmp_path: Path, words: tuple[str, ...]
) -> None:
    if Path("/run/systemd/system").exists():
        pytest.skip("cannot run here: systemd runs")
    done = quick_cli("service", *words, "--user", env={"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "x")})
    assert done.returncode == 5
    assert "error: systemd does not run on this machine: there are no services here" in done.stderr
    assert "why: /run/systemd/system does not exist" in done.stderr
    assert "fix: let this machine's init system start `ghostbox memserver`" in done.stderr
    assert not os.path.lexists(tmp_path / "x")


def test_a_control_plane_that_systemd_does_not_start_again_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd is stood in for by a program that never starts anything: the main process is gone for good."""
    with subprocess.Popen(["sleep", "60"]) as main:
        (tmp_path / "systemctl").write_text(
            f"#!/bin/sh\nif kill -0 {main.pid}; then echo {main.pid}; else echo 0; fi\n"
        )
        (tmp_path / "systemctl").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setattr(services, "_TIMEOUT_S", 0.5)
        with pytest.raises(ProgramError, match="ghostbox-donor.service was not started again") as caught:
            services._replace_control_plane(Service(Kind.DONOR, Scope.SYSTEM))
        assert caught.value.why is not None
        assert "its next start" in caught.value.why
        assert main.wait(20) == -signal.SIGKILL
