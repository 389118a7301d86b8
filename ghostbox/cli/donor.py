# SPDX-License-Identifier: MIT
"""``ghostbox donor``: look at donors and their leases, and change the donors of a VM that runs."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ghostbox import donor_bench, donors, prediction
from ghostbox.cli.chosen import chosen
from ghostbox.cli.context import Context
from ghostbox.cli.options import BYTES, confirm, yes_option
from ghostbox.cli.output import Stages, emit, output_options
from ghostbox.donor_bench import Measured
from ghostbox.donor_client import DonorClient, DonorStatus, Lease
from ghostbox.donors import Survey
from ghostbox.errors import PoolDegraded, ProgramError, UsageError
from ghostbox.prediction import HostCosts
from ghostbox.session import donor_commands
from ghostbox.session.donor_commands import Drained
from ghostbox.session.signals import Interrupts
from ghostbox.units import MIB, format_bytes, format_duration


@click.group(
    epilog="""\b
Examples:
  ghostbox donor list
  ghostbox donor leases tower
  ghostbox donor bench
  ghostbox donor add attic
  ghostbox donor drain tower
"""
)
def donor() -> None:
    """Look at donors and their leases; add and drain those of a VM that runs."""


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


@donor.command(
    "bench",
    epilog="""\b
Examples:
  ghostbox donor bench                    the links to the donors of the configuration
  ghostbox donor bench tower 192.168.7.3:10810 --json
""",
)
@click.argument("names", metavar="[NAME|ADDRESS]...", nargs=-1)
@output_options
@click.pass_obj
def bench_donors(context: Context, /, names: tuple[str, ...], output: str) -> None:
    """Measure the links to donors; `up --dry-run` predicts from them. Exit code 6 if not all could be measured."""
    config = context.config()
    configured = config.pool.donors
    if not names and not configured:
        raise UsageError("no donor is given", hint="name donors, or set pool.donors in the configuration")
    addresses = [donor_bench.resolve(name, configured) for name in names] or list(configured)
    stages = Stages()
    host: HostCosts | None = None
    with Interrupts().watched(), stages.stage("measure") as stage:
        found = donor_bench.measure(addresses, context.paths, poll_us=config.pager.poll_us, say=stage.say)
        if any(item.link for item in found):
            try:
                host = donor_bench.measure_host(context.paths, poll_us=config.pager.poll_us, say=stage.say)
            except ProgramError as err:
                stages.note(f"this host's part of a fault is not measured: {err.why or err.message}")
        stage.detail = f"{sum(item.link is not None for item in found)} of {len(found)} donors"
    _raise_if_alone(found)
    rows = [{"name": item.name, "given": item.address, "link": item.link, "error": _said(item)} for item in found]
    emit({"donors": rows, "host": host}, output, lambda: _link_table(found, host))
    failed = [item.error for item in found if item.error is not None]
    if failed:
        raise PoolDegraded(
            f"{len(failed)} of {len(found)} donors could not be measured",
            why="\n".join(f"{err.message}: {err.why}" if err.why else err.message for err in failed),
            hint=next((err.hint for err in failed if err.hint), None),
        )


_vm = click.option("--vm", "vm", metavar="NAME", help="Which VM; the default is that of the configuration.")


@donor.command(
    "add",
    epilog="""\b
Examples:
  ghostbox donor add attic                    as much as its other donors lend on average
  ghostbox donor add attic --vm work --size 8G
""",
)
@click.argument("address")
@_vm
@click.option("--size", type=BYTES, help="How much to borrow; the default is what is missing, or a fair share.")
@output_options
@click.pass_obj
def add_donor(context: Context, /, address: str, vm: str | None, size: int | None, output: str) -> None:
    """Have a VM that runs use one more donor; its memory spreads over it in the background."""
    name = chosen(context, vm)
    with Interrupts().watched():
        lease = donor_commands.add(name, address, size, context.paths, Stages())
    emit(lease, output, lambda: f"VM '{name}' has {format_bytes(lease.size_bytes)} from {address}")


@donor.command(
    "drain",
    epilog="""\b
Examples:
  ghostbox donor drain attic                move what it holds to the others, then give its memory back
  ghostbox donor drain attic --to-host      … to this host, if the others have no room
  ghostbox donor drain this-host --no-wait  and from here to the others again
""",
)
@click.argument("address")
@_vm
@click.option("--to-host", is_flag=True, help="Borrow what the others lack from this machine's own memory.")
@click.option("--wait/--no-wait", default=True, help="Wait until it is empty (the default), or only begin.")
@output_options
@click.pass_obj
def drain_donor(context: Context, /, address: str, vm: str | None, to_host: bool, wait: bool, output: str) -> None:
    """Empty a donor of a VM that runs: its memory moves to the others, live. Refused if it does not fit there."""
    name = chosen(context, vm)
    with Interrupts().watched():
        found = donor_commands.drain(name, address, context.paths, Stages(), to_host=to_host, wait=wait)
    emit(found, output, lambda: _drained(found))


def _drained(found: Drained) -> str:
    if found.done:
        return f"donor {found.donor} holds nothing of VM '{found.vm}' any more"
    how_far = f"ghostbox status {found.vm} shows how far it is"
    return f"{format_bytes(found.bytes_to_move)} move away from {found.donor}: {how_far}"


@donor.command(
    "keep",
    epilog="""\b
Examples:
  ghostbox donor keep attic      it stays after all: what was moved stays where it is
""",
)
@click.argument("address")
@_vm
@click.pass_obj
def keep_donor(context: Context, /, address: str, vm: str | None) -> None:
    """Call a drain off."""
    name = chosen(context, vm)
    donor_commands.keep(name, address, context.paths)
    Stages().note(f"VM '{name}' keeps donor {address}")


def _raise_if_alone(found: Sequence[Measured]) -> None:
    if len(found) == 1 and found[0].error is not None:
        raise found[0].error


def _said(item: Measured) -> str | None:
    return None if item.error is None else item.error.message


def _link_table(found: Sequence[Measured], host: HostCosts | None) -> RenderableType:
    table = _table("address", "name", "4 KiB read p50", "p99", "256 KiB reads", "256 KiB writes", "fault to expect")
    for item in found:
        link = item.link
        if link is None:
            table.add_row(Text(item.address), "", Text("not measured", style="red"))
            continue
        trips = [f"{figure:.0f} µs" for figure in (link.rtt_p50_us, link.rtt_p99_us)]
        rates = [f"{figure / MIB:,.0f} MiB/s" for figure in (link.read_bytes_per_s, link.write_bytes_per_s)]
        fault = "–" if host is None else f"{prediction.fault_us(link, host):.0f} µs"
        table.add_row(Text(item.address), Text(item.name or ""), *trips, *rates, fault)
    return table


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
    return Text(status.state, style="yellow" if status.draining else "green")


def _info_table(status: DonorStatus) -> Table:
    table = Table(box=None, show_header=False)
    rows = {
        "name": status.name,
        "address": status.address,
        "state": status.state,
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
