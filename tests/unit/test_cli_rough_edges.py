# SPDX-License-Identifier: MIT
"""A new user makes mistakes in the first hour: forgotten units and words, wrong files. The commands are real."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import click
import pytest

from ghostbox import config
from ghostbox.cli import main
from ghostbox.errors import EXIT_CODES, ConfigError, UsageError
from ghostbox.plan import plan
from ghostbox.units import GIB, MIB
from helpers import project
from helpers.other_user import as_user
from helpers.stopped import here, stopped_vm

Cli = Callable[..., "CompletedProcess[str]"]


def test_alone_it_says_what_to_do_next(quick_cli: Cli) -> None:
    done = quick_cli()
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) < 15
    for word in ("ghostbox demo", "ghostbox up", "All commands: ghostbox --help"):
        assert word in done.stdout


@pytest.mark.parametrize("group", ["donor", "image", "config", "autostart"])
def test_a_group_of_commands_alone_shows_its_help(quick_cli: Cli, group: str) -> None:
    done = quick_cli(group)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"ghostbox {group}" in done.stdout.partition("Examples:")[2]


def test_every_exit_code_is_in_the_help_and_in_the_documents(quick_cli: Cli) -> None:
    said = quick_cli("--help").stdout.partition("Exit codes:")[2]
    table = (project.ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    for code, meaning in EXIT_CODES.items():
        assert re.search(rf"^\s+{code}\s+{re.escape(meaning)}$", said, re.MULTILINE), code
        assert f"| {code} | {meaning}" in table, code


@pytest.mark.parametrize("words", [["list"], ["status", "x"], ["paths"], ["image", "list"], ["donor", "list", "x"]])
def test_a_configuration_file_that_is_not_there_is_an_error_everywhere(quick_cli: Cli, words: list[str]) -> None:
    done = quick_cli(*words, "-c", "nowhere.yaml")
    assert (done.returncode, done.stderr) == (4, "error: no configuration file nowhere.yaml\n")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("vm: [", "1: not valid YAML: expected the node content, but found '<stream end>'"),
        ("vm: {memroy: 5G}", "1: unknown key 'vm.memroy'\nfix: did you mean 'vm.memory'?"),
        ("vm: {memory: much}", "1: vm.memory: 'much' is not a size"),
    ],
)
@pytest.mark.parametrize("words", [["list"], ["paths"], ["image", "list"], ["completion", "bash"]])
def test_a_configuration_file_that_is_wrong_is_an_error_everywhere(
    quick_cli: Cli, tmp_path: Path, words: list[str], text: str, error: str
) -> None:
    (file := tmp_path / "given.yaml").write_text(text)
    for done in (quick_cli(*words, "-c", file), quick_cli(*words, env={"GHOSTBOX_CONFIG": str(file)})):
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {file}:{error}")


@pytest.mark.skipif(os.geteuid() != 0, reason="cannot run here: needs root to become another user")
def test_a_configuration_file_in_a_closed_directory_is_named(tmp_path: Path) -> None:
    file = tmp_path / "given.yaml"
    tmp_path.chmod(0o700)

    def error() -> str:
        try:
            config.validate_file(file)
        except ConfigError as err:
            return err.message
        return ""

    assert as_user(error) == f"cannot read the configuration {file}: Permission denied"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["up", "--memory", "5"], "error: --memory: 5 B is too small, the least is 256 MiB\nfix: write its unit: 5G"),
        (["up", "--local", "5"], "error: --local: 5 B is too small, the least is 384 MiB\nfix: write its unit: 5G"),
        (["plan", "--local", "5"], "error: --local: 5 B is too small, the least is 384 MiB\nfix: write its unit: 5G"),
        (["set", "a", "--local", "5"], "--local: 5 B is too small, the least is 384 MiB\nfix: write its unit: 5G"),
        (["up", "--cache", "512"], "error: --cache: 512 B is too small, the least is 4 MiB\nfix: write its unit: 512M"),
        (["donor", "add", "tower", "--size", "8"], "8 bytes are too few; write its unit: 8G"),
        (
            ["memserver", "--control-port", "0", "--size", "16"],
            "error: --size 16 is too little to lend\nfix: write its unit: 16G",
        ),
    ],
)
def test_a_forgotten_unit_is_named(quick_cli: Cli, words: list[str], text: str) -> None:
    done = quick_cli(*words)
    assert (done.returncode, text in done.stderr) == (2, True), done.stderr


def test_a_rate_without_a_unit_is_not_taken_for_bytes() -> None:
    with pytest.raises(UsageError) as caught:
        config.load({"pool.rebuild_rate": "256"})
    assert caught.value.hint == "write its unit: 256M"
    assert config.load({"pool.rebuild_rate": "0"}).pool.rebuild_rate_bytes == 0


def valued(command: str) -> list[str]:
    """Return the options of a command that stand for keys and can have a wrong value."""
    found = main.cli.get_command(click.Context(main.cli), command)
    assert found is not None
    keys = {name.partition(".")[2]: key for name, key in config.keys().items()}
    return [
        max(each.opts, key=len)
        for each in found.params
        if isinstance(each, click.Option) and each.name in keys and isinstance(each.type, type(click.STRING))
        if is_wrong(keys[each.name])
    ]


def is_wrong(key: config.Key) -> bool:
    """Tell whether the wrong value is wrong for this key: some keys take any value."""
    try:
        key.kind.parse("no such [value]")
    except UsageError:
        return True
    return False


@pytest.mark.parametrize("command", ["up", "set", "plan", "memserver"])
def test_errors_begin_with_an_option_that_the_command_has(quick_cli: Cli, command: str) -> None:
    stopped_vm("box")
    options = valued(command)
    assert options
    for option in options:
        done = quick_cli(command, option, "no such [value]")
        assert (done.returncode, done.stderr.startswith(f"error: {option}: ")) == (2, True), done.stderr


@pytest.mark.parametrize("words", [["up"], ["info"], ["set"], ["start"], ["down"], ["recover"]])
def test_a_wrong_name_is_not_blamed_on_an_option(quick_cli: Cli, words: list[str]) -> None:
    done = quick_cli(*words, "../evil")
    assert done.returncode == 2
    assert "'../evil' is not a name" in done.stderr
    assert "--name" not in done.stderr


@pytest.mark.parametrize(("remote", "cache"), [("1G", 512 * MIB), ("128M", 64 * MIB), ("2G", GIB), ("32G", GIB)])
def test_a_cache_that_nobody_set_fits(remote: str, cache: int) -> None:
    loaded = config.load({"vm.remote_memory": remote})
    plan.check_sizes(loaded)
    assert plan.cache_bytes(loaded) == cache
    with pytest.raises(UsageError, match="is not smaller than vm.remote_memory"):
        plan.check_sizes(config.load({"vm.remote_memory": "1G", "pool.cache": "1G"}))


def test_commands_that_end_with_a_state_say_it_in_json(quick_cli: Cli) -> None:
    files = stopped_vm("box")
    files.events.write_text('{"time": "T", "event": "paused", "donor": null, "text": "it waits"}\n')
    files.console_log.write_text("one\ntwo\n")
    shown = quick_cli("logs", "--json", "-n", "1").stdout
    assert json.loads(shown) == {"file": str(files.console_log), "text": "two", "event": None}
    event = json.loads(quick_cli("logs", "box", "--source", "events", "--json").stdout)["event"]
    assert (event["event"], event["text"]) == ("paused", "it waits")
    assert json.loads(quick_cli("down", "--json").stdout) == {"name": "box", "state": "stopped", "ran": False}
    assert json.loads(quick_cli("stop", "-o", "json").stdout)["ran"] is False
    refused = quick_cli("wait", "--json")
    assert (refused.returncode, json.loads(refused.stderr)["error"]["exit_code"]) == (3, 3)
    assert json.loads(quick_cli("delete", "-y", "-o", "json").stdout) == {"deleted": "box"}
    assert not here().vm("box").state.exists()


def test_logs_of_this_machines_memservers_need_no_vm(quick_cli: Cli) -> None:
    done = quick_cli("logs", "--source", "memserver")
    assert "error: no memserver of this machine has a log" in done.stderr


def test_a_record_that_cannot_be_read_is_no_reason_to_remove_the_disk(quick_cli: Cli) -> None:
    files = stopped_vm("box")
    files.record.write_text("nonsense")
    done = quick_cli("info", "box")
    assert done.returncode == 1
    assert f"{files.disk} is its disk" in done.stderr
    assert "rm " not in done.stderr
