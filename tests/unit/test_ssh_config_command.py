# SPDX-License-Identifier: MIT
"""`ghostbox ssh-config` prints one line for the user's own configuration, and the system's ssh finds VMs by name."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from ghostbox import paths
from ghostbox.cli import main
from ghostbox.cli.options import WordsCommand
from ghostbox.session import ssh_include
from helpers.ssh_server import started_vm

Cli = Callable[..., subprocess.CompletedProcess[str]]
OLD = b"# mine \xff\r\nHost tower\n  User ana"


@pytest.fixture
def vms(ghostbox_dirs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return two VMs that were started, in a directory with odd characters; and the home directory."""
    monkeypatch.setenv("GHOSTBOX_STATE_DIR", str(ghostbox_dirs / "st %h[a]'te"))
    found = paths.find()
    for name, port in (("work", 2201), ("tower", 2202)):
        started_vm(found.vm(name).state, found.vm(name).runtime, port, name)
    home = ghostbox_dirs / "home"
    home.mkdir()
    return home


def port_of(config: Path, host: str) -> str:
    told = subprocess.run(["ssh", "-F", config, "-G", host], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return dict(line.split(" ", 1) for line in told.stdout.splitlines() if " " in line)["port"]


def test_host_blocks_are_printed_for_all_or_one(vms: Path, quick_cli: Cli) -> None:
    both, one = quick_cli("ssh-config").stdout, quick_cli("ssh-config", "work").stdout
    assert both.count("Host ") == 2
    assert one.startswith("Host work ghostbox-work\n    HostName 127.0.0.1\n    Port 2201\n")
    (vms / "printed").write_text(both)
    assert port_of(vms / "printed", "ghostbox-tower") == "2202"


def test_the_line_is_put_at_the_top_once_and_taken_away_again(vms: Path, quick_cli: Cli) -> None:
    config = vms / ".ssh" / "config"
    done = quick_cli("ssh-config", "--install", "--file", vms / ".ssh" / "config")
    assert done.returncode == 0, done.stderr
    assert (config.stat().st_mode & 0o777, config.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert (port_of(config, "work"), port_of(config, "tower"), port_of(config, "other")) == ("2201", "2202", "22")
    first = config.read_bytes()
    again = quick_cli("ssh-config", "--install", "--file", vms / ".ssh" / "config")
    assert "has the line already" in again.stderr
    assert config.read_bytes() == first
    assert "removed the line" in quick_cli("ssh-config", "--uninstall", "--file", vms / ".ssh" / "config").stderr
    assert config.read_bytes() == b""
    assert "has no such line" in quick_cli("ssh-config", "--uninstall", "--file", vms / ".ssh" / "config").stderr


def test_everything_else_stays_byte_for_byte_and_a_symlink_stays_one(vms: Path, quick_cli: Cli) -> None:
    dotfiles, config = vms / "dotfiles", vms / ".ssh" / "config"
    dotfiles.mkdir()
    config.parent.mkdir()
    (dotfiles / "ssh").write_bytes(OLD)
    (dotfiles / "ssh").chmod(0o640)
    config.symlink_to("../dotfiles/ssh")
    done = quick_cli("ssh-config", "--install", "--file", vms / ".ssh" / "config")
    assert "the file has its own Host 'tower'; the VM of that name now comes before it" in " ".join(done.stderr.split())
    assert config.is_symlink()
    line, _, rest = (dotfiles / "ssh").read_bytes().partition(b"\n")
    assert rest == OLD
    assert line.decode() == ssh_include.line(paths.find())
    assert (dotfiles / "ssh").stat().st_mode & 0o777 == 0o640
    quick_cli("ssh-config", "--uninstall", "--file", vms / ".ssh" / "config")
    assert config.read_bytes() == OLD
    assert [entry.name for entry in dotfiles.iterdir()] == ["ssh"]


def test_a_line_that_holds_for_one_host_only_is_moved_to_the_top(vms: Path, quick_cli: Cli) -> None:
    config = vms / ".ssh" / "config"
    config.parent.mkdir()
    line = ssh_include.line(paths.find()).encode()
    config.write_bytes(OLD + b"\n  " + line + b"\n")
    assert quick_cli("ssh-config", "--install", "--file", vms / ".ssh" / "config").returncode == 0
    assert config.read_bytes() == line + b"\n" + OLD + b"\n"


def test_errors(vms: Path, quick_cli: Cli) -> None:
    (vms / ".ssh").write_text("no directory")
    for words, code, message in (
        (["nobody"], 4, "no VM named 'nobody'"),
        (["--install", "--uninstall"], 2, "--install and --uninstall exclude each other"),
        (["work", "--install"], 2, "the Include line is for all VMs"),
        (["--install", "--file", f"{vms}/.ssh/config"], 1, f"cannot read {vms}/.ssh/config: Not a directory"),
    ):
        done = quick_cli("ssh-config", *words)
        assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    empty = quick_cli("ssh-config", env={"GHOSTBOX_STATE_DIR": str(vms / "empty")})
    assert (empty.returncode, "no VM was started yet" in empty.stderr) == (4, True)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["work", "free", "-h"], ("work", "free", "-h")),
        (["--", "free", "-h"], ("--", "free", "-h")),
        (["--wait", "--", "-x"], ("--", "-x")),
        (["work", "--", "--help"], ("work", "--", "--help")),
        (["-v", "work", "-v"], ("work", "-v")),
        ([], ()),
        (["--"], ("--",)),
    ],
)
def test_shell_leaves_the_options_of_the_command_alone(argv: list[str], words: tuple[str, ...]) -> None:
    command = main.cli.get_command(click.Context(main.cli), "shell")
    assert isinstance(command, WordsCommand)
    context = command.make_context("shell", list(argv))
    assert context.params["words"] == words


def test_a_command_in_the_place_of_the_name_is_refused_with_where_it_goes(vms: Path, quick_cli: Cli) -> None:
    done = quick_cli("shell", "free", "-h")
    assert done.returncode == 4
    assert "error: no VM named 'free'\nwhy: there are: tower, work\n" in done.stderr
    assert "fix: to run a command in a VM: ghostbox shell tower free -h\n" in done.stderr


def test_cp_without_a_vm_is_refused(vms: Path, quick_cli: Cli) -> None:
    done = quick_cli("cp", "-r", "-p", "a", "b")
    assert (done.returncode, "error: neither side is in a VM" in done.stderr) == (2, True)
