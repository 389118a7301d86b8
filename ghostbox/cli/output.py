# SPDX-License-Identifier: MIT
"""Print what commands show: results on stdout as a table, JSON or YAML; progress on stderr.

Strings are shown as they are, wherever they come from; only a ``Text`` has colours (`ghostbox.terminal`).
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
from pydantic import BaseModel
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from ghostbox.cli.context import Context
from ghostbox.system.documents import Part
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


def echo(text: str, *, nl: bool = True, err: bool = False) -> None:
    """Print text on stdout, or with ``err`` on stderr; its control characters are shown in readable form."""
    click.echo(printable(text), nl=nl, err=err)


def emit(data: object, fmt: str, table: Callable[[], RenderableType]) -> None:
    """Print a result on stdout.

    Args:
        data: dataclasses, mappings, lists, scalars; JSON and YAML show this.
        fmt: ``table``, ``json`` or ``yaml``.
        table: makes what people see; called only for the format ``table``.
    """
    if fmt == "json":
        echo(json.dumps(plain(data), indent=2))
    elif fmt == "yaml":
        echo(yaml.safe_dump(plain(data), sort_keys=False), nl=False)
    else:
        stdout_console().print(table())


def plain(data: object) -> Any:
    """Return ``data`` as types of JSON and YAML: dataclasses and models become mappings, unknown types text.

    A dataclass's fields with ``secret`` in their metadata are left out.
    """
    if isinstance(data, BaseModel):
        return data.model_dump(mode="json", exclude_unset=True)
    if dataclasses.is_dataclass(data) and not isinstance(data, type):
        hidden = "further" if isinstance(data, Part) else None  # a newer version's, which mean nothing here
        shown = [each for each in dataclasses.fields(data) if not (each.name == hidden or each.metadata.get("secret"))]
        return {each.name: plain(getattr(data, each.name)) for each in shown}
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
    """Return a console for results; without a terminal it is wide enough that nothing is cut off."""
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
    """Is one stage of work; ``detail`` stands on the stage's last line."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.detail = ""
        self.began = time.monotonic()

    def say(self, text: str) -> None:
        """Keep ``text`` as the detail; a terminal shows it at once."""
        self.detail = text

    @property
    def seconds(self) -> float:
        """Return how long the stage has run."""
        return time.monotonic() - self.began


class Stages:
    """Shows named stages of work with their elapsed time, on stderr.

    On a terminal the running stage has a line with a spinner, its time so far and its detail. Elsewhere a stage has a
    plain line at its start, one every ``news_s`` seconds, and one at its end. ``quiet`` prints nothing.

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
        """Run a stage; an exception marks the stage as failed and is raised again."""
        stage = Stage(name)
        try:
            with self._shown(stage):
                yield stage
        except BaseException:
            self._end(stage, Text("failed", "red"))
            raise
        self._end(stage, Text("done  ", "green"))

    def note(self, text: str) -> None:
        """Print a line between two stages."""
        if not self.quiet:
            self._console.print(text, soft_wrap=True)  # soft wrap, so that a command in the text can be copied whole

    @contextmanager
    def _shown(self, stage: Stage) -> Iterator[None]:
        """Show a stage while it runs."""
        if self.quiet:
            yield
        elif self._console.is_terminal:
            with Live(_Working(stage, self._console), console=self._console, transient=True, refresh_per_second=8):
                yield
        else:
            self._console.print(f"{stage.name:<12} …")
            with _timed_lines(stage, self._console, self._news_s):
                yield

    def _end(self, stage: Stage, word: Text) -> None:
        self.seconds[stage.name] = seconds = stage.seconds
        if not self.quiet:
            tail = f" {format_duration(seconds):>9}  {stage.detail}".rstrip()
            self._console.print(Text.assemble(f"{stage.name:<12} ", word, tail))


class _Working:
    """Is the line of a running stage: drawn several times a second, never longer than the terminal is wide."""

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
def _timed_lines(stage: Stage, console: Console, interval_s: float) -> Iterator[None]:
    """Print at intervals how long a stage has run, and its detail: silence looks like a hang."""
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
