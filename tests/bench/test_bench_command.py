# SPDX-License-Identifier: MIT
"""``ghostbox bench`` runs, has its ratios, and leaves nothing behind. No timing is asserted."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ghostbox import paths
from ghostbox.system import processes
from helpers.pager import short_dir
from helpers.project import ROOT

CliRun = subprocess.CompletedProcess[str]
Cli = Callable[..., CliRun]
PARTS = {
    "faults",
    "checksum",
    "sequential",
    "threads",
    "overcommit",
    "traffic",
    "mixed",
    "writes",
    "link",
    "tls",
    "redundancy",
    "server",
    "sizes",
    "memserver-memory",
}


@pytest.fixture
def place() -> Iterator[Path]:
    with short_dir() as found:
        yield found


def processes_of(place: Path) -> list[str]:
    """Return command lines that name a file below ``place``."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            if entry.name.isdigit() and f"{place}/" in line:
                found.append(line)
    return found


def nothing_left(place: Path) -> bool:
    mounts = Path("/proc/self/mounts").read_text()
    return not processes_of(place) and str(place) not in mounts and not list(place.iterdir())


@pytest.mark.slow
def test_short_run_has_a_ratio_in_every_row_and_leaves_nothing(ghostbox_cli: Cli, place: Path) -> None:
    done = ghostbox_cli("bench", "--short", "--json", env={"TMPDIR": str(place)}, timeout_s=280)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {row["scenario"].partition("/")[0] for row in report["rows"]} == PARTS
    without = [row for row in report["rows"] if row["ratio"] is None]
    # Only the control group and the namespaces depend on the machine; every tool is installed where tests run.
    assert all("cgroup" in row["note"] or "needs root" in row["note"] for row in without), without
    assert all(row["ratio"]["median"] >= 0 and row["measured"]["median"] >= 0 for row in report["rows"] if row["ratio"])
    assert all(isinstance(row["reached"], bool) for row in report["rows"] if row["target"] and row["ratio"])
    assert report["rounds"] == 1
    assert sum(count for _, count in report["latency"]["faults"]["pager"]) == 2000
    assert nothing_left(place)


def test_table_names_figure_reference_ratio_and_target(ghostbox_cli: Cli, place: Path) -> None:
    picture = place / "bench.svg"
    argv = ["bench", "--short", "--rounds", "2", "--only", "threads,memserver-memory", "--plot", picture]
    done = ghostbox_cli(*argv, env={"TMPDIR": str(place)})
    assert done.returncode == 0, done.stderr
    for text in (
        "RATIO",
        "TARGET",
        "random faults/s, 8 threads",
        "memserver's memory",
        "≥ 1 ×",
        "of 4 targets reached",
    ):
        assert text in done.stdout
    assert "round 2 of 2" not in done.stdout
    assert "<svg" in picture.read_text()
    assert "Cold random faults by threads" not in done.stdout


def test_yaml_holds_the_same(ghostbox_cli: Cli, place: Path) -> None:
    argv = ["bench", "--short", "--only", "memserver-memory", "-o", "yaml"]
    done = ghostbox_cli(*argv, env={"TMPDIR": str(place)})
    assert done.returncode == 0, done.stderr
    figures = yaml.safe_load(done.stdout)["figures"]["memserver-memory"]["memserver"]
    assert figures["stored_bytes"][0] >= 64 << 20
    assert figures["resident_bytes"][0] > figures["stored_bytes"][0]


def test_a_missing_tool_costs_its_rows_only(ghostbox_cli: Cli, place: Path) -> None:
    argv = ["bench", "--short", "--only", "faults,sequential,server/fio/read/1x1", "--json"]
    done = ghostbox_cli(*argv, env={"TMPDIR": str(place), "PATH": "/nonexistent"})
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    floor = [row for row in rows if row["reference_name"] == "floor"]
    assert len(floor) == 2
    assert all(row["ratio"] for row in floor)
    notes = {row["what"]: row["note"] for row in rows if row["ratio"] is None}
    assert "nbdfuse is not installed: install libnbd-bin and fuse3" in notes["cold random fault, p50"]
    assert any("nbdcopy is not installed: install libnbd-bin" in row["note"] for row in rows)
    missing = json.loads(done.stdout)["missing"]["server/fio/read/1x1"]
    assert missing["memserver"] == "fio is not installed: install fio"
    fio = [row for row in rows if row["scenario"].startswith("server/fio")]
    assert len(fio) == 2
    assert all(row["measured"] is None and "fio is not installed: install fio" in row["note"] for row in fio)


