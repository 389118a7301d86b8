# SPDX-License-Identifier: MIT
"""``ghostbox donor``: look at donors and their leases, and change the donors of a VM that runs."""

from __future__ import annotations

from collections.abc import Sequence

import click
from rich.console import RenderableType
from rich.text import Text

from ghostbox import donor_bench, donors, known_donors, prediction
from ghostbox.cli.chosen import chosen, likely
from ghostbox.cli.context import Context
from ghostbox.cli.options import BYTES, confirm, yes_option
from ghostbox.cli.output import Stages, emit, output_options
from ghostbox.donor_bench import Measured
from ghostbox.donor_client import DonorClient, DonorStatus, Lease
from ghostbox.errors import DonorTooSmall, PoolDegraded, ProgramError, UsageError
from ghostbox.prediction import HostCosts
from ghostbox.session import donor_commands, unreleased
from ghostbox.session.donor_commands import Added, Drained, Listed
from ghostbox.session.signals import Interrupts
from ghostbox.session.unreleased import Unreleased
from ghostbox.terminal import Table
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
    """Look at donors and their leases; note them; add and drain those of a VM that runs."""


@donor.command(
    "list",
    epilog="""\b
Examples:
  ghostbox donor list                       the donors that this host knows, and those of the configuration
  ghostbox donor list tower 192.168.7.3:10810 -o json
""",
)
@click.argument("addresses", metavar="[ADDRESS]...", nargs=-1)
@output_options
@click.pass_obj
def list_donors(context: Context, /, addresses: tuple[str, ...], output: str) -> None:
    """Show what donors offer; exit code 6 if one does not answer."""
    if addresses:
        asked = donors.survey([donor_commands.address_of(each, context.paths) for each in addresses])
        found = [Listed(item.address, item.status, item.error, known=False) for item in asked]
    else:
        found = donor_commands.listed(context.config().pool.donors, context.paths)
    if not found:
        raise UsageError(
            "no donor is known",
            hint="note one: ghostbox donor add ADDRESS; or name donors, or set pool.donors in the configuration",
        )
    emit([_row(item) for item in found], output, lambda: _donor_table(found))
    for item in found:
        for lease in item.unreleased:
            Stages().note(_owed(lease))
    silent = [item for item in found if item.error is not None]
    if silent:
        raise PoolDegraded(
            f"{len(silent)} of {len(found)} donors do not answer",
            why="\n".join(f"{item.error}: {item.error.why or ''}".rstrip(": ") for item in silent if item.error),
            hint=next((item.error.hint for item in silent if item.error), None),
        )


def _row(item: Listed) -> dict[str, object]:
    error = item.error and item.error.message
    row: dict[str, object] = {"address": item.address, "status": item.status, "error": error}
    return row | {"known": item.known, "unreleased": item.unreleased}


