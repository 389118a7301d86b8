# SPDX-License-Identifier: MIT
"""The pager refuses arguments, donors and peers at its start, each with its own message."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from ghostbox.system.processes import wait_until
from helpers.pager import (
    Build,
    client_env,
    installed_build,
    memory_client,
    nbdkit_memory,
    run_client,
    running_memserver,
    running_pager,
    stopped,
)

COMPLETE = ["--listen", "/nowhere/p", "--control", "/nowhere/c", "--cache", "8M", "--donor", "nbd://127.0.0.1:1/a"]


def run_pager(*argv: str) -> subprocess.CompletedProcess[str]:
    """Run the pager to its end."""
    return subprocess.run(
        [str(installed_build().pager), *argv], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (COMPLETE[2:], "--listen SOCKET is missing"),
        (COMPLETE[:2] + COMPLETE[4:], "--control SOCKET is missing"),
        (COMPLETE[:4] + COMPLETE[6:], "--cache SIZE is missing"),
        (COMPLETE[:6], "--donor URI is missing: at least one is needed"),
        ([*COMPLETE, "--cache", "lots"], "--cache: 'lots' is not a size (examples: 64K, 256M, 4G)"),
        ([*COMPLETE, "--cache", "4K"], "--cache: 4K is not a multiple of 4096 between"),
        ([*COMPLETE, "--cache", "1048577"], "--cache: 1048577 is not a multiple of 4096 between"),
        (
            [*COMPLETE, "--donor", "http://a/b"],
            "--donor: 'http://a/b' is not an NBD URI such as nbd://HOST:PORT/EXPORT",
        ),
        ([*COMPLETE, *["--donor", "nbd://a/b"] * 100], "--donor: at most"),
        ([*COMPLETE, "--contents", "stale"], "--contents: 'stale' is neither fresh nor keep"),
        ([*COMPLETE, "--extent", "96K"], "--extent: 96K is not a power of two"),
        ([*COMPLETE, "--extent", "4K"], "--extent: 4K is not a multiple of 4096 between"),
        ([*COMPLETE, "--readahead", "1G"], "--readahead: 1G is not a multiple of 4096 between"),
        ([*COMPLETE, "--poll-us", "-1"], "--poll-us: '-1' is not a number from 0 to 10000"),
        ([*COMPLETE, "--poll-us", "10001"], "--poll-us: '10001' is not a number from 0 to 10000"),
        ([*COMPLETE, "--peer-uid", "root"], "--peer-uid: 'root' is not a number"),
        ([*COMPLETE, "--hide-features", "poison,magic"], "--hide-features: no feature named 'magic'"),
        ([*COMPLETE, "--log-level", "loud"], "--log-level: 'loud' is none of error, warning, info, debug"),
        ([*COMPLETE[:4], "--resume"], "--resume: --state FILE is missing: where is the page map?"),
        (
            [*COMPLETE, "--resume", "--state", "f"],
            "--resume: --cache, --donor, --extent and --contents are in the state file; leave them out",
        ),
        (
            [*COMPLETE[:4], "--resume", "--state", "f", "--replicas", "2"],
            "--resume: --replicas, --allow-same-host, --backup and --pool are in the state file; leave them out",
        ),
        ([*COMPLETE, "--replicas", "3"], "--replicas: '3' is neither 1 nor 2"),
        ([*COMPLETE, "--backup", "/var/b"], "--backup: '/var/b' is not an NBD URI such as nbd://HOST:PORT/EXPORT"),
        ([*COMPLETE, "--pool", "5"], "--pool: 5 is not a multiple of 4096 between"),
        ([*COMPLETE, "--rebuild-after", "soon"], "--rebuild-after: 'soon' is not a number from 0 to"),
        ([*COMPLETE, "--rebuild-rate", "fast"], "--rebuild-rate: 'fast' is not a size"),
        ([*COMPLETE, "--on-donor-loss", "pause"], "--on-donor-loss: 'pause' is neither wait nor poison"),
        ([*COMPLETE, "--lost-pages", "zero"], "--lost-pages: 'zero' is neither poison nor wait"),
        ([*COMPLETE, "--poison-after", "-1"], "--poison-after: '-1' is not a number from 0 to"),
        (
            [*COMPLETE, "--contents", "keep", "--replicas", "2"],
            "--contents keep: what the exports hold has one copy; leave out --replicas",
        ),
        ([*COMPLETE, "--colour"], "unknown option '--colour'"),
        ([*COMPLETE, "--cache"], "option '--cache' needs a value"),
        ([*COMPLETE, "more"], "unexpected argument 'more'"),
    ],
)
def test_a_bad_command_line_is_status_2_with_its_reason(argv: list[str], message: str) -> None:
    done = run_pager(*argv)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stdout == ""


def test_help_and_version() -> None:
    assert "--exit-with-client" in run_pager("--help").stdout
    assert run_pager("--version").stdout.strip().split()[-1][0].isdigit()


def test_probe_says_what_the_kernel_can_do() -> None:
    probe = json.loads(run_pager("--probe").stdout)
    assert probe["usable"] is True
    assert probe["dirty_tracking"] in ("wp-async", "wp-fault")
    hidden = json.loads(run_pager("--probe", "--hide-features", "wp_async").stdout)
    assert hidden["dirty_tracking"] == "wp-fault"


def test_a_kernel_without_what_is_needed_is_refused(place: Path) -> None:
    done = run_pager(*arguments(place, "nbd://127.0.0.1:1/a"), "--hide-features", "minor_shmem")
    assert done.returncode == 1
    assert "this kernel's userfaultfd lacks 'minor_shmem', which GhostBox needs" in done.stderr


def for_all_users(place: Path) -> Build:
    """Return copies of the programs that any user may run: a home directory may close the originals to others."""
    build = installed_build()
    place.chmod(0o755)
    copies = {name: place / getattr(build, name).name for name in ("pager", "shim", "client")}
    for name, copy in copies.items():
        shutil.copy(getattr(build, name), copy)
        copy.chmod(0o755)
    return dataclasses.replace(build, **copies)


@pytest.mark.skipif(os.geteuid() != 0, reason="cannot run here: not root")
def test_no_permission_on_the_device_is_said_with_its_cure(place: Path) -> None:
    done = subprocess.run(
        [str(for_all_users(place).pager), *arguments(place, "nbd://127.0.0.1:1/a")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        user=65534,
        group=65534,
        extra_groups=[],
    )
    assert done.returncode == 1
    assert "cannot open /dev/userfaultfd: Permission denied; allow it with: sudo chgrp kvm" in done.stderr


def arguments(place: Path, uri: str) -> list[str]:
    """Return a complete command line."""
    return ["--listen", str(place / "p"), "--control", str(place / "c"), "--cache", "1M", "--donor", uri]


def test_a_donor_that_is_not_there_is_named(place: Path) -> None:
    done = run_pager(*arguments(place, "nbd://127.0.0.1:1/a"))
    assert done.returncode == 1
    assert "nbd://127.0.0.1:1/a" in done.stderr
    assert "Connection refused" in done.stderr


def test_an_export_that_is_not_there_is_named(place: Path) -> None:
    with running_memserver(a="1M") as donor:
        done = run_pager(*arguments(place, donor.uri("b")))
    assert done.returncode == 1
    assert donor.uri("b") in done.stderr


def test_something_else_on_the_port_is_no_donor(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"nbd://127.0.0.1:{server.getsockname()[1]}/a"
        process = subprocess.Popen(
            [str(installed_build().pager), *arguments(place, uri)], stderr=subprocess.PIPE, text=True
        )
        server.settimeout(20)
        connection, _ = server.accept()
        connection.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n" * 8)
        _, stderr = process.communicate(timeout=60)
        connection.close()
    assert process.returncode == 1
    assert uri in stderr


def test_a_read_only_donor_is_refused(place: Path) -> None:
    with nbdkit_memory("1M", "-r") as uri:
        done = run_pager(*arguments(place, uri))
    assert done.returncode == 1
    assert "read-only" in done.stderr


def test_a_socket_that_another_pager_uses_is_refused() -> None:
    with nbdkit_memory("1M") as uri, running_pager([uri], cache="1M") as pager:
        done = run_pager(*arguments(pager.listen.parent, uri))
        assert done.returncode == 1
        assert f"cannot listen on {pager.listen}: Address already in use" in done.stderr
        assert pager.status()["pid"] == pager.process.pid


def test_a_stale_socket_is_no_obstacle(place: Path) -> None:
    with nbdkit_memory("1M") as uri:
        with running_pager([uri], cache="1M", place=place) as pager:
            pager.kill()
        with running_pager([uri], cache="1M", place=place) as pager, memory_client("1M", pager) as client:
            client.command("fill")


def test_memory_larger_than_the_donors_is_refused() -> None:
    with nbdkit_memory("16M") as uri, running_pager([uri], cache="1M") as pager:
        done = run_client("32M", "read", listen=pager.listen)
        assert done.returncode == 1
        assert done.stderr == (
            "ghostbox-shim: the pager refuses: the region has 32 MiB, the donors together offer 16 MiB\n"
        )
        with memory_client("16M", pager) as client:
            client.command("fill")


@pytest.mark.skipif(os.geteuid() != 0, reason="cannot run here: not root")
def test_another_user_is_refused_unless_named(place: Path) -> None:
    def read_as_nobody(listen: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(build.client), "--bytes", "1M", "read"],
            env=client_env(build, listen),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            user=65534,
            group=65534,
            extra_groups=[],
        )

    build = for_all_users(place)
    with nbdkit_memory("1M") as uri:
        with running_pager([uri], cache="1M", place=place) as pager:
            done = read_as_nobody(pager.listen)
            assert done.returncode == 1
            assert done.stderr == (
                "ghostbox-shim: the pager refuses: user id 65534 may not use this pager (see --peer-uid)\n"
            )
        with running_pager([uri], cache="1M", place=place, peer_uid="65534") as pager:
            done = read_as_nobody(pager.listen)
            assert done.returncode == 0, done.stderr


def test_of_a_pagers_connections_one_says_that_somebody_waits_also_after_it_was_lost() -> None:
    with running_memserver(a="16M") as donor, running_pager([donor.uri("a")]) as pager:
        assert donor.status()["waiting"]["demand_connections"] == 1
        with stopped(donor.process):
            wait_until(
                lambda: pager.status()["donors"][0]["state"] != "up", timeout_s=30, what="its silence to be noticed"
            )
        wait_until(lambda: pager.status()["donors"][0]["state"] == "up", timeout_s=30, what="it is back")
        wait_until(
            lambda: donor.status()["waiting"]["demand_connections"] == 1, timeout_s=30, what="the new connection"
        )
