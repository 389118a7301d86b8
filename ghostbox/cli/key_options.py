# SPDX-License-Identifier: MIT
"""Make options that set a key of the configuration for one run, each from the declaration of its key."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from ghostbox.cli.context import Context
from ghostbox.config import Key, kinds, settable

F = TypeVar("F", bound=Callable[..., Any])


class KeyOption(click.Option):
    """Is the flag of a key, as `config.schema` declares it. Its value goes to `Context.flags`, not to the command.

    The value stays as it was written, so that the key's kind parses it in the same way as a file's.
    """

    def __init__(self, names: Sequence[str], **attributes: Any) -> None:
        """Make the flag of a key; ``names``, click's declarations, has only the key's name.

        Raises:
            LookupError: there is no such key, or the key has no flag.
        """
        (name,) = names
        key = settable().get(name)
        if key is None or key.flag is None:
            raise LookupError(f"the configuration has no key {name} with a flag")
        self.key = key
        own = {"help": key.flag_help, "metavar": key.flag.value, "expose_value": False, **_form(key)}
        super().__init__([*key.spellings, key.leaf], callback=_note, **{**own, **attributes})


def key_option(name: str, **attributes: Any) -> Callable[[F], F]:
    """Give a command the flag of one key; ``attributes`` replace attributes of click.Option."""
    return click.option(name, cls=KeyOption, **attributes)


def key_options(*names: str) -> Callable[[F], F]:
    """Give a command the flags of these keys, in this order."""

    def give(function: F) -> F:
        for name in reversed(names):
            function = key_option(name)(function)
        return function

    return give


memserver_name = key_option(
    "memserver.name", help="Name of the memserver, if several run here or it is not the machine's name."
)
"""Gives a command the flag that says which memserver of this machine it is for."""


def _form(key: Key) -> dict[str, Any]:
    """Return the attributes of click.Option that follow from the key's kind."""
    match key.kind:
        case kinds.Boolean():
            return {"is_flag": True, "default": None}
        case kinds.Many():
            return {"multiple": True}
        case kinds.Integer():
            return {"type": int}
        case kinds.Text(choices=(_, *_) as choices):
            return {"type": click.Choice(choices)}
    return {}


def _note(ctx: click.Context, option: click.Parameter, value: Any) -> Any:
    """Note a value from the command line or the environment; a default belongs to the command itself."""
    assert isinstance(option, KeyOption)
    assert option.name is not None
    source = ctx.get_parameter_source(option.name)
    if value not in (None, ()) and source in (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT):
        context = ctx.ensure_object(Context)
        context.flags[option.key.name] = value
        if source is ParameterSource.ENVIRONMENT:
            context.variables[option.key.name] = f"{ctx.auto_envvar_prefix}_{option.name.upper()}"
    return value
