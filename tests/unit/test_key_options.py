# SPDX-License-Identifier: MIT
"""Each option for a key of the configuration is made from the key, and its value reaches the key."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from ghostbox.cli.context import Context
from ghostbox.cli.key_options import KeyOption
from ghostbox.cli.lifecycle import set_
from ghostbox.cli.memserver import memserver
from ghostbox.config import Config, definition, kinds, settable
from ghostbox.errors import ConfigError
from ghostbox.units import GIB
from helpers import commands

WRITTEN = {
    "vm.image": "mine",
    "vm.user": "ana",
    "vm.ports": "8080:80",
    "vm.network": "bridge:br0",
    "vm.shares": "/srv:ro",
    "vm.cloud_init": "/srv/user-data",
    "pool.donors": "tower",
    "pool.backup": "/srv/backup",
    "pool.on_donor_loss": "poison",
    "memserver.name": "attic",
    "memserver.machine": "rack",
    "memserver.bind": "192.168.7.2",
    "memserver.drain_on_pressure": "20%",
    "memserver.pressure_file": "/srv/pressure",
}
"""What is written behind a flag whose key's kind does not say it."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def key_options(command: click.Command) -> list[KeyOption]:
    return [each for each in command.params if isinstance(each, KeyOption)]


def written(option: KeyOption) -> list[str]:
    """Return command-line words that set an option's key to a value that is not its default."""
    flag = max(option.opts, key=len)
    match option.key.kind:
        case kinds.Boolean():
            return [max(option.secondary_opts, key=len) if option.key.default is True else flag]
        case kinds.Integer(maximum=most):
            return [flag, str(most)]
        case kinds.Duration():
            return [flag, "77s"]
        case kinds.Size() | kinds.Many(member=kinds.Disk()):
            return [flag, "3GiB"]
    return [flag, WRITTEN.get(option.key.name, "3GiB")]


def loaded(command: click.Command, words: list[str], **extra: object) -> Config:
    context = Context()
    command.make_context(command.name, words, obj=context, **extra)  # type: ignore[arg-type]
    return context.config()


def test_flag_for_a_key_that_does_not_exist_cannot_be_made() -> None:
    with pytest.raises(LookupError, match=r"the configuration has no key vm\.cache with a flag"):
        click.option("vm.cache", cls=KeyOption)(lambda: None)
    with pytest.raises(LookupError, match=r"the configuration has no key vm\.ssh_key with a flag"):
        click.option("vm.ssh_key", cls=KeyOption)(lambda: None)


def test_each_flag_that_the_schema_declares_belongs_to_a_command() -> None:
    used = {option.key.name for found in commands.walk() for option in key_options(found.command)}
    assert used == {name for name, key in settable().items() if key.flag is not None}


@pytest.mark.parametrize("command", [set_, memserver], ids=["set", "memserver"])
def test_what_a_flag_is_given_reaches_its_key_and_no_other(command: click.Command) -> None:
    options = key_options(command)
    assert len(options) >= 12
    for option in options:
        config = loaded(command, written(option))
        wanted = {"vm.memory", "pool.cache"} if option.key.name == "vm.local" else {option.key.name}
        assert config.given == wanted
        assert {name for name in config.origins if config.origin(name) != "default"} == wanted
        for name in wanted:
            assert config.value(name) != Context().config().value(name), name


def test_a_memserver_is_announced_unless_it_is_told_not_to_be() -> None:
    assert loaded(memserver, []).memserver.announce is True
    assert loaded(memserver, ["--no-announce"]).memserver.announce is False


def test_help_of_a_flag_is_the_keys_meaning_where_nothing_else_is_said() -> None:
    by_key = {option.key.name: option for option in key_options(set_)}
    assert settable()["vm.cpus"].flag_help == by_key["vm.cpus"].help == "Virtual processors."
    assert by_key["vm.disk"].help == "Size of the disk."


@pytest.mark.parametrize("variable", ["GHOSTBOX_LOCAL", "GHOSTBOX_MEMORY"])
def test_flag_from_the_environment_lies_around_and_changes_no_vm(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "6GiB")
    config = loaded(set_, ["--cpus", "5"], auto_envvar_prefix="GHOSTBOX")
    assert config.given == {"vm.cpus"}
    assert config.origin("vm.memory") == f"environment {variable}"


@pytest.mark.parametrize(
    ("environment", "words", "wanted"),
    [
        ({"GHOSTBOX_LOCAL": "5G"}, ["--memory", "4G", "--cache", "2G"], (4, 2)),
        ({"GHOSTBOX_LOCAL": "5G"}, ["--memory", "8G"], (8, 2)),
        ({"GHOSTBOX_LOCAL": "5G"}, ["--memory", "2G"], (2, 2)),
        ({"GHOSTBOX_LOCAL": "5G"}, ["--local", "10G"], (6, 4)),
        ({"GHOSTBOX_MEMORY": "2G"}, ["--local", "5G"], (3, 2)),
        ({"GHOSTBOX_MEMORY": "9G", "GHOSTBOX_CACHE": "9G"}, ["--local", "5G"], (3, 2)),
        ({"GHOSTBOX_LOCAL": "5G", "GHOSTBOX_MEMORY": "4G"}, [], (4, 1)),
    ],
)
def test_flag_wins_over_the_environment_also_where_one_value_stands_for_two(
    environment: dict[str, str], words: list[str], wanted: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = loaded(set_, words, auto_envvar_prefix="GHOSTBOX")
    assert (config.vm.memory_bytes, config.pool.cache_bytes) == (wanted[0] * GIB, wanted[1] * GIB)


def test_error_about_a_value_from_the_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GHOSTBOX_LOCAL", "much")
    with pytest.raises(ConfigError, match="^GHOSTBOX_LOCAL: 'much' is not a size$"):
        loaded(set_, [], auto_envvar_prefix="GHOSTBOX")


def test_error_about_a_value_names_the_flag_as_it_is_written() -> None:
    for words, message in (
        (["-p", "rubbish"], "--port: 'rubbish' is not a forwarded port"),
        (["--add-disk", "rubbish"], "--add-disk: 'rubbish' is not a size"),
        (["--donor", "a b"], "--donor: 'a b' is not HOST or HOST:PORT"),
    ):
        with pytest.raises(ConfigError, match=message):
            loaded(set_, words)


def test_no_two_keys_of_a_vm_have_the_same_name_without_their_section() -> None:
    leaves = [key.leaf for key in definition.vm_keys().values()]
    assert len(leaves) == len(set(leaves))
    assert [definition.full_key(word) for word in ("slow", "pool.slow", "local", "rubbish")] == [
        "pool.slow",
        "pool.slow",
        "vm.local",
        "rubbish",
    ]
