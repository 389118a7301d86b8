# SPDX-License-Identifier: MIT
"""Stopped VMs are renamed and cloned, and a command may leave the VM's name out. The commands are real."""

from __future__ import annotations

import importlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ghostbox import config, session
from ghostbox.errors import DonorTooSmall
from ghostbox.images import backing_file
from ghostbox.session import definition
from ghostbox.session.record import Book, Record, locked
from helpers.stopped import here, stopped_vm

starting = importlib.import_module("ghostbox.session.up")  # the package has a function of that name
Cli = Callable[..., "CompletedProcess[str]"]


def record_of(name: str) -> Record:
    record = Book(here().vm(name)).load()
    assert record is not None
    return record


def make_disk(name: str, base: Path) -> None:
    """Make a disk with some content over an image."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", base, "64M"], check=True)
    disk = here().vm(name).disk
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", disk], check=True)
    subprocess.run(["qemu-io", "-c", "write -q -P 0x5a 1M 64k", disk], check=True, stdout=subprocess.DEVNULL)


def has_data(disk: Path) -> bool:
    done = subprocess.run(
        ["qemu-io", "-r", "-c", "read -P 0x5a 1M 64k", disk], capture_output=True, text=True, check=False
    )
    return "verification failed" not in done.stdout and done.returncode == 0


def test_rename_keeps_the_vm_and_gives_it_the_other_name(ghostbox_dirs: Path, quick_cli: Cli) -> None:
    files = stopped_vm("box")
    quick_cli("set", "cpus=3")
    uuid = record_of("box").uuid
    done = quick_cli("rename", "box", "lab", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"name": "lab", "was": "box"})
    assert not files.state.exists()
    record = record_of("lab")
    assert (record.name, record.domain, record.uuid) == ("lab", "ghostbox-lab", uuid)
    text = here().vm("lab").definition.read_text()
    assert text.startswith("# What `ghostbox up lab` starts. To change it: ghostbox set lab, or ghostbox edit lab.\n")
    assert definition.parse(here().vm("lab"), text).vm.cpus == 3


def test_rename_that_was_interrupted_in_the_middle_is_done(ghostbox_dirs: Path, quick_cli: Cli) -> None:
    files = stopped_vm("box")
    files.state.rename(here().vm("lab").state)
    assert (record_of("lab").name, record_of("lab").domain) == ("lab", "ghostbox-lab")
    assert "lab" in quick_cli("list").stdout


@pytest.mark.parametrize("command", ["rename", "clone"])
def test_name_that_is_taken_is_refused(ghostbox_dirs: Path, quick_cli: Cli, command: str) -> None:
    stopped_vm("box")
    stopped_vm("lab")
    stray = here().vm("stray")
    stray.state.mkdir()
    stray.disk.write_text("somebody's")
    done = quick_cli(command, "box", "lab")
    assert (done.returncode, "error: there is a VM named 'lab' already" in done.stderr) == (5, True)
    done = quick_cli(command, "box", "stray")
    assert (done.returncode, f"error: {stray.state} is in the way" in done.stderr) == (5, True)
    assert stray.disk.read_text() == "somebody's"
    with locked(here().vm("new")):
        assert quick_cli(command, "box", "new").returncode == 5
    assert quick_cli(command, "nosuch", "new").returncode == 4
    assert quick_cli(command, "box", "../x").returncode == 2


def test_clone_is_a_vm_of_its_own_with_the_same_disk(ghostbox_dirs: Path, quick_cli: Cli) -> None:
    source = stopped_vm("box")
    base = ghostbox_dirs / "base.qcow2"
    make_disk("box", base)
    quick_cli("set", "--autostart", "cpus=3")
    done = quick_cli("clone", "box", "lab", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["left_out"] == {"vm.ports": ["8080:80"], "vm.autostart": True}
    assert "note: vm.ports is left out" in done.stderr
    one, other = record_of("box"), record_of("lab")
    for field in ("uuid", "mac", "name", "domain"):
        assert getattr(one, field) != getattr(other, field), field
    assert (other.cloned, other.leases, other.memory_bytes) == (True, (), one.memory_bytes)
    target = here().vm("lab")
    assert not target.client_key.exists() and not target.host_key.exists(), "its keys are its own, made at its start"
    own = definition.parse(target, target.definition.read_text())
    assert (own.vm.cpus, own.vm.ports, own.vm.autostart, own.pool.donors) == (3, (), False, ("tower", "attic"))
    assert backing_file(target.disk) == base
    assert quick_cli("delete", "box", "-y").returncode == 0
    assert not source.state.exists()
    assert has_data(target.disk), "the copy stands on the image alone"


def test_clone_that_finds_no_room_leaves_nothing(ghostbox_dirs: Path, quick_cli: Cli) -> None:
    files = stopped_vm("box")
    files.disk.symlink_to("/nowhere/disk")
    done = quick_cli("clone", "box", "lab")
    assert done.returncode == 1
    assert "cp failed" in done.stderr
    assert not here().vm("lab").state.exists()


def test_the_only_vm_needs_no_name_and_of_several_one_must_be_chosen(ghostbox_dirs: Path, quick_cli: Cli) -> None:
    none = quick_cli("info")
    assert (none.returncode, none.stderr) == (4, "error: there is no VM\nfix: make one: ghostbox up\n")
    stopped_vm("work")
    assert json.loads(quick_cli("info", "--json").stdout)["name"] == "work"
    for words in (["down"], ["status"], ["logs"], ["recover"], ["top"], ["donor", "keep", "tower"], ["wait"]):
        assert "'work'" in quick_cli(*words, env={"COLUMNS": "200"}).stderr or words == ["status"], words
    stopped_vm("play")
    for words in (["info"], ["up"], ["delete", "-y"], ["donor", "drain", "tower"], ["shell", "--", "true"]):
        done = quick_cli(*words)
        assert (done.returncode, done.stderr) == (
            2,
            "error: which VM? There are 2: play, work\nfix: name one of them, or set vm.name in ghostbox.yaml\n",
        ), words
    (ghostbox_dirs / "ghostbox.yaml").write_text("vm: {name: play}\n")
    assert json.loads(quick_cli("info", "--json").stdout)["name"] == "play"
    (ghostbox_dirs / "ghostbox.yaml").write_text("vm: {name: lab}\n")
    assert "error: no VM named 'lab'" in quick_cli("delete", "-y").stderr, "no other one in its place"


def test_autostart_is_a_part_of_the_definition(ghostbox_dirs: Path, quick_cli: Cli) -> None:
    files = stopped_vm("box")
    done = quick_cli("autostart", "on")
    assert done.stdout == "vm.autostart is now on, it was off (now)\n"
    assert "  autostart: true\n" in files.definition.read_text()
    assert quick_cli("autostart", "off", "box", "--json").returncode == 0
    assert quick_cli("autostart", "run", "-o", "json").stdout == "[]\n"


def test_autostart_says_what_does_not_run_in_the_end(ghostbox_dirs: Path, quick_cli: Cli) -> None:
    stopped_vm("box")
    quick_cli("set", "--autostart", "donors=[127.0.0.1:1]", "--unset", "replicas", "--unset", "ports")
    done = quick_cli("autostart", "run", "--timeout", "0.5s", "--output", "json")
    assert done.returncode == 6
    [found] = json.loads(done.stdout)
    assert (found["name"], found["state"]) == ("box", None)
    assert done.stderr.count("VM 'box' is tried again: ") == 1
    assert '"message": "1 of 1 VMs do not run"' in done.stderr


def test_memory_that_a_donor_still_holds_of_before_is_released_before_it_is_called_too_small(
    ghostbox_dirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut the lease was noted while the donor was silent; now the donor answers."""
    owed = ["lease"]
    plans: list[int] = []

    def make_plan(*_: object) -> str:
        plans.append(len(owed))
        if owed:
            raise DonorTooSmall("donor tower: offers 0 B")
        return "the plan"

    def settle(_: object) -> int:
        owed.clear()
        return 0

    monkeypatch.setattr(starting.planning, "make_plan", make_plan)
    monkeypatch.setattr(starting.unreleased, "load", lambda _: list(owed))
    monkeypatch.setattr(starting.unreleased, "settle", settle)
    book = Book(stopped_vm("box"))
    assert starting._planned(config.load(), here(), book) == "the plan"
    assert plans == [1, 0]
    owed.append("of a donor that is gone")
    monkeypatch.setattr(starting.unreleased, "settle", lambda _: 1)
    with pytest.raises(DonorTooSmall, match="offers 0 B"):
        starting._planned(config.load(), here(), book)


