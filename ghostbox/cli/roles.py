# SPDX-License-Identifier: MIT
"""Show and change what hosts may have of a donor of this machine (``ghostbox memserver role``, ``client``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from rich.console import Group, RenderableType
from rich.text import Text

from ghostbox.cli.context import Context
from ghostbox.cli.key_options import memserver_name
from ghostbox.cli.options import BYTES
from ghostbox.cli.output import Stages, emit, output_options
from ghostbox.cli.token import owner_of, when
from ghostbox.donors.models import LEAST_BANDWIDTH, ClientFields, RoleFields
from ghostbox.errors import UsageError
from ghostbox.memserver import owner
from ghostbox.memserver.limits import said as limits_in_words
from ghostbox.terminal import Table
from ghostbox.units import PAGE_BYTES, format_bytes

F = TypeVar("F", bound=Callable[..., Any])

_WORDS = ("none", "default")


class _Limit(click.ParamType[int | str]):
    """Is a limit: a size or a number of at least ``least``, or one of `_WORDS`."""

    def __init__(self, of: click.ParamType[int], least: int) -> None:
        self.name = of.name
        self._of = of
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Parse a limit."""
        if value in _WORDS or isinstance(value, int):
            return value  # type: ignore[no-any-return]  # click gives what this has returned once more
        number = self._of.convert(value, param, ctx)
        if number < self._least:
            least = format_bytes(self._least) if self._of is BYTES else str(self._least)
            self.fail(f"{value} is less than {least}, the least limit; 'none' is no limit", param, ctx)
        return number


# By the name of the option: the name in the API, and how it is given.
_LIMITS: Mapping[str, tuple[str, _Limit, str]] = {
    "memory": ("memory_bytes", _Limit(BYTES, PAGE_BYTES), "Most memory that a host may lease and fill (8G)."),
    "leases": ("leases", _Limit(click.INT, 0), "Most leases of a host."),
    "connections": ("connections", _Limit(click.INT, 1), "Most NBD connections of a host (a VM has 3, at times 6)."),
    "bandwidth": ("bytes_per_s", _Limit(BYTES, LEAST_BANDWIDTH), "Most payload of a host a second (100M)."),
}


def _limit_options(function: F) -> F:
    """Give a command an option for each limit; the value is None if it is not given."""
    for option, (_, kind, text) in reversed(list(_LIMITS.items())):
        shown = "SIZE|none|default" if kind.name == BYTES.name else "N|none|default"
        function = click.option(f"--{option}", type=kind, metavar=shown, help=text)(function)
    return function


def _changes(given: Mapping[str, int | str | None]) -> owner.Changes:
    """Return what is to change, by its name in the API; null is no limit there."""
    named = {_LIMITS[option][0]: value for option, value in given.items() if value is not None}
    return {name: None if value == "none" else value for name, value in named.items()}


@click.group(
    epilog="""\b
Examples:
  ghostbox memserver role list
  ghostbox memserver role set guest --memory 4G
  ghostbox memserver role set lab --memory 16G --bandwidth 200M
  ghostbox memserver role delete lab
"""
)
def role() -> None:
    """Say what hosts may have, by their roles."""


@role.command(
    "list",
    epilog="""\b
Examples:
  ghostbox memserver role list
  ghostbox memserver role list --json

A limit with a star was set by the owner.
""",
)
@memserver_name
@output_options
@click.pass_obj
def list_roles(context: Context, /, output: str) -> None:
    """List the roles with their limits."""
    found = owner_of(context).roles()
    emit(found, output, lambda: _role_table(found))


@role.command(
    "set",
    epilog="""\b
Examples:
  ghostbox memserver role set guest --memory 4G --leases 1
  ghostbox memserver role set guest --bandwidth none        no limit
  ghostbox memserver role set guest --memory default        a quarter of what is lent, as built in
  ghostbox memserver role set lab --memory 16G              a role of your own; what is not named has no limit

Hosts that have the role follow at once, also with what they have open. A limit below what a host holds takes nothing
away: it gets no more.
""",
)
@memserver_name
@click.argument("role_name", metavar="ROLE")
@_limit_options
@output_options
@click.pass_obj
def set_role(context: Context, /, role_name: str, output: str, **limits: int | str | None) -> None:
    """Change limits of a role, or make it."""
    changed = owner_of(context).set_role(role_name, _changes(limits))
    emit(
        changed, output, lambda: Text(f"role {changed.name}, {changed.hosts} hosts: {limits_in_words(changed.limits)}")
    )
    _say_notes(changed.notes)


