# SPDX-License-Identifier: MIT
"""Show donors and their leases, and change the donors of a running VM (``ghostbox donor``)."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence

import click
from rich.console import RenderableType
from rich.text import Text

from ghostbox import donors
from ghostbox.cli.chosen import chosen, likely
from ghostbox.cli.context import Context
from ghostbox.cli.deploy import deploy, undeploy
from ghostbox.cli.key_options import key_option
from ghostbox.cli.options import BYTES, confirm, timeout_option, yes_option
from ghostbox.cli.output import Stages, echo, emit, output_options, plain
from ghostbox.cli.scan import scan_donors
from ghostbox.cli.show import CHANNEL_COLORS
from ghostbox.donors import bench as donor_bench
from ghostbox.donors import known as known_donors
from ghostbox.donors import trust
from ghostbox.donors.bench import Measured
from ghostbox.donors.client import DonorClient, DonorStatus, Lease, host_name
from ghostbox.donors.trust import Means
from ghostbox.errors import DonorTooSmall, GhostboxError, PoolDegraded, ProgramError, Untrusted, UsageError
from ghostbox.plan import prediction
from ghostbox.plan.prediction import HostCosts
from ghostbox.session import donor_commands, unreleased
from ghostbox.session.asking import Dialogue
from ghostbox.session.donor_commands import Added, Drained, Listed
from ghostbox.session.signals import Interrupts
from ghostbox.session.unreleased import Unreleased
from ghostbox.terminal import Table
from ghostbox.units import MIB, format_bytes, format_duration


@click.group(
    epilog="""\b
Examples:
  ghostbox donor scan
  ghostbox donor list
  ghostbox donor leases tower
  ghostbox donor bench
  ghostbox donor add gbt1_...
  ghostbox donor deploy root@tower
  ghostbox donor drain tower
"""
)
def donor() -> None:
    """Find donors; show them and their leases; pair with donors; add and drain the donors of a running VM."""


_insecure = key_option("pool.insecure")
for _command in (scan_donors, deploy, undeploy):
    donor.add_command(_command)


@donor.command(
    "list",
    epilog="""\b
Examples:
  ghostbox donor list                       the donors that this host knows, and those of the configuration
  ghostbox donor list tower 192.168.7.3:10810 -o json
""",
)
@click.argument("addresses", metavar="[NAME|ADDRESS]...", nargs=-1)
@_insecure
@output_options
@click.pass_obj
def list_donors(context: Context, /, addresses: tuple[str, ...], output: str) -> None:
    """Show what donors offer; exit code 6 if a donor does not answer."""
    if addresses:
        asked = donors.survey([known_donors.address_of(each, context.paths) for each in addresses])
        found = [
            Listed(item.address, item.status, item.error, known=False, channel=trust.means_of(item.address))
            for item in asked
        ]
    else:
        found = donor_commands.listed(context.config().pool.donors, context.paths)
    if not found:
        raise UsageError(
            "no donor is known",
            hint="add one: ghostbox donor add TOKEN; or name donors, or set pool.donors in the configuration",
        )
    emit([_row(item) for item in found], output, lambda: _donor_table(found))
    for item in found:
        for lease in item.unreleased:
            Stages().note(_describe_unreleased(lease))
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
    return row | {"known": item.known, "unreleased": item.unreleased, "channel": item.channel}


def _describe_unreleased(item: Unreleased) -> str:
    size, donor = format_bytes(item.lease.size_bytes), item.lease.donor
    return (
        f"donor {donor} may still hold {size} of VM '{item.vm}' (lease {item.lease.name}), not released since"
        f" {item.since}: GhostBox tries again; if the donor is gone for good: ghostbox donor forget {donor} --write-off"
    )


@donor.command(
    epilog="""\b
Examples:
  ghostbox donor info tower
  ghostbox donor info [fd00::7]:10810 --json
