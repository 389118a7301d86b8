# SPDX-License-Identifier: MIT
"""Lend this machine's RAM (``ghostbox memserver``)."""

from __future__ import annotations

import json
import sys
from datetime import datetime

import click
from click.core import ParameterSource
from rich.text import Text

from ghostbox.cli import approval, clients
from ghostbox.cli.context import Context
from ghostbox.cli.key_options import KeyOption, key_options, memserver_name
from ghostbox.cli.options import MOMENT, SECONDS
from ghostbox.cli.output import Stages, echo, emit, output_options, plain
from ghostbox.donors.client import DonorStatus
from ghostbox.errors import UsageError
from ghostbox.memserver import audit
from ghostbox.memserver import drain as draining
from ghostbox.memserver.opening import ServiceOptions, default_name
from ghostbox.memserver.pressure import PressureLimit
from ghostbox.memserver.secure import FIRST_TOKEN_S
from ghostbox.memserver.service import Ready, Reports, run
from ghostbox.units import format_bytes, format_duration


@click.group(
    invoke_without_command=True,
    subcommand_metavar="[drain|audit|clients|client|role|approve|deny|suspend|resume|revoke [OPTIONS]]",
    epilog="""\b
Examples:
  ghostbox memserver                                       lend the free memory, to this machine only
  ghostbox memserver --size 16G --bind 0.0.0.0             lend to paired hosts, over TLS
  ghostbox memserver --size 16G --bind 192.168.7.2 --insecure
  ghostbox memserver --size 50% --reserve 4G --drain-timeout 1h
  ghostbox memserver --size auto --drain-on-pressure 20%   give back memory that this machine needs later
  ghostbox memserver drain                                 get all memory back from the hosts
  ghostbox memserver audit --since 1d                      leases and refusals of the last day
  ghostbox memserver clients                               hosts that are paired, or ask to be
  ghostbox memserver approve tower                         pair with one that asks (so does ghostbox token create)
  ghostbox memserver role set guest --memory 4G            what hosts may have, by their roles

SIGTERM, Ctrl-C or the end of its terminal ends the memserver: at once if no lease is held, otherwise when the last
lease is released. It waits without limit and names the holders; a second Ctrl-C asks whether to end at once.
""",
)
@key_options(
    "memserver.size",
    "memserver.reserve",
    "memserver.bind",
    "memserver.port",
    "memserver.control_port",
    "memserver.name",
    "memserver.machine",
    "memserver.drain_timeout",
    "memserver.remind_every",
    "memserver.drain_on_pressure",
    "memserver.pressure_file",
    "memserver.lock_memory",
    "memserver.secure",
    "memserver.insecure",
    "memserver.announce",
    "memserver.trust_network",
)
@click.option("--json", "as_json", is_flag=True, help="Report that the memserver serves as one JSON object.")
@click.pass_context
def memserver(ctx: click.Context, /, as_json: bool) -> None:
    """Lend this machine's RAM, in the foreground."""
    context = ctx.ensure_object(Context)
    if ctx.invoked_subcommand is not None:
        _refuse_misplaced(ctx)
        context.flags.clear()  # flags from the environment are for a memserver that starts
        return
    settings = context.config().memserver
    options = ServiceOptions(
        name=settings.name or default_name(),
        size=settings.size,
        reserve_bytes=settings.reserve_bytes,
        bind=settings.bind,
        nbd_port=settings.port,
        control_port=settings.control_port,
        machine=settings.machine,
        drain_timeout_s=settings.drain_timeout_s,
        remind_every_s=settings.remind_every_s,
        pressure=None
        if settings.drain_on_pressure_percent is None
        else PressureLimit(settings.drain_on_pressure_percent, settings.pressure_file),
        lock_memory=settings.lock_memory,
        insecure=settings.insecure,
        secure=settings.secure,
        announce=settings.announce,
        trust_network=settings.trust_network,
    )
    if as_json:
        run(options, context.paths, Reports(lambda ready: echo(json.dumps(plain(ready)))))
    else:  # a log is no place for a secret: only a terminal gets the token
        say_token = _say_token if sys.stdout.isatty() else None
        run(options, context.paths, Reports(lambda ready: echo(_line(ready)), say_token))