@role.command(
    "delete",
    epilog="""\b
Examples:
  ghostbox memserver role delete lab         refused while a host has it
""",
)
@memserver_name
@click.argument("role_name", metavar="ROLE")
@output_options
@click.pass_obj
def delete_role(context: Context, /, role_name: str, output: str) -> None:
    """Remove a role that nobody has."""
    owner_of(context).delete_role(role_name)
    emit({"name": role_name, "deleted": True}, output, lambda: Text(f"role {role_name} is deleted"))


@click.group(
    epilog="""\b
Examples:
  ghostbox memserver client set tower --role guest
  ghostbox memserver client set tower --memory 8G
"""
)
def client() -> None:
    """Say what one host may have."""


@client.command(
    "set",
    epilog="""\b
Examples:
  ghostbox memserver client set tower --role guest           by its name, or its id of `memserver clients`
  ghostbox memserver client set tower --memory 8G --bandwidth 200M
  ghostbox memserver client set tower --memory none          no limit, whatever its role says
  ghostbox memserver client set tower --memory default       as its role says

It holds at once, also for what the host has open. A limit below what the host holds takes nothing away: leases and
pages that are there stay, and it gets no more.
""",
)
@memserver_name
@click.argument("host")
@click.option("--role", metavar="ROLE", help="Its role from now on.")
@_limit_options
@output_options
@click.pass_obj
def set_client(context: Context, /, host: str, role: str | None, output: str, **limits: int | str | None) -> None:
    """Give a host another role, or limits of its own."""
    changes = _changes(limits)
    if role is None and not changes:
        raise UsageError(
            f"nothing is to change for '{host}'",
            hint=f"give one of --role, --{', --'.join(_LIMITS)}; --help has examples",
        )
    door = owner_of(context)
    changed = door.set_client(owner.meant(door.clients(), host).id, role, changes)
    emit(
        changed,
        output,
        lambda: Text(f"{changed.host} ({changed.id}), role {changed.role}: {limits_in_words(changed.limits)}"),
    )
    _say_notes(changed.notes)


def client_table(found: list[ClientFields]) -> RenderableType:
    """Return what people see of clients: who they are, and what each holds of what it may have."""
    table = Table("host", "id", "state", "role", "memory", "leases", "connections", "bandwidth", "seen", box=None)
    for each in found:
        limits, own, use = each.limits, set(each.own), each.use
        memory = _of(format_bytes(each.leased_bytes), _size(limits.memory_bytes), "memory_bytes" in own)
        n_leases = _of(str(each.leases), _number(limits.leases), "leases" in own)
        n_open = _of(str(use.connections if use else 0), _number(limits.connections), "connections" in own)
        rate = _of("", _rate(limits.bytes_per_s), "bytes_per_s" in own)
        seen = when(each.seen_at) + (f" {each.address}" if each.address else "")
        table.add_row(each.host, each.id, each.state, each.role, memory, n_leases, n_open, rate, seen)
    stopped = [Text(line) for each in found if (line := _stopped(each))]
    return Group(table, *stopped) if stopped else table


def _stopped(each: ClientFields) -> str:
    """Return in words how often the limits have stopped a client."""
    if each.use is None:
        return ""
    counts = {
        "writes over its memory": each.use.writes_refused,
        "connections": each.use.connections_refused,
    }
    found = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    waits = f"{each.use.delays} requests waited for its bandwidth" if each.use.delays else ""
    parts = "; ".join(filter(None, (f"refused: {found}" if found else "", waits)))
    return f"{each.host}: {parts}" if parts else ""


def _role_table(found: list[RoleFields]) -> RenderableType:
    table = Table("role", "memory", "leases", "connections", "bandwidth", "hosts", box=None)
    for each in found:
        limits, own = each.limits, set(each.own)
        table.add_row(
            each.name,
            _of("", _size(limits.memory_bytes), "memory_bytes" in own),
            _of("", _number(limits.leases), "leases" in own),
            _of("", _number(limits.connections), "connections" in own),
            _of("", _rate(limits.bytes_per_s), "bytes_per_s" in own),
            str(each.hosts),
        )
    return table


def _of(held: str, limit: str, is_own: bool) -> str:
    """Return ``2 GiB of 8 GiB*``; a star is for a limit that was set."""
    most = limit or ("no limit" if is_own or not held else "")
    most += "*" if is_own else ""
    return " of ".join(filter(None, (held, most)))


def _size(limit: int | None) -> str:
    return "" if limit is None else format_bytes(limit)


def _number(limit: int | None) -> str:
    return "" if limit is None else str(limit)


def _rate(limit: int | None) -> str:
    return "" if limit is None else f"{format_bytes(limit)}/s"


def _say_notes(notes: list[str]) -> None:
    for note in notes:
        Stages().note(f"note: {note}")
