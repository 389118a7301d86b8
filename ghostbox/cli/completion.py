# SPDX-License-Identifier: MIT
"""What the shell offers for names: VMs, images, donors, keys. A mistake here must never disturb who types."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import click
from click.shell_completion import CompletionItem

from ghostbox import config, known_donors, paths
from ghostbox.config import definition
from ghostbox.errors import GhostboxError

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _offering(find: Callable[[], Iterable[str]]) -> Complete:
    """Make a completion of what ``find`` returns; what cannot be read offers nothing."""

    @functools.wraps(find)
    def complete(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            return [CompletionItem(word) for word in find() if word.startswith(incomplete)]
        except (GhostboxError, OSError):
            return []

    return complete


@_offering
def vms() -> Iterable[str]:
    """Return the names of all VMs."""
    return sorted(file.parent.name for file in (paths.find().state / "vms").glob("*/vm.json"))


@_offering
def images() -> Iterable[str]:
    """Return the names of all images, and of the one that can be built."""
    return sorted({"debian", *(file.stem for file in paths.find().images.glob("*.json"))})


@_offering
def donors() -> Iterable[str]:
    """Return the donors of the configuration, and those that this host knows."""
    known = known_donors.load(paths.find())
    return dict.fromkeys([*config.load().pool.donors, *(each.address for each in known)])


@_offering
def settings() -> Iterable[str]:
    """Return what `set` takes: names of VMs, and keys with an equals sign."""
    names = sorted(file.parent.name for file in (paths.find().state / "vms").glob("*/vm.json"))
    return [*names, *(f"{key}=" for key in definition.vm_keys())]


@_offering
def keys() -> Iterable[str]:
    """Return the keys of a definition."""
    return list(definition.vm_keys())


_ARGUMENTS = {"name": vms, "address": donors, "addresses": donors, "names": donors, "words": vms}
_OPTIONS = {"vm": vms, "image": images, "donors": donors, "removed": keys}


def attach(command: click.Command, words: tuple[str, ...]) -> None:
    """Have a command, and those below it, offer what their arguments and options may name; ``words`` call it."""
    own = {("image", "delete"): {"name": images}, ("set",): {"words": settings}}.get(words, {})
    for parameter in command.params:
        table = _ARGUMENTS if isinstance(parameter, click.Argument) else _OPTIONS
        found = {**table, **own}.get(parameter.name or "")
        if found is not None and not getattr(parameter, "is_flag", False):
            parameter._custom_shell_complete = found  # click's constructors take it, and nothing else does
    if isinstance(command, click.Group):
        for name, nested in command.commands.items():
            attach(nested, (*words, name))
