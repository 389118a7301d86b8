# SPDX-License-Identifier: MIT
"""Find donors on the network (``ghostbox donor scan``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click
from rich.console import Group
from rich.text import Text

from ghostbox.cli.context import Context
from ghostbox.cli.key_options import key_option
from ghostbox.cli.options import timeout_option
from ghostbox.cli.output import Stages, emit, output_options
from ghostbox.discovery.doubts import short
from ghostbox.discovery.found import Found
from ghostbox.donors import pairings
from ghostbox.errors import NotFound, PoolDegraded, Untrusted, UsageError
from ghostbox.terminal import Table
from ghostbox.units import format_bytes

if TYPE_CHECKING:
    from ghostbox.discovery.scan import Fault, Looked, Result

_LONGEST_WAIT_S = 60.0


@click.command(
    "scan",
    epilog="""\b
Examples:
  ghostbox donor scan                              the donors on this machine's networks
  ghostbox donor scan --interface eth0 --timeout 10s
  ghostbox donor scan 192.168.7.2 fe80::1%eth0     these addresses as well; multicast need not reach them
  ghostbox donor scan --json
""",
)
@click.argument("addresses", metavar="[ADDRESS]...", nargs=-1)
@click.option(
    "--interface", "names", multiple=True, metavar="IF", help="Ask on this interface only; may be given several times."
)
@key_option("pool.insecure")
@timeout_option("3s", "How long to wait for announcements.")
@output_options
@click.pass_obj
def scan_donors(
    context: Context, /, addresses: tuple[str, ...], names: tuple[str, ...], timeout: float, output: str
) -> None:
    """Find donors on the network, and say which interfaces were asked. Exit code 4 if there is none."""
    if not 0.1 <= timeout <= _LONGEST_WAIT_S:
        raise UsageError(f"--timeout is from 0.1 s to {_LONGEST_WAIT_S:.0f} s")
    from ghostbox.discovery.scan import scan  # zeroconf takes longer to load than the other commands take to run

    stages = Stages()
    with stages.stage("scan") as stage:
        found = scan(names, addresses, pairings.load(context.paths), timeout)
        stage.detail = f"{len(found.donors)} found"
    emit(_document(found), output, lambda: Group(_interface_table(found.interfaces), "", _donor_table(found.donors)))
    for row in found.donors:
        if line := _note(row):
            stages.note(line)
    for fault in found.faults:
        stages.note(f"an announcement called '{fault.instance}' is not used: {fault.why}")
    _raise_if_silent(found, addresses)


def _note(row: Found) -> str:
    """Return what is to be said of a donor besides its row in the table, or nothing."""
    if row.problem:
        return f"warning: {row.title}: {row.problem}. {row.hint}"
    if row.unreached:
        return f"{row.title} does not answer: {row.unreached}"
    if isinstance(row.refusal, Untrusted) and not row.paired:
        return f"{row.title} speaks no TLS: a donor without encryption is asked only with --insecure"
    return "" if row.refusal is None else row.refusal.message


def _raise_if_silent(found: Result, addresses: Sequence[str]) -> None:
    """Fail if no donor was found, or if a donor that was given by its address does not answer."""
    there = [row for row in found.donors if row.is_there]
    if not there:
        asked = [each.interface.name for each in found.interfaces if not each.skipped]
        raise NotFound(
            "no donor was found" + (f" on {', '.join(asked)}" if asked else ": no interface could be asked"),
            why="a donor announces itself if it listens on a network (not on 127.0.0.1) and memserver.announce is on;"
            " a firewall on either machine may drop UDP port 5353, and a router or a Wi-Fi access point multicast",
            hint="give its address, which needs no multicast: ghostbox donor scan 192.168.7.2; or paste the line that"
            " it prints: ghostbox token create there, ghostbox donor add TOKEN here",
        )
    silent = [row for row in found.donors if not row.is_there and row.announced is None]
    if silent:
        raise PoolDegraded(
            f"{len(silent)} of {len(addresses)} addresses do not answer: {', '.join(row.address for row in silent)}"
        )


def _document(found: Result) -> dict[str, object]:
    return {
        "interfaces": [_interface_row(each) for each in found.interfaces],
        "donors": [_donor_row(row) for row in found.donors],
        "faults": [_fault_row(each) for each in found.faults],
    }


def _interface_row(looked: Looked) -> dict[str, object]:
    each = looked.interface
    return {
        "name": each.name,
        "type": each.kind,
        "speed_mbit": each.speed_mbit,
        "addresses": each.addresses,
        "asked": not looked.skipped,
        "why_not": looked.skipped or None,
    }


def _fault_row(fault: Fault) -> dict[str, object]:
    return {"instance": fault.instance, "why": fault.why}


def _donor_row(row: Found) -> dict[str, object]:
    return {
        "name": row.name,
        "id": row.id,
        "address": row.address,
        "also": row.also,
        "round_trip_us": row.round_trip_us,
        "version": row.version,
        "free_bytes": row.status.free_bytes if row.status else None,
        "size_bytes": row.status.size_bytes if row.status else None,
        "fingerprint": row.fingerprint or None,
        "announced": row.announced is not None,
        "paired": row.paired,
        "state": row.state,
        "problem": row.problem or None,
        "hint": row.hint or None,
        "error": row.unreached or (row.refusal.message if row.refusal else None),
    }


def _interface_table(looked: Sequence[Looked]) -> Table:
    table = Table(box=None, header_style="bold")
    for title in ("interface", "type", "speed", "addresses", "asked"):
        table.add_column(title)
    for item in looked:
        each = item.interface
        asked = Text("yes", style="green") if not item.skipped else Text(f"no: {item.skipped}", style="dim")
        table.add_row(each.name, each.kind, _speed(each.speed_mbit), "\n".join(each.addresses), asked)
    return table


def _speed(speed_mbit: int | None) -> str:
    if speed_mbit is None:
        return ""
    return f"{speed_mbit / 1000:g} Gbit/s" if speed_mbit >= 1000 else f"{speed_mbit} Mbit/s"


def _donor_table(rows: Sequence[Found]) -> Table:
    table = Table(box=None, header_style="bold")
    for title in ("donor", "address", "round trip", "version", "free", "fingerprint", "state"):
        table.add_column(title)
    for row in rows:
        style = "red" if row.problem else "green" if row.paired else "yellow"
        trip = "" if row.round_trip_us is None else f"{row.round_trip_us / 1000:.2f} ms"
        addresses = "\n".join((row.address, *row.also))
        table.add_row(
            row.name or "?", addresses, trip, row.version, _free(row), short(row.fingerprint), Text(row.state, style)
        )
    return table


def _free(row: Found) -> str:
    if row.status is not None:
        return format_bytes(row.status.free_bytes)
    return "pair first" if row.fingerprint and not row.paired else ""
