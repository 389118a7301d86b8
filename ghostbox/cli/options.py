# SPDX-License-Identifier: MIT
"""Define options and arguments that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ghostbox import config, units
from ghostbox.cli.context import Context
from ghostbox.config import kinds
from ghostbox.errors import GhostboxError, UsageError

F = TypeVar("F", bound=Callable[..., Any])


class Bytes(click.ParamType[int]):
    """Is a size; the command receives bytes (``4GiB`` → 4294967296)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a size."""
        try:
            hint = units.missing_unit(value)
            if hint is not None:
                raise UsageError(f"{value} bytes are too few", hint=hint)
            return units.parse_bytes(value)
        except GhostboxError as err:
            self.fail(_sentence(err), param, ctx)


class Seconds(click.ParamType[float]):
    """Is a duration; the command receives seconds (``5m`` → 300.0)."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse a duration."""
        try:
            return units.parse_duration(value)
        except GhostboxError as err:
            self.fail(_sentence(err), param, ctx)


class Moment(click.ParamType[datetime]):
    """Is a moment in the past: a time, or how long ago it was (``2h``); the command receives a time with its zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Parse a time, in this machine's zone if it names no zone, or a duration before now."""
        try:
            return datetime.now(UTC) - timedelta(seconds=units.parse_duration(value))
        except (GhostboxError, OverflowError):
            pass
        try:
            return datetime.fromisoformat(value).astimezone()
        except (ValueError, OverflowError):
            self.fail(f"'{value}' is neither a time (2026-11-29T10:00) nor a duration before now (2h)", param, ctx)


class VmName(click.ParamType[str]):
    """Is the name of a VM."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check a name."""
        try:
            return str(kinds.VM_NAME.parse(value))
        except GhostboxError as err:
            self.fail(_sentence(err), param, ctx)


BYTES = Bytes()
SECONDS = Seconds()
MOMENT = Moment()
VM_NAME = VmName()


class WordsCommand(click.Command):
    """Is a command whose ``words`` are a name and another command's words, which stay as they are.

    The command's own options stand before the first word. A ``--`` before that word, which click removes, is put back
    (`split_words`).
    """

    allow_interspersed_args = False

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the options, and keep the rest."""
        given = list(args)
        rest = super().parse_args(ctx, args)
        words = tuple(ctx.params.get("words") or ())
        before = given[: len(given) - len(words)]
        if before and before[-1] == "--":
            ctx.params["words"] = ("--", *words)
        return rest


def split_words(words: tuple[str, ...]) -> tuple[str | None, tuple[str, ...]]:
    """Split the words into the VM's name and the command; a ``--`` stands in the name's place or behind it."""
    if not words:
        return None, ()
    if words[0] == "--":
        return None, words[1:]
    return words[0], words[2:] if words[1:2] == ("--",) else words[1:]


def name_argument(function: F) -> F:
    """Give a command the argument ``[NAME]``; it receives ``name: str | None`` (None: see `chosen`)."""
    return click.argument("name", required=False, type=VM_NAME)(function)


def yes_option(function: F) -> F:
    """Give a command ``-y/--yes``; it receives ``yes: bool``."""
    return click.option("-y", "--yes", is_flag=True, help="Do not ask.")(function)


def timeout_option(default: str, text: str) -> Callable[[F], F]:
    """Give a command ``--timeout DURATION``; it receives ``timeout: float`` in seconds."""
    return click.option("--timeout", type=SECONDS, default=default, show_default=True, help=text)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before an action that cannot be undone.

    Raises:
        UsageError: there is no terminal to ask on.
        click.Abort: the answer was no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{question} cannot be asked without a terminal", hint="add --yes")
    click.confirm(question, abort=True, err=True)


def add_global_options(command: click.Command) -> click.Command:
    """Let ``-c``, ``-v``, ``-q``, ``--no-color`` also stand behind a command's name; a second call adds nothing."""
    if isinstance(command, click.Group):
        for nested in command.commands.values():
            add_global_options(nested)
    taken = {word for parameter in command.params for word in (*parameter.opts, *parameter.secondary_opts)}
    for option in global_options(hidden=True):
        if not taken.intersection(option.opts):
            command.params.append(option)
    return command


def global_options(*, hidden: bool) -> list[click.Option]:
    """Return the options that every command takes."""
    return [
        click.Option(
            ["-c", "--config"],
            type=click.Path(dir_okay=False),
            help="Configuration file instead of ./ghostbox.yaml.",
            callback=_set_config,
            expose_value=False,
            hidden=hidden,
        ),
        click.Option(
            ["-v", "--verbose"],
            count=True,
            help="Log more; -vv is for debugging, with tracebacks.",
            callback=_set_verbose,
            expose_value=False,
            hidden=hidden,
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            help="Show only errors.",
            callback=_set_quiet,
            expose_value=False,
            hidden=hidden,
        ),
        click.Option(
            ["--no-color"],
            is_flag=True,
            help="Use no colors (NO_COLOR does the same).",
            callback=_set_no_color,
            expose_value=False,
            hidden=hidden,
        ),
    ]


def _context(ctx: click.Context) -> Context:
    return ctx.ensure_object(Context)


def _set_config(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    config.validate_file(Path(value))  # checked also for a command that needs no configuration
    _context(ctx).config_file = Path(value)
    from_environment = ctx.get_parameter_source("config") is ParameterSource.ENVIRONMENT
    _context(ctx).config_file_from_environment = from_environment


def _set_verbose(ctx: click.Context, _: click.Parameter, value: int) -> None:
    if value:
        _context(ctx).verbosity = max(value, _context(ctx).verbosity)
        _context(ctx).set_up_log()


def _set_quiet(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        _context(ctx).verbosity = -1
        _context(ctx).set_up_log()


def _set_no_color(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        _context(ctx).color = False
        _context(ctx).set_up_log()


def _sentence(err: GhostboxError) -> str:
    return err.message if err.hint is None else f"{err.message}; {err.hint}"
