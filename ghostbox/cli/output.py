# SPDX-License-Identifier: MIT
"""What commands print: results on stdout as table, JSON or YAML; progress on stderr.

Strings are shown as they are, wherever they come from; what has a colour is a ``Text`` (`ghostbox.terminal`).
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
import functools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import click
import yaml
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from ghostbox.cli.context import Context
from ghostbox.terminal import PlainConsole, printable, writes_unicode
from ghostbox.units import format_duration

FORMATS = ("table", "json", "yaml")
_NEWS_INTERVAL_S = 15.0

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


def echo(text: str, *, nl: bool = True) -> None:
    """Print text on stdout; control characters in it are shown and not sent."""
    click.echo(printable(text), nl=nl)


def emit(data: object, fmt: str, table: Callable[[], RenderableType]) -> None:
    """Print a result on stdout.

    Args:
        data: dataclasses, mappings, lists, scalars; what JSON and YAML show.
        fmt: ``table``, ``json`` or ``yaml``.
        table: makes what people see; called only when it is wanted.
    """
    if fmt == "json":
        echo(json.dumps(plain(data), indent=2))
    elif fmt == "yaml":
        echo(yaml.safe_dump(plain(data), sort_keys=False), nl=False)
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
    return PlainConsole(
        stderr=stderr,
        no_color=True if found is not None and found.color is False else None,
        width=None if stream.isatty() else 200,
        soft_wrap=not stream.isatty(),
    )


class Stage:
    """One stage of work; ``detail`` is what the line says at its end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.detail = ""
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """Keep ``text`` as the detail; a terminal shows it at once."""
        self.detail = text

    @property
    def seconds(self) -> float:
        """How long it has been at work."""
        return time.monotonic() - self.began


class Stages:
    """Named stages of work with their elapsed time, on stderr.

    On a terminal the stage at work has a line with a spinner, the time it has taken so far and what it does now.
    Elsewhere each stage is a plain line at its start, one every ``news_s`` seconds, and one at its end. ``quiet``
    prints nothing.

        stages = Stages()
        with stages.stage("image") as stage:
            stage.say("debian, cached")
    """

    def __init__(
        self, *, quiet: bool | None = None, console: Console | None = None, news_s: float = _NEWS_INTERVAL_S
    ) -> None:
        context = click.get_current_context(silent=True)
        found = context.find_object(Context) if context else None
        self.quiet = (found is not None and found.verbosity < 0) if quiet is None else quiet
        self._console = console or _console(stderr=True)
        self._news_s = news_s
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Run a stage; an exception marks it as failed and goes on."""
        stage = Stage(name)
        try:
            with self._shown(stage):
                yield stage
        except BaseException:
            self._end(stage, Text("failed", "red"))
            raise
        self._end(stage, Text("done  ", "green"))

    def note(self, text: str) -> None:
        """Print a line between stages."""
        if not self.quiet:
            self._console.print(text, soft_wrap=True)  # a command in it can be copied whole

    @contextmanager
    def _shown(self, stage: Stage) -> Iterator[None]:
        """Show a stage while it is at work."""
        if self.quiet:
            yield
        elif self._console.is_terminal:
            with Live(_Working(stage, self._console), console=self._console, transient=True, refresh_per_second=8):
                yield
        else:
            self._console.print(f"{stage.name:<12} …")
            with _news(stage, self._console, self._news_s):
                yield

    def _end(self, stage: Stage, word: Text) -> None:
        self.seconds[stage.name] = seconds = stage.seconds
        if not self.quiet:
            tail = f" {format_duration(seconds):>9}  {stage.detail}".rstrip()
            self._console.print(Text.assemble(f"{stage.name:<12} ", word, tail))


class _Working:
    """The line of a stage at work: drawn anew several times a second, never longer than the terminal is wide."""

    def __init__(self, stage: Stage, console: Console) -> None:
        self._stage = stage
        self._spinner = Spinner("dots" if writes_unicode(console.file) else "line")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        stage = self._stage
        text = printable(f" {stage.name:<12} {stage.seconds:4.0f} s  {stage.detail}").replace("\n", " ")
        line = Text.assemble(self._spinner.render(console.get_time()), text)  # type: ignore[arg-type]
        line.truncate(options.max_width)
        yield line


@contextmanager
def _news(stage: Stage, console: Console, interval_s: float) -> Iterator[None]:
    """Print now and then how long a stage has been at work, and what it does: silence looks like a hang."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(interval_s):
            console.print(f"{stage.name:<12} …      {format_duration(stage.seconds):>9}  {stage.detail}".rstrip())

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