def _owed(item: Unreleased) -> str:
    size, donor = format_bytes(item.lease.size_bytes), item.lease.donor
    return (
        f"donor {donor} may still hold {size} of VM '{item.vm}' (lease {item.lease.name}), not released since"
        f" {item.since}: it is tried again; if it is gone for good: ghostbox donor forget {donor} --write-off"
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
@click.pass_obj
def info(context: Context, /, address: str, output: str) -> None:
    """Show all about one donor."""
    with DonorClient(donor_commands.address_of(address, context.paths)) as client:
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
@click.pass_obj
def leases(context: Context, /, address: str, output: str) -> None:
    """Show the leases of one donor and who holds them."""
    with DonorClient(donor_commands.address_of(address, context.paths)) as client:
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
@click.pass_obj
def release(context: Context, /, address: str, name: str, force: bool, yes: bool) -> None:
    """End a lease; what it holds is gone."""
    with DonorClient(donor_commands.address_of(address, context.paths)) as client:
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
    noted = tuple(each.address for each in known_donors.load(context.paths))
    configured = config.pool.donors or noted
    if not names and not configured:
        raise UsageError("no donor is given", hint="name donors, note them (ghostbox donor add), or set pool.donors")
    known = [donor_commands.address_of(name, context.paths) for name in names]
    addresses = [donor_bench.resolve(name, configured) for name in known] or list(configured)
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
    for item in found:
        if isinstance(item.error, DonorTooSmall):
            for line in donor_commands.measured_by_vms(item.address, context.paths):
                stages.note(line)
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


_vm = click.option("--vm", "vm", metavar="NAME", help="Which VM, if there are several.")


@donor.command(
    "add",
    epilog="""\b
Examples:
  ghostbox donor add attic                    note it: `up` uses it. A VM that runs borrows its fair share there
  ghostbox donor add attic --vm work --size 8G
  ghostbox donor add attic --size 2G --more   2 GiB more of a donor that the VM uses
""",
)
@click.argument("address")
@_vm
@click.option("--size", type=BYTES, help="How much to borrow; the default is what is missing, or a fair share.")
@click.option("--more", is_flag=True, help="Borrow more from a donor that the VM uses already.")
@output_options
@click.pass_obj
def add_donor(context: Context, /, address: str, vm: str | None, size: int | None, more: bool, output: str) -> None:
    """Note a donor. A VM that runs uses it at once: its memory spreads over it in the background."""
    default = likely(context)
    with Interrupts().watched():
        found = donor_commands.add(vm, default, address, size, context.paths, Stages(), more=more)
    emit(found, output, lambda: _added(found))


def _added(found: Added) -> str:
    status = found.status
    offer = f"{format_bytes(status.free_bytes)} of {format_bytes(status.size_bytes)} are free"
    if found.lease is not None:
        return f"VM '{found.vm}' has {format_bytes(found.lease.size_bytes)} from {found.lease.donor}"
    word = "noted" if found.new else "known already"
    state = "" if not status.draining else f", but it is {status.state}"
    return f"{word}: donor '{status.name}' at {found.donor.address}, {offer}{state}; `ghostbox up` uses it"


@donor.command(
    "forget",
    epilog="""\b
Examples:
  ghostbox donor forget attic                 `up` does not use it any more
  ghostbox donor forget attic --write-off     it will not be back: what it may hold for VMs of before is given up
""",
)
@click.argument("address", metavar="NAME|ADDRESS")
@click.option("--write-off", is_flag=True, help="Give up leases of VMs that do not run any more, for good.")
@yes_option
@click.pass_obj
def forget_donor(context: Context, /, address: str, write_off: bool, yes: bool) -> None:
    """Forget a donor that `donor add` noted; VMs that run go on using it."""
    if write_off:
        donor_commands.check_unused(address, context.paths)
    owed = donor_commands.owed_by(address, context.paths)
    if write_off and owed:
        total = format_bytes(sum(each.lease.size_bytes for each in owed))
        confirm(f"Give up {len(owed)} leases ({total}) that donor {address} may still hold?", yes=yes)
    found = donor_commands.forget(address, context.paths)
    stages = Stages()
    if found is not None:
        stages.note(f"donor {found.address} is forgotten")
    if write_off:
        unreleased.write_off(context.paths.state, owed)
        stages.note(f"{len(owed)} leases there are written off")
        return
    for each in owed:
        stages.note(_owed(each))


@donor.command(
    "drain",
    epilog="""\b
Examples:
  ghostbox donor drain attic                move what it holds to the others, then give its memory back
  ghostbox donor drain attic --to-host      … to this host, if the others have no room
  ghostbox donor drain this-host --no-wait  and from here to the others again

A donor that was drained is not borrowed from again until it is named: ghostbox donor add, or up --donor.
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


def _donor_table(found: Sequence[Listed]) -> Table:
    table = _table("address", "name", "state", "size", "free", "resident", "leases")
    for item in found:
        status = item.status
        if status is None:
            state = Text("of before", style="dim") if item.error is None else Text("no answer", style="red")
            table.add_row(Text(item.address), "", state)
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
