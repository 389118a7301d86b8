# SPDX-License-Identifier: MIT
"""Hold the global options, which every command gets by ``@click.pass_obj``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ghostbox import config, log, paths
from ghostbox.config import Config


@dataclass
class Context:
    """Holds the global options of this run, and its flags for keys of the configuration.

    ``output`` is the format of results and errors. ``flags`` are the values of the command's flags, by dotted key, and
    ``variables`` the environment variables that some of these came from (`key_options`).
    """

    config_file: Path | None = None
    config_file_from_environment: bool = False
    verbosity: int = 0
    color: bool | None = None
    output: str = "table"
    flags: dict[str, object] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> paths.Paths:
        """Return the paths of state, sockets, images and programs."""
        return paths.find()

    def config(self, cli: Mapping[str, object] | None = None, words: Mapping[str, object] | None = None) -> Config:
        """Return the configuration of this command, with the values of its flags.

        Args:
            cli: further values that count as given by flags, by dotted key.
            words: the values of ``KEY=VALUE`` words, by dotted key.
        """
        given = {**self.flags, **(cli or {})}
        loaded = config.load(given, self.config_file, words=words, variables=self.variables)
        return config.with_origins(loaded, self._file_of_environment(loaded))

    def _file_of_environment(self, loaded: Config) -> dict[str, str]:
        """Return the origins of values from the file that ``GHOSTBOX_CONFIG`` names."""
        if not self.config_file_from_environment:
            return {}
        begin = f"{self.config_file}:"
        return {key: loaded.origin(key) for key in loaded.given if loaded.origin(key).startswith(begin)}

    def agrees_to(self, address: str) -> bool:
        """Tell whether the donor at ``address`` may be used without encryption: a VM uses it so, or the user says so.

        Raises:
            ConfigError: the configuration is wrong.
        """
        from ghostbox.session import insecure

        return address in insecure.donors(self.paths) or self.config().pool.insecure

    def set_up_log(self) -> None:
        """Make log records follow the global options."""
        log.set_up(self.verbosity, color=self.color)
