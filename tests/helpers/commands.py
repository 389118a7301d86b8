# SPDX-License-Identifier: MIT
"""Walk the tree of commands, for the style tests and the README test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import click

from ghostbox.cli import main
from ghostbox.errors import GhostboxError


@dataclass(frozen=True)
class Found:
    """Is a command with the words that call it (``("image", "build")``)."""

    words: tuple[str, ...]
    command: click.Command

    def options(self) -> list[click.Option]:
        """Return the command's visible options."""
        return [found for found in self.command.params if isinstance(found, click.Option) and not found.hidden]


def walk() -> Iterator[Found]:
    """Yield every command and subcommand that can be loaded (another test finds those that cannot)."""
    context = click.Context(main.cli)
    yield Found((), main.cli)
    for name in main.commands():
        with contextlib.suppress(GhostboxError):
            command = main.cli.get_command(context, name)
            assert command is not None
            yield from _below((name,), command)


def _below(words: tuple[str, ...], command: click.Command) -> Iterator[Found]:
    yield Found(words, command)
    if isinstance(command, click.Group):
        for name, nested in command.commands.items():
            yield from _below((*words, name), nested)


def find(words: list[str]) -> Found | None:
    """Return the command that ``words`` call (aliases too), or None; further words are its arguments."""
    by_words = {found.words: found for found in walk()}
    if words:
        words = [main.ALIASES.get(words[0], words[0]), *words[1:]]
    for length in range(min(len(words), 3), 0, -1):
        if tuple(words[:length]) in by_words:
            return by_words[tuple(words[:length])]
    return None
