# SPDX-License-Identifier: MIT
"""Show and change the hosts that are paired with a donor of this machine: subcommands of ``ghostbox memserver``."""

from __future__ import annotations

from datetime import UTC, datetime

import click
from rich.console import Group, RenderableType
from rich.text import Text

from ghostbox.cli.context import Context
from ghostbox.cli.key_options import memserver_name
from ghostbox.cli.options import confirm, yes_option
from ghostbox.cli.output import emit, output_options
from ghostbox.cli.roles import client, client_table, role
from ghostbox.cli.token import owner_of
from ghostbox.donors.models import ClientFields
from ghostbox.donors.request_models import PairingRequestFields
from ghostbox.memserver import owner
from ghostbox.terminal import Table
from ghostbox.units import format_bytes, format_duration

_HOST = click.argument("host")


@click.command(
    epilog="""\b
Examples:
  ghostbox memserver clients
  ghostbox memserver clients --json

`state`: an active host may lease; a suspended one is served nothing until it is resumed; a revoked one is out for good.
A pending one asks to be paired (ghostbox memserver approve, or deny); a denied one was refused within the last week.
`memory`, `leases` and `connections` are what it holds, of what it may have by its role; a limit with a star is its own
(ghostbox memserver client set).
"""
)
@memserver_name
@output_options
@click.pass_obj
def clients(context: Context, /, output: str) -> None:
    """List the hosts that are paired with this donor, and those that ask to be."""
    door = owner_of(context)
    found, asking = door.clients(), [each for each in door.requests() if each.state != "approved"]
    emit([*found, *asking], output, lambda: Group(*_tables(found, asking)))


@click.command(
    epilog="""\b
Examples:
  ghostbox memserver suspend tower           by its name, or its id of `memserver clients`
"""
)
@memserver_name
@_HOST
@output_options
@click.pass_obj
def suspend(context: Context, /, host: str, output: str) -> None:
    """Serve a host nothing for a while. Its memory here is kept."""
    door = owner_of(context)
    changed = door.suspend(owner.meant(door.clients(), host).id)
    emit(changed, output, lambda: _said(changed, "its connections are closed, its memory here is kept"))


@click.command(
    epilog="""\b
Examples:
  ghostbox memserver resume tower
"""
)
@memserver_name
@_HOST
@output_options
@click.pass_obj
def resume(context: Context, /, host: str, output: str) -> None:
    """Serve a host again that was suspended."""
    door = owner_of(context)
    changed = door.resume(owner.meant(door.clients(), host).id)
    emit(changed, output, lambda: _said(changed, "it is served again"))


@click.command(
    epilog="""\b
Examples:
  ghostbox memserver revoke tower            asks first
  ghostbox memserver revoke tower --yes

The host's leases end at once: what its VMs have in this memory is lost. To get the memory back without loss, let the
host move its pages away first (ghostbox memserver drain), or suspend the host.
"""
)
@memserver_name
@_HOST
@yes_option
@output_options
@click.pass_obj
def revoke(context: Context, /, host: str, yes: bool, output: str) -> None:
    """End a host's pairing for good, and its leases at once."""
    door = owner_of(context)
    found = owner.meant(door.clients(), host)
    lost = f"{found.leases} leases ({format_bytes(found.leased_bytes)}) end, and what its VMs have in them is lost"
    confirm(f"revoke {found.host}? {lost}" if found.leases else f"revoke {found.host}?", yes=yes)
    changed = door.revoke(found.id)
    emit(changed, output, lambda: _said(changed, lost if found.leases else "it held no lease"))


COMMANDS: tuple[click.Command, ...] = (clients, client, suspend, resume, revoke, role)


def _said(client: ClientFields, what: str) -> RenderableType:
    return Text(f"{client.host} ({client.id}) is {client.state}: {what}")


def _tables(found: list[ClientFields], asking: list[PairingRequestFields]) -> list[RenderableType]:
    return [client_table(found), "", _asking_table(asking)] if asking else [client_table(found)]


def _asking_table(found: list[PairingRequestFields]) -> RenderableType:
    table = Table("host", "id", "state", "code", "asked", "address", box=None)
    now = datetime.now(UTC)
    for each in found:
        ago = format_duration(max(0.0, (now - each.asked_at).total_seconds()))
        table.add_row(each.host, each.id, each.state, each.code, f"{ago} ago", each.address or "")
    return table
