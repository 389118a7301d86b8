# SPDX-License-Identifier: MIT
"""``ghostbox donor``: look at donors and their leases."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.table import Table
from rich.text import Text

from ghostbox import donors
from ghostbox.cli.context import Context
from ghostbox.cli.options import confirm, yes_option
from ghostbox.cli.output import emit, output_options
from ghostbox.donor_client import DonorClient, DonorStatus, Lease
from ghostbox.donors import Survey
from ghostbox.errors import PoolDegraded, UsageError
from ghostbox.units import format_bytes, format_duration


@click.group(
    epilog="""\b
Examples:
  ghostbox donor list
  ghostbox donor leases tower
"""
)
def donor() -> None:
    """Look at donors and their leases."""


@donor.command(
    "list",
    epilog="""\b
Examples:
  ghostbox donor list                       the donors of the configuration
  ghostbox donor list tower 192.168.7.3:10810 -o json
""",
)
@click.argument("addresses", metavar="[ADDRESS]...", nargs=-1)
@output_options
@click.pass_obj
def list_donors(context: Context, /, addresses: tuple[str, ...], output: str) -> None:
    """Show what donors offer; exit code 6 if one does not answer."""
    wanted = addresses or context.config().pool.donors
    if not wanted:
        raise UsageError("no donor is given", hint="name donors, or set pool.donors in the configuration")
    found = donors.survey(wanted)
    rows = [
        {"address": item.address, "status": item.status, "error": item.error and item.error.message} for item in found
    ]
    emit(rows, output, lambda: _donor_table(found))
    silent = [item for item in found if item.error is not None]
    if silent:
        raise PoolDegraded(
            f"{len(silent)} of {len(found)} donors do not answer",
            why="\n".join(f"{item.error}: {item.error.why or ''}".rstrip(": ") for item in silent if item.error),
            hint=next((item.error.hint for item in silent if item.error), None),
        )


@donor.command(
    epilog="""\b
Examples:
  ghostbox donor info tower
  ghostbox donor info [fd00::7]:10810 --json
"""
)
@click.argument("address")
@output_options
def info(address: str, output: str) -> None:
    """Show all about one donor."""
    with DonorClient(address) as client:
        status = client.status()
    emit(status, output, lambda: _info_table(status))


@donor.command(
    epilog="""\b
Examples:
  ghostbox donor leases tower
"""
)
@click.argument("address")
@output_options
def leases(address: str, output: str) -> None:
    """Show the leases of one donor and who holds them."""
    with DonorClient(address) as client:
        found = client.leases()
    emit(found, output, lambda: _lease_table(found))


@donor.command(
    epilog="""\b
Examples:
  ghostbox donor release tower ana-vm1
  ghostbox donor release tower ana-vm1 --force -y      even if a VM still uses it
"""
)
@click.argument("address")
@click.argument("name")
@click.option("--force", is_flag=True, help="Release it even if connections are open; their VM loses its memory.")
@yes_option
def release(address: str, name: str, force: bool, yes: bool) -> None:
    """End a lease; what it holds is gone."""
    with DonorClient(address) as client:
        lease = client.lease(name)
        confirm(f"Release {format_bytes(lease.size_bytes)} held by {lease.holder}?", yes=yes)
        client.release_lease(name, force=force)


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="bold")
    for title in titles:
        table.add_column(title, justify="right" if title in {"size", "free", "resident", "leases", "idle"} else "left")
    return table


def _donor_table(found: Sequence[Survey]) -> Table:
    table = _table("address", "name", "state", "size", "free", "resident", "leases")
    for item in found:
        status = item.status
        if status is None:
            table.add_row(Text(item.address), "", Text("no answer", style="red"))
            continue
        sizes = [format_bytes(size) for size in (status.size_bytes, status.free_bytes, status.resident_bytes)]
        table.add_row(Text(item.address), Text(status.name), _state(status), *sizes, str(status.leases))
    return table


def _state(status: DonorStatus) -> Text:
    return Text("draining", style="yellow") if status.draining else Text("up", style="green")


def _info_table(status: DonorStatus) -> Table:
    table = Table(box=None, show_header=False)
    rows = {
        "name": status.name,
        "address": status.address,
        "state": "draining" if status.draining else "up",
        "version": status.version,
        "NBD port": str(status.nbd_port),
        "size": format_bytes(status.size_bytes),
        "leased": f"{format_bytes(status.exported_bytes)} in {status.leases} leases",
        "free": format_bytes(status.free_bytes),
        "resident": format_bytes(status.resident_bytes),
        "incarnation": status.incarnation,
    }
    for title, value in rows.items():
        table.add_row(title, Text(value))
    return table


def _lease_table(found: Sequence[Lease]) -> Table:
    table = _table("name", "holder", "size", "resident", "connections", "idle", "since")
    for lease in found:
        table.add_row(
            Text(lease.name),
            Text(str(lease.holder)),
            format_bytes(lease.size_bytes),
            format_bytes(lease.resident_bytes),
            str(lease.connections),
            format_duration(lease.idle_s),
            lease.created_at.astimezone().strftime("%Y-%m-%d %H:%M"),
        )
    return table