def test_a_tool_that_fails_costs_its_rows_only_and_the_table_says_why(ghostbox_cli: Cli, place: Path) -> None:
    tools = place / "bin"
    tools.mkdir()
    (tools / "fio").write_text("#!/bin/sh\necho 'fio: engine nbd not loadable' >&2\nexit 1\n")
    (tools / "fio").chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    argv = ["bench", "--short", "--only", "server/fio/read/1x1"]
    done = ghostbox_cli(*argv, env={"TMPDIR": str(place), "PATH": path})
    assert done.returncode == 0, done.stderr
    assert "not measured" in done.stdout
    assert "fio failed with status 1: fio: engine nbd not loadable" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_however_it_ends_its_servers_end_too(number: signal.Signals, place: Path) -> None:
    argv = [sys.executable, "-m", "ghostbox", "bench", "--short", "--rounds", "100", "--only", "threads"]
    env = {**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        processes.wait_until(
            lambda: any("ghostbox-pager" in line for line in processes_of(place)), timeout_s=60, what="a pager"
        )
        running.send_signal(number)
        code = running.wait(60)
    processes.wait_until(lambda: not processes_of(place), timeout_s=20, what="end of the servers")
    if number is not signal.SIGKILL:
        assert code == 130
        assert nothing_left(place)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--only", "fault"], "--only: nothing is called 'fault'; did you mean 'faults'?"),
        (["--only", "nonsense"], "choose from faults, sequential, threads"),
        (["--plot", "x.pdf"], "--plot: x.pdf ends neither in .png nor in .svg"),
        (["--plot", "/nonexistent/x.png"], "there is no directory /nonexistent"),
        (["--rounds", "0"], "0 is not in the range"),
    ],
)
def test_wrong_options_are_explained_before_anything_runs(ghostbox_cli: Cli, argv: list[str], message: str) -> None:
    done = ghostbox_cli("bench", "--short", *argv)
    assert done.returncode in (1, 2)
    assert message in done.stderr


def test_a_picture_of_nothing_is_refused(ghostbox_cli: Cli, place: Path) -> None:
    done = ghostbox_cli("bench", "--short", "--only", "memserver-memory", "--plot", place / "x.png")
    assert done.returncode == 1
    assert "there is nothing to draw" in done.stderr


def test_a_missing_ghostbox_program_is_named(ghostbox_cli: Cli, place: Path) -> None:
    done = ghostbox_cli("bench", "--short", "--only", "faults", env={"GHOSTBOX_NATIVE_DIR": str(place)})
    assert done.returncode == 1
    assert "ghostbox-bench-client does not exist" in done.stderr


def test_a_server_that_does_not_start_says_why(ghostbox_cli: Cli, place: Path) -> None:
    native = paths.find().native
    for name in ("ghostbox-bench-client", "libghostbox-shim.so"):
        (place / name).symlink_to(native / name)
    (place / "ghostbox-memserver").symlink_to(native / "ghostbox-bench-client")
    done = ghostbox_cli("bench", "--short", "--only", "faults", env={"GHOSTBOX_NATIVE_DIR": str(place)})
    assert done.returncode == 1
    assert "ghostbox-memserver ended with status 2" in done.stderr
    assert "usage: ghostbox-bench-client" in done.stderr or "follow CMD" in done.stderr


