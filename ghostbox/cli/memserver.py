# SPDX-License-Identifier: MIT
"""``ghostbox memserver``: lend this machine's RAM."""

from __future__ import annotations

import json

import click
from click.core import ParameterSource
from rich.text import Text

from ghostbox.cli.context import Context
from ghostbox.cli.options import SECONDS
from ghostbox.cli.output import Stages, echo, emit, output_options, plain
from ghostbox.donor_client import DonorStatus
from ghostbox.errors import UsageError
from ghostbox.memserver import drain as draining
from ghostbox.memserver.opening import ServiceOptions, default_name
from ghostbox.memserver.pressure import PressureLimit
from ghostbox.memserver.service import Ready, run
from ghostbox.units import format_bytes


@click.group(
    invoke_without_command=True,
    subcommand_metavar="[drain [OPTIONS]]",
    epilog="""\b
Examples:
  ghostbox memserver                                       lend what is free, to this machine only
  ghostbox memserver --size 16G --bind 192.168.7.2 --insecure
  ghostbox memserver --size 50% --reserve 4G --drain-timeout 1h
  ghostbox memserver --size auto --drain-on-pressure 20%   give back what this machine comes to need
  ghostbox memserver drain                                 get all of it back from the hosts

SIGTERM, Ctrl-C or the end of its terminal ends it: at once if no lease is held, otherwise when the last one was
released. It waits for that without limit and says who holds what; a second Ctrl-C asks whether to end at once.
""",
)
@click.option("--size", help="Memory to lend: 16G, 50% of the RAM, or auto (what is available, less the reserve).")
@click.option("--reserve", help="Available memory that is never lent.")
@click.option("--bind", help="Address to listen on; any but loopback needs --insecure.")
@click.option("--port", type=int, help="Port of the NBD server, 0 picks one.")
@click.option("--control-port", type=int, help="Port of the control API, 0 picks one.")
@click.option("--name", help="Name of this donor; several on one machine need one each.")
@click.option("--machine", help="Name of the physical machine, if several virtual ones on it lend.")
@click.option("--drain-timeout", help="How long to wait for leases to end before their memory is lost; none: no limit.")
@click.option("--remind-every", help="While it waits: how often it says who holds what.")
@click.option("--drain-on-pressure", help="Drain by itself from this share of time waiting for memory (20%), or never.")
@click.option("--pressure-file", help="Where that is read: /proc/pressure/memory, or a cgroup's memory.pressure.")
@click.option("--insecure", is_flag=True, default=None, help="Listen on the network without encryption or passwords.")
@click.option("--json", "as_json", is_flag=True, help="Say that it is ready as one JSON object.")
@click.pass_context
def memserver(ctx: click.Context, /, as_json: bool, **flags: object) -> None:
    """Lend this machine's RAM, in the foreground."""
    context = ctx.ensure_object(Context)
    if ctx.invoked_subcommand is not None:
        _refuse_misplaced(ctx)
        return
    settings = context.config({f"memserver.{key}": value for key, value in flags.items()}).memserver
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
        insecure=settings.insecure,
    )
    run(options, context.paths, lambda ready: echo(json.dumps(plain(ready)) if as_json else _line(ready)))


def _line(ready: Ready) -> str:
    verb = "goes on lending" if ready.adopted else "lends"
    held = f", {ready.leases} leases held" if ready.leases else ""
    return (
        f"{ready.name} {verb} {format_bytes(ready.size_bytes)}: control API http://{ready.control_address},"
        f" NBD nbd://{ready.nbd_address} (data plane pid {ready.data_plane_pid}){held}"
    )


@memserver.command(
    epilog="""\b
Examples:
  ghostbox memserver drain                   no new leases; wait until all hosts have moved away
  ghostbox memserver drain --no-wait
  ghostbox memserver drain --undo            lend again

The hosts see it within seconds and move their pages to their other donors. The memserver goes on running.
"""
)
@click.option("--name", help="Name of the donor, if several run here or it is not the machine's.")
@click.option("--timeout", type=SECONDS, help="How long to wait for the hosts (memserver.drain_timeout: no limit).")
@click.option("--wait/--no-wait", default=True, help="Wait until no lease is held any more.")
@click.option("--undo", is_flag=True, help="Take it back: lend again.")
@output_options
@click.pass_obj
def drain(context: Context, /, name: str | None, timeout: float | None, wait: bool, undo: bool, output: str) -> None:
    """Ask for the memory back that the memserver running on this machine lends."""
    settings = context.config({"memserver.name": name}).memserver
    running = draining.find(settings.name or default_name(), context.paths)
    if undo:
        status = draining.undo(running)
        emit(status, output, lambda: _drained(status))
        return
    status = draining.start(running)
    if wait and status.leases:
        with Stages().stage("drain") as stage:
            timeout_s = settings.drain_timeout_s if timeout is None else timeout
            status = draining.wait(running, timeout_s=timeout_s, say=stage.say)
            stage.detail = "no lease is held"
    emit(status, output, lambda: _drained(status))


def _drained(status: DonorStatus) -> Text:
    held = f"{status.leases} leases held, {format_bytes(status.resident_bytes)} in use"
    return Text(f"{status.name} is {status.state}: {held}")


def _refuse_misplaced(ctx: click.Context) -> None:
    """Refuse options between `memserver` and its subcommand: they would be those of a memserver that is started."""
    for parameter in ctx.command.params:
        given = parameter.name is not None and ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        if given and parameter.expose_value:
            raise UsageError(
                f"{parameter.opts[-1]} is an option of ghostbox memserver itself",
                hint=f"put the options of {ctx.invoked_subcommand} behind it",
            )
