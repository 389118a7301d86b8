# SPDX-License-Identifier: MIT
"""Make and list pairing tokens of a donor of this machine (``ghostbox token``)."""

from __future__ import annotations

from datetime import datetime

import click
from rich.console import RenderableType
from rich.text import Text

from ghostbox.cli.context import Context
from ghostbox.cli.key_options import memserver_name
from ghostbox.cli.options import BYTES, SECONDS
from ghostbox.cli.output import emit, output_options
from ghostbox.donors.models import TokenFields
from ghostbox.memserver import drain, owner
from ghostbox.memserver.clients import USER
from ghostbox.memserver.opening import default_name
from ghostbox.memserver.owner import Owner
from ghostbox.terminal import Table
from ghostbox.units import format_bytes


@click.group(
    epilog="""\b
Examples:
  ghostbox token create                      print the line that pairs a host, for ten minutes
  ghostbox token list
  ghostbox token revoke 0123456789abcdef
"""
)
def token() -> None:
    """Pair hosts with a donor of this machine."""


@token.command(
    epilog="""\b
Examples:
  ghostbox token create
  ghostbox token create --max-memory 8G      the host may lease 8 GiB and no more
  ghostbox token create --expires 1h --role guest

It prints one line to run on the host: `ghostbox donor add` with the token, which pairs one host, once. Until then it is
as good as a password. Only the token expires, not the pairing.
"""
)
@memserver_name
@click.option("--expires", type=SECONDS, default="10m", show_default=True, help="How long the token can be used.")
@click.option("--max-memory", type=BYTES, metavar="SIZE", help="Most memory that the host may lease (no limit).")
@click.option("--role", default=USER, show_default=True, help="Role that the host gets.")
@output_options
@click.pass_obj
def create(context: Context, /, expires: float, max_memory: int | None, role: str, output: str) -> None:
    """Make a token and print the line that pairs a host by it."""
    made = owner_of(context).create_token(expires, max_memory, role)
    emit(made, output, lambda: Text(f"ghostbox donor add {made.token}", no_wrap=True, overflow="ignore"))


@token.command(
    "list",
    epilog="""\b
Examples:
  ghostbox token list
  ghostbox token list --json
""",
)
@memserver_name
@output_options
@click.pass_obj
def list_(context: Context, /, output: str) -> None:
    """List tokens, without their secrets."""
    found = owner_of(context).tokens()
    emit(found, output, lambda: _table(found))


@token.command(
    epilog="""\b
Examples:
  ghostbox token revoke 0123456789abcdef     a host that it has paired stays paired
"""
)
@memserver_name
@click.argument("number", metavar="ID")
@output_options
@click.pass_obj
def revoke(context: Context, /, number: str, output: str) -> None:
    """Make a token useless."""
    owner_of(context).revoke_token(number)
    emit({"id": number, "revoked": True}, output, lambda: Text(f"token {number} is revoked"))


def owner_of(context: Context) -> Owner:
    """Return the owner's way to the memserver that the options of a command name.

    Raises:
        NotRunning: no such memserver runs.
    """
    name = context.config().memserver.name or default_name()
    return owner.needed(drain.find(name, context.paths).owner, name, context.paths)


def _table(tokens: list[TokenFields]) -> RenderableType:
    table = Table("id", "state", "expires", "role", "max memory", "client", box=None)
    for each in tokens:
        limit = "" if each.max_memory_bytes is None else format_bytes(each.max_memory_bytes)
        table.add_row(each.id, each.state, when(each.expires_at), each.role, limit, each.used_by or "")
    return table


def when(moment: datetime) -> str:
    """Return a time as people read it, in this machine's zone."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M")