"""
)
@click.argument("address", metavar="NAME|ADDRESS")
@_insecure
@output_options
@click.pass_obj
def info(context: Context, /, address: str, output: str) -> None:
    """Show all about one donor."""
    with DonorClient(known_donors.address_of(address, context.paths)) as client:
        status = client.status()
    shown = {**plain(status), "channel": client.channel.means}
    emit(shown, output, lambda: _info_table(status, client.channel.means))


@donor.command(
    epilog="""\b
Examples:
  ghostbox donor leases tower
"""
)
@click.argument("address", metavar="NAME|ADDRESS")
@_insecure
@output_options
@click.pass_obj
def leases(context: Context, /, address: str, output: str) -> None:
    """Show the leases of one donor and their holders: with a paired donor, those of this host."""
    with DonorClient(known_donors.address_of(address, context.paths)) as client:
        found = client.leases()
    emit(found, output, lambda: _lease_table(found))


@donor.command(
    epilog="""\b
Examples:
  ghostbox donor release tower ana-vm1
  ghostbox donor release tower ana-vm1 --force -y      even if a VM still uses the lease
"""
)
@click.argument("address", metavar="NAME|ADDRESS")
@click.argument("name")
@_insecure
@click.option("--force", is_flag=True, help="Release the lease even if connections are open; the VM loses its memory.")
@yes_option
@click.pass_obj
def release(context: Context, /, address: str, name: str, force: bool, yes: bool) -> None:
    """End a lease; its content is lost."""
    with DonorClient(known_donors.address_of(address, context.paths)) as client:
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
@_insecure
@output_options
@click.pass_obj
def bench_donors(context: Context, /, names: tuple[str, ...], output: str) -> None:
    """Measure the links to donors, from which `plan` predicts. Exit code 6 if not all could be measured."""
    config = context.config()
    noted = tuple(each.address for each in known_donors.load(context.paths))
    configured = config.pool.donors or noted
    if not names and not configured:
        raise UsageError("no donor is given", hint="name donors, note them (ghostbox donor add), or set pool.donors")
    known = [known_donors.address_of(name, context.paths) for name in names]
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
    rows = [
        {"name": item.name, "given": item.address, "link": item.link, "error": _error_message(item)} for item in found
    ]
    emit({"donors": rows, "host": host}, output, lambda: _link_table(found, host))
    failed = [item.error for item in found if item.error is not None]
    if failed:
        raise PoolDegraded(
            f"{len(failed)} of {len(found)} donors could not be measured",
            why="\n".join(f"{err.message}: {err.why}" if err.why else err.message for err in failed),
            hint=next((err.hint for err in failed if err.hint), None),
        )


_TOKEN_CHARS = 4096
_CHANNELS = {
    Means.TLS: "over TLS",
    Means.LOCAL: "on this machine",
    Means.INSECURE: "without encryption",
    None: "not paired",
}

_vm = click.option("--vm", "vm", metavar="NAME", help="Name the VM, if there are several.")


@donor.command(
    "add",
    epilog="""\b
Examples:
  ghostbox donor add gbt1_...                 pair with the donor that printed this line, and note it for `up`
  ghostbox donor add - < token                the same, with the token neither on the screen nor in the history
  ghostbox donor add tower                    ask the donor of this name to be paired; its owner approves
  ghostbox donor add 192.168.7.2 --timeout 1h --yes
  ghostbox donor add attic                    a running VM borrows its fair share from a donor that is known
  ghostbox donor add attic --vm work --size 8G
  ghostbox donor add attic --size 2G --more   borrow 2 GiB more from a donor that the VM uses
  ghostbox donor add 192.168.7.2 --insecure   a donor without encryption, on a network that you trust wholly
