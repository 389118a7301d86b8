# SPDX-License-Identifier: MIT
"""What the global options say, handed to every command as ``@click.pass_obj``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
from click.core import ParameterSource

from ghostbox import config, log, paths


@dataclass
class Context:
    """The global options of this run. ``output`` is the format that results and errors are printed in."""

    config_file: Path | None = None
    verbosity: int = 0
    color: bool | None = None
    output: str = "table"

    @property
    def paths(self) -> paths.Paths:
        """Where state, sockets, images and programs are."""
        return paths.find()

    def config(self, cli: Mapping[str, object] | None = None) -> config.Config:
        """Return the configuration, with ``cli`` (dotted key to the flag's value, None where not given) on top."""
        loaded = config.load(cli, self.config_file)
        return config.with_origins(loaded, _flags_from_environment(cli or {}))

    def set_up_log(self) -> None:
        """Make log records follow the global options."""
        log.set_up(self.verbosity, color=self.color)


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
