# SPDX-License-Identifier: MIT
"""What commands print: results on stdout as table, JSON or YAML; progress on stderr."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import click
import yaml
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.status import Status

from ghostbox.cli.context import Context
from ghostbox.units import format_duration

FORMATS = ("table", "json", "yaml")

R = TypeVar("R")


def output_options(function: Callable[..., R]) -> Callable[..., R]:
    """Give a command ``-o/--output table|json|yaml`` and ``--json``; it receives ``output: str``."""

    @click.option("-o", "--output", type=click.Choice(FORMATS), default="table", help="Format of the result.")
    @click.option("--json", "as_json", is_flag=True, help="The same as -o json.")
    @functools.wraps(function)
    def with_output(*args: Any, output: str, as_json: bool, **kwargs: Any) -> R:
        chosen = "json" if as_json else output
        context = click.get_current_context().find_object(Context)
        if context is not None:
            context.output = chosen
        return function(*args, output=chosen, **kwargs)

    return with_output


def emit(data: object, fmt: str, table: Callable[[], RenderableType]) -> None:
    """Print a result on stdout.

    Args:
        data: dataclasses, mappings, lists, scalars; what JSON and YAML show.
        fmt: ``table``, ``json`` or ``yaml``.
        table: makes what people see; called only when it is wanted.
    """
    if fmt == "json":
        click.echo(json.dumps(plain(data), indent=2))
    elif fmt == "yaml":
        click.echo(yaml.safe_dump(plain(data), sort_keys=False), nl=False)
    else:
        stdout_console().print(table())


def plain(data: object) -> Any:
    """Return ``data`` as what JSON and YAML know: dataclasses become mappings; paths, dates and enums text."""
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        return {field.name: plain(getattr(data, field.name)) for field in dataclasses.fields(data)}
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, enum.Enum):
        return plain(data.value)
    if isinstance(data, (list, tuple, set, frozenset)):
        return [plain(item) for item in data]
    if isinstance(data, datetime.datetime):
        return data.isoformat()
    if data is None or isinstance(data, (str, bool, int, float)):
        return data
    return str(data)


def stdout_console() -> Console:
    """Return a console for results: as wide as needed when it is not a terminal, so that nothing is cut off."""
    return _console(stderr=False)


def _console(*, stderr: bool) -> Console:
    context = click.get_current_context(silent=True)
    found = context.find_object(Context) if context else None
    stream = sys.stderr if stderr else sys.stdout
    return Console(
        stderr=stderr,
        no_color=True if found is not None and found.color is False else None,
        width=None if stream.isatty() else 200,
        soft_wrap=not stream.isatty(),
        highlight=False,
    )


class Stage:
    """One stage of work; ``detail`` is what the line says at its end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.detail = ""
        self._show: Callable[[str], None] = lambda text: None

    def say(self, text: str) -> None:
        """Show what the stage is doing now (a terminal shows it at once) and keep it as the detail."""
        self.detail = text
        self._show(text)


class Stages:
    """Named stages of work with their elapsed time, on stderr.

    On a terminal the stage at work has a spinner; elsewhere each stage is a plain line at its start and one at its
    end. ``quiet`` prints nothing.

        stages = Stages()
        with stages.stage("image") as stage:
            stage.say("debian, cached")
    """

    def __init__(self, *, quiet: bool | None = None, console: Console | None = None) -> None:
        context = click.get_current_context(silent=True)
        found = context.find_object(Context) if context else None
        self.quiet = (found is not None and found.verbosity < 0) if quiet is None else quiet
        self._console = console or _console(stderr=True)
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Run a stage; an exception marks it as failed and goes on."""
        stage = Stage(name)
        began = time.monotonic()
        spinner = self._begin(stage)
        try:
            yield stage
        except BaseException:
            self._end(stage, "failed", began, spinner)
            raise
        self._end(stage, "done", began, spinner)

    def note(self, text: str) -> None:
        """Print a line between stages."""
        if not self.quiet:
            self._console.print(escape(text))

    def _begin(self, stage: Stage) -> Status | None:
        if self.quiet:
            return None
        if not self._console.is_terminal:
            self._console.print(f"{stage.name:<12} …")
            return None
        spinner = self._console.status(stage.name)
        spinner.start()
        stage._show = lambda text: spinner.update(f"{stage.name:<12} {escape(text)}")
        return spinner

    def _end(self, stage: Stage, word: str, began: float, spinner: Status | None) -> None:
        seconds = time.monotonic() - began
        self.seconds[stage.name] = seconds
        if spinner is not None:
            spinner.stop()
        if not self.quiet:
            color = "green" if word == "done" else "red"
            line = f"{stage.name:<12} [{color}]{word:<6}[/] {format_duration(seconds):>9}  {escape(stage.detail)}"
            self._console.print(line.rstrip())
