# SPDX-License-Identifier: MIT
"""What the global options say, handed to every command as ``@click.pass_obj``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
from click.core import ParameterSource

from ghostbox import config, log, paths
from ghostbox.config import Config


@dataclass
class Context:
    """The global options of this run. ``output`` is the format that results and errors are printed in."""

    config_file: Path | None = None
    config_file_from_environment: bool = False
    verbosity: int = 0
    color: bool | None = None
    output: str = "table"

    @property
    def paths(self) -> paths.Paths:
        """Where state, sockets, images and programs are."""
        return paths.find()

    def config(self, cli: Mapping[str, object] | None = None, words: Mapping[str, object] | None = None) -> Config:
        """Return the configuration of this command.

        Args:
            cli: what flags say, by dotted key; None where one was not given.
            words: what ``KEY=VALUE`` says, by dotted key.
        """
        loaded = config.load(cli, self.config_file, words=words, labels=_labels(cli or {}))
        return config.with_origins(loaded, {**self._file_of_environment(loaded), **_flags_from_environment(cli or {})})

    def _file_of_environment(self, loaded: Config) -> dict[str, str]:
        """Return the origins of what is in the file that ``GHOSTBOX_CONFIG`` names: it lies around, nobody gave it."""
        if not self.config_file_from_environment:
            return {}
        begin = f"{self.config_file}:"
        return {key: loaded.origin(key) for key in loaded.given if loaded.origin(key).startswith(begin)}

    def set_up_log(self) -> None:
        """Make log records follow the global options."""
        log.set_up(self.verbosity, color=self.color)


def _labels(cli: Mapping[str, object]) -> dict[str, str]:
    """Return what the command that runs calls its options and arguments: errors about a value begin with that."""
    context = click.get_current_context(silent=True)
    found = {} if context is None else {each.name: each for each in context.command.params}
    labels = {}
    for key in cli:
        parameter = found.get(key.partition(".")[2])
        if isinstance(parameter, click.Option):
            labels[key] = max(parameter.opts, key=len)
        elif parameter is not None:
            labels[key] = parameter.human_readable_name.upper()
        elif context is not None:
            labels[key] = key
    return labels


def _flags_from_environment(cli: Mapping[str, object]) -> dict[str, str]:
    """Return the origins of those flags that click took from ``GHOSTBOX_<OPTION>``."""
    context = click.get_current_context(silent=True)
    if context is None:
        return {}
    names = {
        parameter
        for parameter in context.params
        if context.get_parameter_source(parameter) is ParameterSource.ENVIRONMENT
    }
    leaves = {key: key.partition(".")[2] for key, value in cli.items() if value not in (None, (), [])}
    return {key: f"environment GHOSTBOX_{leaf.upper()}" for key, leaf in leaves.items() if leaf in names}
