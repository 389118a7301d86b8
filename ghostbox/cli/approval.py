# SPDX-License-Identifier: MIT
"""Let in, or refuse, hosts that ask a donor of this machine to be paired: subcommands of ``ghostbox memserver``."""

from __future__ import annotations

import click
from rich.text import Text

from ghostbox.cli.context import Context
from ghostbox.cli.key_options import memserver_name
from ghostbox.cli.options import BYTES, confirm, yes_option
from ghostbox.cli.output import emit, output_options
from ghostbox.cli.token import owner_of
from ghostbox.donors import code as codes
from ghostbox.errors import Refused
from ghostbox.memserver import owner
from ghostbox.memserver.clients import USER
from ghostbox.units import format_bytes

_HOST = click.argument("host")


@click.command(
    epilog="""\b
Examples:
  ghostbox memserver approve tower                     asks whether both screens show the same words
  ghostbox memserver approve tower --max-memory 8G     the host may lease 8 GiB and no more
  ghostbox memserver approve tower --code "zoo lamp river able"     the words that the host's screen shows

HOST is the host's name, or the id of its request in `memserver clients`. Other words on the host's screen mean that
somebody is between the two: deny the host then.
"""
)
@memserver_name
@_HOST
@click.option("--role", default=USER, show_default=True, help="Role that the host gets.")
@click.option("--max-memory", type=BYTES, metavar="SIZE", help="Most memory that the host may lease (no limit).")
@click.option("--code", metavar="WORDS", help="The words that the host shows: they are compared, and nothing is asked.")
@yes_option
@output_options
@click.pass_obj
def approve(
    context: Context, /, host: str, role: str, max_memory: int | None, code: str | None, yes: bool, output: str
) -> None:
    """Pair with a host that asks for it (ghostbox donor add)."""
    door = owner_of(context)
    found = owner.asking(door.requests(), host)
    if code is None:
        confirm(f"do both screens show: {found.code}?", yes=yes)
    elif not codes.is_same(code, found.code):
        raise Refused(
            f"the words do not match: the request of {found.host} has: {found.code}",
            why="somebody may be between this donor and the host",
            hint=f"if the host's screen shows other words: ghostbox memserver deny {found.id}",
        )
    made = door.approve(found.id, max_memory, role)
    limit = "" if max_memory is None else f", at most {format_bytes(max_memory)}"
    text = f"{made.host} ({made.client}) is paired: {made.code}; role {role}{limit}"
    emit(made, output, lambda: Text(text))


@click.command(
    epilog="""\b
Examples:
  ghostbox memserver deny tower              by its name, or the id of its request in `memserver clients`
"""
)
@memserver_name
@_HOST
@output_options
@click.pass_obj
def deny(context: Context, /, host: str, output: str) -> None:
    """Refuse a host that asks to be paired. It may ask again."""
    door = owner_of(context)
    made = door.deny(owner.asking(door.requests(), host).id)
    emit(made, output, lambda: Text(f"{made.host} is denied: {made.code}"))


COMMANDS: tuple[click.Command, ...] = (approve, deny)
