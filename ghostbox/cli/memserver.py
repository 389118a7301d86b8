# SPDX-License-Identifier: MIT
"""``ghostbox memserver``: lend this machine's RAM."""

from __future__ import annotations

import json

import click

from ghostbox.cli.context import Context
from ghostbox.cli.output import plain
from ghostbox.memserver.opening import ServiceOptions, default_name
from ghostbox.memserver.service import Ready, run
from ghostbox.units import format_bytes


@click.command(
    epilog="""\b
Examples:
  ghostbox memserver                                       lend what is free, to this machine only
  ghostbox memserver --size 16G --bind 192.168.7.2 --insecure
  ghostbox memserver --size 50% --reserve 4G --drain-timeout 1h

SIGTERM or Ctrl-C ends it: at once if no lease is held, otherwise when the last one was released.
"""
)
@click.option("--size", help="Memory to lend: 16G, 50% of the RAM, or auto (what is available, less the reserve).")
@click.option("--reserve", help="Available memory that is never lent.")
@click.option("--bind", help="Address to listen on; any but loopback needs --insecure.")
@click.option("--port", type=int, help="Port of the NBD server, 0 picks one.")
@click.option("--control-port", type=int, help="Port of the control API, 0 picks one.")
@click.option("--name", help="Name of this donor; several on one machine need one each.")
@click.option("--drain-timeout", help="How long to wait for leases to end before ending anyway.")
@click.option("--insecure", is_flag=True, default=None, help="Listen on the network without encryption or passwords.")
@click.option("--json", "as_json", is_flag=True, help="Say that it is ready as one JSON object.")
@click.pass_obj
def memserver(context: Context, /, as_json: bool, **flags: object) -> None:
    """Lend this machine's RAM, in the foreground."""
    settings = context.config({f"memserver.{key}": value for key, value in flags.items()}).memserver
    options = ServiceOptions(
        name=settings.name or default_name(),
        size=settings.size,
        reserve_bytes=settings.reserve_bytes,
        bind=settings.bind,
        nbd_port=settings.port,
        control_port=settings.control_port,
        drain_timeout_s=settings.drain_timeout_s,
        insecure=settings.insecure,
    )
    run(options, context.paths, lambda ready: click.echo(json.dumps(plain(ready)) if as_json else _line(ready)))


def _line(ready: Ready) -> str:
    verb = "goes on lending" if ready.adopted else "lends"
    held = f", {ready.leases} leases held" if ready.leases else ""
    return (
        f"{ready.name} {verb} {format_bytes(ready.size_bytes)}: control API http://{ready.control_address},"
        f" NBD nbd://{ready.nbd_address} (data plane pid {ready.data_plane_pid}){held}"
    )