""",
)
@click.argument("address", metavar="TOKEN|NAME|ADDRESS|-")
@_vm
@_insecure
@click.option("--size", type=BYTES, help="How much to borrow; the default is what is missing, or a fair share.")
@click.option("--more", is_flag=True, help="Borrow more from a donor that the VM uses already.")
@timeout_option("10m", "Without a token: how long to wait for the donor's owner.")
@yes_option
@output_options
@click.pass_obj
def add_donor(
    context: Context, /, address: str, vm: str | None, size: int | None, more: bool, timeout: float, yes: bool,
    output: str,
) -> None:  # fmt: skip
    """Pair with a donor, or note one. A running VM uses it at once, and spreads to it in the background."""
    default = likely(context)
    dialogue = Dialogue(_show_code, _agrees(yes=yes), timeout)
    if address == "-":
        # What the donor prints is a whole command; its last word is the token.
        address = (sys.stdin.readline(_TOKEN_CHARS).split() or [""])[-1]
    with Interrupts().watched():
        found = donor_commands.add(vm, default, address, size, context.paths, Stages(), more=more, dialogue=dialogue)
    emit(found, output, lambda: _added(found))


def _show_code(address: str, words: str) -> None:
    text = (
        f"this host asks donor {address} to be paired, and shows: {words}\nif the donor's owner sees the same words:"
        f" ghostbox memserver approve {shlex.quote(host_name())}, on the donor"
    )
    # Also with --quiet: without these words nobody can say whether they are the same.
    echo(text, err=True)


def _agrees(*, yes: bool) -> Callable[[str], bool] | None:
    """Return what asks whether both screens show the same words; None without a terminal to ask on."""
    if yes:
        return lambda _words: True
    if not sys.stdin.isatty():
        return None

    def ask(words: str) -> bool:
        try:
            return click.confirm(f"do both screens show: {words}?", err=True)
        except click.Abort as err:  # what click makes of Ctrl-C
            raise KeyboardInterrupt from err

    return ask


def _added(found: Added) -> str:
    status = found.status
    offer = f"{format_bytes(status.free_bytes)} of {format_bytes(status.size_bytes)} are free"
    if found.lease is not None:
        return f"VM '{found.vm}' has {format_bytes(found.lease.size_bytes)} from {found.lease.donor}"
    word = "paired" if found.paired else "noted" if found.new else "known already"
    state = "" if not status.draining else f", but it is {status.state}"
    way = _CHANNELS[found.channel]
    return f"{word}: donor '{status.name}' at {found.donor.address}, {way}, {offer}{state}; `ghostbox up` uses it"


@donor.command(
    "forget",
    epilog="""\b
Examples:
  ghostbox donor forget attic                 `up` does not use it any more
  ghostbox donor forget attic --write-off     the donor is gone for good: give up what it may hold for former VMs
""",
)
@click.argument("address", metavar="NAME|ADDRESS")
@click.option("--write-off", is_flag=True, help="Give up, for good, the leases of VMs that do not run any more.")
@yes_option
@click.pass_obj
def forget_donor(context: Context, /, address: str, write_off: bool, yes: bool) -> None:
    """Forget a donor that `donor add` noted, and end the pairing with it; refused while a VM needs the pairing."""
    if write_off:
        donor_commands.check_unused(address, context.paths)
    owed = donor_commands.owed_by(address, context.paths)
    if write_off and owed:
        total = format_bytes(sum(each.lease.size_bytes for each in owed))
        confirm(f"Give up {len(owed)} leases ({total}) that donor {address} may still hold?", yes=yes)
    found = donor_commands.part(address, context.paths, write_off=write_off)
    stages = Stages()
    if found.donor is not None:
        stages.note(f"donor {found.donor.address} is forgotten")
    for pairing in found.pairings:
        stages.note(f"the pairing with donor '{pairing.name}' is ended")
    for line in found.notes:
        stages.note(line)
    if write_off:
        unreleased.write_off(context.paths.state, owed)
        stages.note(f"{len(owed)} leases there are written off")
        return
    for each in owed:
        stages.note(_describe_unreleased(each))


@donor.command(
    "drain",
    epilog="""\b
Examples:
  ghostbox donor drain attic                move its content to the others, then give its memory back
  ghostbox donor drain attic --to-host      move it to this host, if the others have no room
  ghostbox donor drain this-host --no-wait  move it from this host to the others again