def _say_token(token: str) -> None:
    echo(f"to pair a host, run there within {format_duration(FIRST_TOKEN_S)}:\n  ghostbox donor add {token}")


for _command in (*clients.COMMANDS, *approval.COMMANDS):
    memserver.add_command(_command)


def _line(ready: Ready) -> str:
    verb = "still lends" if ready.adopted else "lends"
    held = f", {ready.leases} leases held" if ready.leases else ""
    secure = "s" if ready.secure else ""
    return (
        f"{ready.name} {verb} {format_bytes(ready.size_bytes)}: control API http{secure}://{ready.control_address},"
        f" NBD nbd{secure}://{ready.nbd_address} (data plane pid {ready.data_plane_pid}){held}"
    )


@memserver.command(
    epilog="""\b
Examples:
  ghostbox memserver drain                   give no new leases; wait until all hosts have moved away
  ghostbox memserver drain --no-wait
  ghostbox memserver drain --undo            lend again

The hosts see the drain within seconds and move their pages to their other donors. The memserver runs on.
"""
)
@memserver_name
@click.option("--timeout", type=SECONDS, help="How long to wait for the hosts (memserver.drain_timeout: no limit).")
@click.option("--wait/--no-wait", default=True, help="Wait until no lease is held any more.")
@click.option("--undo", is_flag=True, help="Take the drain back: lend again.")
@output_options
@click.pass_obj
def drain(context: Context, /, timeout: float | None, wait: bool, undo: bool, output: str) -> None:
    """Ask the hosts for this machine's memory."""
    settings = context.config().memserver
    found = draining.find(settings.name or default_name(), context.paths)
    if undo:
        status = draining.undo(found)
        emit(status, output, lambda: _drained(status))
        return
    status = draining.start(found)
    if wait and status.leases:
        with Stages().stage("drain") as stage:
            timeout_s = settings.drain_timeout_s if timeout is None else timeout
            status = draining.wait(found, timeout_s=timeout_s, say=stage.say)
            stage.detail = "no lease is held"
    emit(status, output, lambda: _drained(status))


def _drained(status: DonorStatus) -> Text:
    held = f"{status.leases} leases held, {format_bytes(status.resident_bytes)} in use"
    return Text(f"{status.name} is {status.state}: {held}")


@memserver.command(
    "audit",
    epilog="""\b
Examples:
  ghostbox memserver audit                   the whole log
  ghostbox memserver audit --since 2h -n 20
  ghostbox memserver audit --since 2026-11-29T10:00 --json

The log has leases that were made, refused (with the reason), ended and lost, limits that were hit, and drains: each
with the address of the request, and the host and VM that it named. Neither proves who sent it.
""",
)
@memserver_name
@click.option("--since", type=MOMENT, help="Show lines from this time on, or of so long a time: 2026-11-29T10:00, 2h.")
@click.option("-n", "--lines", type=click.IntRange(0), metavar="N", help="Show only the last N lines.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each line.")
@click.pass_obj
def audit_(context: Context, /, since: datetime | None, lines: int | None, as_json: bool) -> None:
    """Show this donor's audit log: leases, refusals, drains."""
    settings = context.config().memserver
    entries = audit.find(settings.name or default_name(), context.paths, since)
    for entry in entries if lines is None else entries[len(entries) - min(lines, len(entries)) :]:
        echo(json.dumps(entry.said()) if as_json else str(entry))


def _refuse_misplaced(ctx: click.Context) -> None:
    """Refuse options between `memserver` and its subcommand: they belong to a memserver that starts."""
    for parameter in ctx.command.params:
        given = parameter.name is not None and ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        if given and (parameter.expose_value or isinstance(parameter, KeyOption)):
            raise UsageError(
                f"{parameter.opts[-1]} is an option of ghostbox memserver itself",
                hint=f"put the options of {ctx.invoked_subcommand} behind that word",
            )
