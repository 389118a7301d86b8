# SPDX-License-Identifier: MIT
"""``ghostbox top`` on a real pager with a process in place of QEMU."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ghostbox import paths
from ghostbox.pager import page_map
from ghostbox.session import Book, Record, VmState
from ghostbox.system import processes
from helpers.pager import RunningPager, memory_client, running_memserver, running_pager, short_dir
from helpers.project import ROOT

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def vm_pager(ghostbox_dirs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningPager]:
    """Yield a pager with two donors where ``ghostbox top work`` looks for the pager of the VM 'work'."""
    with short_dir() as short, running_memserver(a="16M", b="16M") as donor:
        monkeypatch.setenv("GHOSTBOX_RUNTIME_DIR", str(short))  # a socket's path has 107 bytes
        place = short / "vms" / "work"
        place.mkdir(parents=True)
        with running_pager([donor.uri("a"), donor.uri("b")], cache="2M", place=short) as pager:
            (place / "pager-control.sock").symlink_to(pager.control)
            yield pager


@contextlib.contextmanager
def busy_client(pager: RunningPager) -> Iterator[None]:
    """Yield a client whose memory is read and written all the time."""
    with memory_client("32M", pager) as client:
        client.start("stress", seconds=120, threads=1)
        yield


def test_json_streams_an_object_a_look(ghostbox_cli: Cli, vm_pager: RunningPager) -> None:
    with busy_client(vm_pager):
        done = ghostbox_cli("top", "work", "--json", "--interval", "200ms", "--count", "3")
    assert done.returncode == 0, done.stderr
    samples = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(samples) == 3
    for sample in samples:
        assert sample["vm"] == "work"
        assert sample["faults_per_s"] > 0
        assert 0 < sample["p50_us"] <= sample["p99_us"]
        assert 0 < sample["resident_bytes"] + sample["inactive_bytes"] <= 2 << 20
        assert sample["remote_bytes"] > 0
        assert {donor["state"] for donor in sample["donors"]} == {"up"}
        assert sum(donor["read_bytes_per_s"] for donor in sample["donors"]) > 0
        assert sample["slowest_donor"] in {donor["uri"] for donor in sample["donors"]}


def test_json_holds_the_map_when_it_is_asked_for(ghostbox_cli: Cli, vm_pager: RunningPager) -> None:
    with memory_client("32M", vm_pager) as client:
        client.command("fill")
        done = ghostbox_cli("top", "work", "--json", "--map", "--interval", "100ms", "--count", "1")
        without = ghostbox_cli("top", "work", "--json", "--no-map", "--interval", "100ms", "--count", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["map"]
    assert found["length_bytes"] == 32 << 20
    counts = {kind: sum(cells) for kind, cells in found.items() if kind != "length_bytes"}
    assert sum(counts[place] for place in page_map.PLACES) == (32 << 20) // 4096
    assert 0 < counts["resident"] + counts["inactive"] + counts["moving"] <= (2 << 20) // 4096
    assert counts["remote"] > 0
    assert "map" not in json.loads(without.stdout)


def test_a_pager_of_an_older_version_has_no_map(place_of_control: Path) -> None:
    with old_pager(place_of_control):
        assert page_map.ask(place_of_control) is None


@pytest.fixture
def place_of_control() -> Iterator[Path]:
    with short_dir() as short:
        yield short / "c"


@contextlib.contextmanager
def old_pager(control: Path) -> Iterator[None]:
    """Answer as a control socket that does not know the command (common/control.c); yield its path."""
    refusal = {"id": 1, "ok": False, "error": {"code": "unknown-command", "message": "no command named 'page-map'"}}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(control))
        server.listen()

        def serve() -> None:
            near, _ = server.accept()
            with near:
                near.recv(4096)
                near.sendall(json.dumps(refusal).encode() + b"\n")

        answering = threading.Thread(target=serve)
        answering.start()
        yield
        answering.join(10)


def test_without_a_terminal_a_look_is_a_plain_line(ghostbox_cli: Cli, vm_pager: RunningPager) -> None:
    done = ghostbox_cli("top", "work", "--interval", "0.1", "--count", "2")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert done.stdout.startswith("0 faults/s  p50 –")
    assert "\x1b" not in done.stdout


def top_process(*argv: str, streams: int, stdin: int | None = None) -> subprocess.Popen[str]:
    """Start the command; ``streams`` is where its output and its errors go."""
    return subprocess.Popen(
        [sys.executable, "-m", "ghostbox", "top", "work", "--interval", "100ms", *argv],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"},
        text=True,
        stdin=stdin,
        stdout=streams,
        stderr=streams,
    )


@pytest.fixture
def mapped(vm_pager: RunningPager) -> Iterator[None]:
    """Yield a client that never touches its memory."""
    with memory_client("32M", vm_pager):
        yield


def test_on_a_terminal_the_view_is_redrawn_until_ctrl_c(ghostbox_dirs: Path, mapped: None) -> None:
    ours, theirs = pty.openpty()
    running = top_process(stdin=theirs, streams=theirs)
    os.close(theirs)
    shown = b""

    def twice() -> bool:
        nonlocal shown
        shown += os.read(ours, 4096)
        return shown.count(b"fetch time") >= 2 and b"a character for" in shown

    try:
        processes.wait_until(twice, timeout_s=30, what="two looks")
        running.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while os.read(ours, 4096):
                pass
        assert running.wait(20) == 0
    finally:
        running.kill()
        running.wait(20)
        os.close(ours)
    text = shown.decode(errors="replace")
    assert "DONOR" in text
    assert "node 1, a character for" in text
    assert "\x1b[" in text


def test_q_ends_it_and_the_terminal_is_as_it_was(ghostbox_dirs: Path, mapped: None) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    before = termios.tcgetattr(theirs)
    running = top_process(stdin=theirs, streams=theirs)
    shown = b""
    try:
        while b"fetch time" not in shown:
            shown += os.read(ours, 4096)
        assert termios.tcgetattr(theirs) != before, "keys are read one by one"
        os.write(ours, b"xq")
        while select.select([ours], [], [], 0.1)[0] or running.poll() is None:
            if select.select([ours], [], [], 0.1)[0]:
                shown += os.read(ours, 4096)
        assert running.wait(20) == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        running.kill()
        running.wait(20)
        os.close(theirs)
        os.close(ours)


def test_a_reader_that_has_enough_is_no_error(ghostbox_dirs: Path, vm_pager: RunningPager) -> None:
    running = top_process("--json", streams=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stderr is not None
    with running:
        assert json.loads(running.stdout.readline())["vm"] == "work"
        running.stdout.close()
        assert running.wait(20) == 0
        assert running.stderr.read() == ""


def test_a_pager_that_ends_ends_the_watching(ghostbox_dirs: Path, vm_pager: RunningPager) -> None:
    running = top_process(streams=subprocess.PIPE)
    assert running.stdout is not None
    assert running.stderr is not None
    with running:
        running.stdout.readline()
        vm_pager.kill()
        assert running.wait(20) == 3
        assert "the pager of VM 'work' has ended" in running.stderr.read()


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["nobody"], 4, "nobody"),
        (["work", "--interval", "10ms"], 2, "--interval: 0.01 s is less than 0.1 s"),
        (["work", "--interval", "soon"], 2, "'soon' is not a duration"),
        (["work", "--count", "0"], 2, "0 is not in the range"),
    ],
)
def test_errors(ghostbox_cli: Cli, argv: list[str], code: int, message: str) -> None:
    done = ghostbox_cli("top", *argv)
    assert done.returncode == code
    assert message in done.stderr


def test_a_vm_that_does_not_run_is_exit_code_3(ghostbox_cli: Cli, ghostbox_dirs: Path) -> None:
    record = Record(
        "work",
        VmState.STOPPED,
        uuid="0d7aee3c-1f7d-4f4c-9d3e-0c7b3a1d2f55",
        mac="52:54:00:00:00:01",
        ssh_port=2222,
        created_at="2026-01-01T00:00:00+00:00",
        domain="ghostbox-work",
        libvirt_uri="qemu:///system",
        image="debian",
        user="ghost",
        virt="tcg",
        cpus=1,
        memory_bytes=1 << 30,
        remote_memory_bytes=1 << 30,
        cache_bytes=1 << 28,
        disk_bytes=1 << 30,
    )
    Book(paths.find().vm("work")).save(record)
    done = ghostbox_cli("top", "work")
    assert done.returncode == 3, done.stderr
    assert "VM 'work' does not run: no pager answers" in done.stderr
    assert "ghostbox up work" in done.stderr