The VM borrows from a drained donor only after it was named again: ghostbox donor add, or up --donor.
""",
)
@click.argument("address", metavar="NAME|ADDRESS")
@_vm
@click.option("--to-host", is_flag=True, help="Borrow what the others lack from this machine's own memory.")
@click.option("--wait/--no-wait", default=True, help="Wait until the donor is empty (the default), or only begin.")
@output_options
@click.pass_obj
def drain_donor(context: Context, /, address: str, vm: str | None, to_host: bool, wait: bool, output: str) -> None:
    """Empty a donor of a running VM. Its content moves to the other donors; without room there, this is refused."""
    name = chosen(context, vm)
    with Interrupts().watched():
        found = donor_commands.drain(name, address, context.paths, Stages(), to_host=to_host, wait=wait)
    emit(found, output, lambda: _drained(found))


def _drained(found: Drained) -> str:
    if found.done:
        return f"donor {found.donor} holds nothing of VM '{found.vm}' any more"
    how_far = f"ghostbox status {found.vm} shows the progress"
    return f"{format_bytes(found.bytes_to_move)} move away from {found.donor}: {how_far}"


@donor.command(
    "keep",
    epilog="""\b
Examples:
  ghostbox donor keep attic      keep the donor after all; what has moved stays where it is
""",
)
@click.argument("address", metavar="NAME|ADDRESS")
@_vm
@click.pass_obj
def keep_donor(context: Context, /, address: str, vm: str | None) -> None:
    """Call a drain off; the VM uses the donor again."""
    name = chosen(context, vm)
    donor_commands.keep(name, address, context.paths)
    Stages().note(f"VM '{name}' keeps donor {address}")


def _raise_if_alone(found: Sequence[Measured]) -> None:
    if len(found) == 1 and found[0].error is not None:
        raise found[0].error


def _error_message(item: Measured) -> str | None:
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
    table = _table("address", "name", "state", "size", "free", "resident", "leases", "channel", "role")
    for item in found:
        status = item.status
        if status is None:
            state = Text("former", style="dim") if item.error is None else Text(_reason(item.error), style="red")
            table.add_row(Text(item.address), "", state)
            continue
        sizes = [format_bytes(size) for size in (status.size_bytes, status.free_bytes, status.resident_bytes)]
        names = (Text(item.address), Text(status.name), _state(status))
        table.add_row(*names, *sizes, str(status.leases), _means(item.channel), Text(status.role or "-"))
    return table


def _reason(error: GhostboxError) -> str:
    return "not trusted" if isinstance(error, Untrusted) else "no answer"


def _means(found: Means | None) -> Text:
    return Text(str(found or "-"), style=CHANNEL_COLORS.get(str(found), ""))


def _state(status: DonorStatus) -> Text:
    return Text(status.state, style="yellow" if status.draining else "green")


def _info_table(status: DonorStatus, means: Means) -> Table:
    table = Table(box=None, show_header=False)
    rows = {
        "name": status.name,
        "address": status.address,
        "state": status.state,
        "channel": str(means),
        "version": status.version,
        "NBD port": str(status.nbd_port),
        "size": format_bytes(status.size_bytes),
        "leased": f"{format_bytes(status.exported_bytes)} in {status.leases} leases",
        "free": format_bytes(status.free_bytes),
        "resident": format_bytes(status.resident_bytes),
        **_own_limits(status),
        "incarnation": status.incarnation,
    }
    for title, value in rows.items():
        table.add_row(title, Text(value))
    return table


def _own_limits(status: DonorStatus) -> dict[str, str]:
    """Return what this host may have of a donor that it is paired with."""
    if status.role is None or status.limits is None:
        return {}
    most, rate = status.limits.memory_bytes, status.limits.bytes_per_s
    return {
        "role": status.role,
        "leases at most": _or_none(status.limits.leases),
        "memory at most": "no limit" if most is None else format_bytes(most),
        "connections at most": _or_none(status.limits.connections),
        "bandwidth at most": "no limit" if rate is None else f"{format_bytes(rate)}/s",
    }


def _or_none(limit: int | None) -> str:
    return "no limit" if limit is None else str(limit)


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