@pytest.mark.parametrize("command", ["start", "restart"])
def test_start_is_for_vms_that_are_there(ghostbox_dirs: Path, quick_cli: Cli, command: str) -> None:
    more = ["--force", "--stop-timeout", "1m"] if command == "restart" else []
    done = quick_cli(command, "nosuch", "--no-wait", "--timeout", "1m", "--overcommit", "--json", *more)
    assert (done.returncode, "no VM named 'nosuch'" in done.stderr) == (4, True)


def test_stop_has_a_help_of_its_own_and_does_what_down_does(ghostbox_dirs: Path, quick_cli: Cli) -> None:
    assert "ghostbox stop work --force" in quick_cli("stop", "--help").stdout
    stopped_vm("box")
    assert "VM 'box' does not run" in quick_cli("stop", "--timeout", "1s").stderr


@pytest.mark.parametrize(
    ("word", "near"), [("strat", "start"), ("restrat", "restart"), ("clon", "clone"), ("lss", "ls")]
)
def test_a_mistyped_command_is_guessed(quick_cli: Cli, word: str, near: str) -> None:
    assert f"Did you mean '{near}'?" in quick_cli(word).stderr


@pytest.mark.parametrize("words", [["wait", "box"], ["shell", "--wait", "box", "true"]])
def test_a_guest_is_waited_for_as_long_as_its_vm_is_defined_to_take(
    quick_cli: Cli, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    def wait_ready(name: str, *_: object, timeout_s: float) -> None:
        print(f"waits {timeout_s:g} s for {name}")

    stopped_vm("box")
    assert quick_cli("set", "box", "boot_timeout=7m").returncode == 0
    monkeypatch.setattr(session, "wait_ready", wait_ready)
    assert "waits 420 s for box\n" in quick_cli(*words, env={"GHOSTBOX_VM_BOOT_TIMEOUT": "1m"}).stdout
