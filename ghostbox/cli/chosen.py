# SPDX-License-Identifier: MIT
"""Choose the VM of a command whose name was left out. Every command that takes a VM's name asks here."""

from __future__ import annotations

from ghostbox import session
from ghostbox.cli.context import Context
from ghostbox.config import kinds
from ghostbox.errors import GhostboxError, NotFound, UsageError


def chosen(context: Context, name: str | None) -> str:
    """Return the VM's name: the given name, the configuration's, or that of the only VM.

    Raises:
        UsageError: ``name`` cannot be a VM's name, or there are several VMs and nothing says which one.
        NotFound: there is no VM at all.
    """
    found = chosen_or_none(context, name)
    if found is None:
        raise NotFound("there is no VM", hint="make one: ghostbox up")
    return found


def chosen_or_none(context: Context, name: str | None) -> str | None:
    """Return the VM's name as `chosen` does; None where no VM is named and none exists.

    Raises:
        UsageError: see `chosen`.
    """
    if name is not None:
        return _checked(name)
    config, there = context.config(), session.names(context.paths)
    if config.vm.name in there or config.origin("vm.name") != "default":
        return config.vm.name
    if len(there) > 1:
        raise UsageError(
            f"which VM? There are {len(there)}: {', '.join(there)}",
            hint="name one of them, or set vm.name in ghostbox.yaml",
        )
    return there[0] if there else None


def chosen_for_up(context: Context, name: str | None) -> str:
    """Return the name of the VM to start, as `chosen` does; if no VM exists, the name in the configuration.

    Raises:
        UsageError: see `chosen`.
    """
    return chosen_or_none(context, name) or context.config().vm.name


def likely(context: Context) -> str:
    """Return the VM for a command that can do without: the only VM, or the configuration's."""
    there = session.names(context.paths)
    return there[0] if len(there) == 1 else context.config().vm.name


def _checked(name: str) -> str:
    """Return a name that may become part of a path."""
    try:
        return str(kinds.VM_NAME.parse(name))
    except GhostboxError as err:
        raise UsageError(f"NAME: {err.message}") from err