def client(*words: str) -> CliRun:
    program = paths.find().native / "ghostbox-bench-client"
    return subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["random", "memory=remote"], "memory=remote needs libghostbox-shim.so in LD_PRELOAD"),
        (["random", "memory=paper"], "memory=paper is none of remote, local, file"),
        (["random", "bytes=1M", "count=257"], "count from threads to the 256 pages"),
        (["random", "threads=0"], "threads must be from 1"),
        (["sequential", "memory=file", "path=/nonexistent"], "cannot open /nonexistent: No such file or directory"),
        (["sequential", "memory=file", "path=/dev/null"], "/dev/null has 0 bytes"),
        (["sequential", "cgroup=/nonexistent"], "cannot join the cgroup /nonexistent"),
        (["sequential", "bytes=lots"], "bytes=lots is not a size"),
        (["zipf", "bytes=1M", "array=2M"], "array must be a part of the memory"),
        (["zipf", "bytes=1M", "scan=1"], "a scanner needs memory behind it"),
        (["write", "count=1", "threads=2"], "count from threads"),
        (["wire", "ms=-1"], "ms=-1 is not a number from 0 to"),
        (["wire", "speed=fast"], "the command does not know speed=fast"),
        (["wire", "address=paper"], "address=paper is not an IPv4 address"),
        (["wire", "address=192.0.2.1"], "cannot listen on 192.0.2.1: Cannot assign requested address"),
        (["ping-pong", "peer_namespace=/nonexistent"], "cannot enter the network namespace /nonexistent: No such file"),
        (["load", "port=1"], "NBD server 127.0.0.1:1: cannot connect"),
        (["load", "depth=0"], "depth, connections and bytes must be from 1"),
        (["follow", "/nonexistent"], "cannot run /nonexistent: No such file or directory"),
    ],
)
def test_client_says_what_is_wrong(words: list[str], message: str) -> None:
    done = client(*words)
    assert done.returncode in (1, 127)
    assert message in done.stderr


@pytest.mark.parametrize("words", [[], ["dance"]])
def test_client_without_a_command_it_knows_explains_itself(words: list[str]) -> None:
    done = client(*words)
    assert done.returncode == 2
    assert "usage: ghostbox-bench-client COMMAND" in done.stderr


def result(*words: str) -> dict[str, Any]:
    done = client(*words)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_client_touches_each_page_once_and_counts_each_touch() -> None:
    found = result("random", "bytes=1M", "count=256", "threads=4")
    assert found["count"] == 256
    assert sum(count for _, count in found["latency"]["buckets"]) == 256
    assert found["latency"]["p50_us"] <= found["latency"]["p99_us"] <= found["latency"]["max_us"]


def test_floor_gives_every_sample() -> None:
    for words in (("ping-pong", "count=300"), ("userfault", "count=300")):
        found = result(*words)
        assert len(found["ns"]) == 300
        assert min(found["ns"]) > 0


def test_a_modest_client_has_rows_alone_and_beside_a_greedy_one(ghostbox_cli: Cli, place: Path) -> None:
    done = ghostbox_cli("bench", "--short", "--only", "server/shares", "--json", env={"TMPDIR": str(place)})
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["what"], row["subject"], row["reference_name"]) for row in rows] == [
        ("4 KiB random read beside a greedy client: p99", "beside it", "alone"),
        ("4 KiB random read beside a greedy client", "beside it", "alone"),
    ]
    assert all(row["ratio"]["median"] > 0 for row in rows)
    assert nothing_left(place)


def test_tls_has_rows_beside_the_same_without(ghostbox_cli: Cli, place: Path) -> None:
    done = ghostbox_cli("bench", "--short", "--only", "tls/loopback,tls/server", "--json", env={"TMPDIR": str(place)})
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert [(row["what"], row["subject"], row["reference_name"]) for row in rows] == [
        ("cold random fault over TLS, p50", "TLS", "plain"),
        ("cold random fault over TLS, p99", "TLS", "plain"),
        ("cold random fault over TLS: memory server's CPU", "TLS", "plain"),
        ("cold sequential read over TLS", "TLS", "plain"),
        *(
            (f"4 KiB random {mode} over TLS, lean, depth 16, 4 connections{figure}", "TLS", reference)
            for mode in ("read", "write")
            for figure, reference in (("", "nbdkit with TLS"), (": CPU a request", "plain"))
        ),
    ]
    assert all(row["ratio"]["median"] > 0 for row in rows)
    assert nothing_left(place)


def test_tls_without_nbdcopy_costs_its_rows_only(ghostbox_cli: Cli, place: Path) -> None:
    env = {"TMPDIR": str(place), "PATH": "/nonexistent"}
    done = ghostbox_cli("bench", "--short", "--only", "tls/loopback/faults,memserver-memory", "--json", env=env)
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["cold random fault over TLS, p50"]["ratio"] is None
    assert "nbdcopy is not installed: install libnbd-bin" in rows["cold random fault over TLS, p50"]["note"]
