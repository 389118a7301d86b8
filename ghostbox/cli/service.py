# SPDX-License-Identifier: MIT
"""Let systemd start a donor, or this host's VMs, with the machine (``ghostbox service``)."""

from __future__ import annotations

import click
from rich.console import RenderableType
from rich.text import Text

from ghostbox.cli.context import Context
from ghostbox.cli.memserver import memserver
from ghostbox.cli.output import emit, output_options
from ghostbox.system import services
from ghostbox.system.services import Kind, ServiceStatus
from ghostbox.terminal import Table

_KIND = click.argument("kind", type=click.Choice([kind.value for kind in Kind]))
_USER = click.option(
    "--user", is_flag=True, help="Use the user's own systemd, not the system's (for root; other users have no choice)."
)


@click.group(
    epilog="""\b
Examples:
  ghostbox service install donor -- --size 24G --bind 0.0.0.0
  ghostbox service install host
  ghostbox service status
  ghostbox service uninstall donor

The exit code is 5 where systemd does not run.
"""
)
def service() -> None:
    """Let systemd start a donor, or the VMs of this host, with the machine."""


@service.command(
    context_settings={"ignore_unknown_options": True},
    epilog="""\b
Examples:
  ghostbox service install donor -- --size 24G --bind 0.0.0.0
  ghostbox service install host
  ghostbox service install host --user

`donor` takes the options of `ghostbox memserver` (behind --). Its log is in the journal. When the service is stopped,
the memserver waits without limit until the hosts have moved their memory away, and names the holders every minute.
When the machine shuts down, systemd waits for that only 30 minutes (2 with --user): drain the donor before. A memserver
that is killed is started again and lends the same memory. `host` starts the VMs that have `ghostbox autostart on`, and
their supervisors. Installing a service again changes its options.
""",
)
@_KIND
@_USER
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF MEMSERVER]...")
@output_options
@click.pass_obj
def install(context: Context, /, kind: str, user: bool, options: tuple[str, ...], output: str) -> None:
    """Install a service and start it, now and with the machine."""
    if Kind(kind) is Kind.DONOR:
        memserver.make_context("memserver", list(options), parent=click.get_current_context())
        context.config()  # this checks the options' values
    elif options:
        raise click.UsageError(f"'{kind}' takes no options: {' '.join(options)}")
    file = () if context.config_file is None else ("-c", str(context.config_file.absolute()))
    found = services.install(services.service(Kind(kind), user=user), (*file, *options), context.paths)
    emit(found, output, lambda: _table([found]))


@service.command(
    epilog="""\b
Examples:
  ghostbox service uninstall donor       wait until no host holds its memory any more
  ghostbox service uninstall host        VMs run on, and are not started with the machine any more
"""
)
@_KIND
@_USER
@output_options
@click.pass_obj
def uninstall(context: Context, /, kind: str, user: bool, output: str) -> None:
    """Remove a service; a donor's service is stopped first. A service that is not installed is no error."""
    wanted = services.service(Kind(kind), user=user)
    removed = services.uninstall(wanted)
    text = "is uninstalled" if removed else "was not installed"
    emit({"unit": wanted.unit, "removed": removed}, output, lambda: Text(f"{wanted.unit} {text}"))


@service.command(
    epilog="""\b
Examples:
  ghostbox service status
  ghostbox service status --user --json
"""
)
@_USER
@output_options
@click.pass_obj
def status(context: Context, /, user: bool, output: str) -> None:
    """Show which services are installed and run. It also shows whether they start with the machine."""
    found = [services.status(services.service(kind, user=user)) for kind in Kind]
    emit(found, output, lambda: _table(found))


def _table(found: list[ServiceStatus]) -> RenderableType:
    table = Table("service", "unit", "state", "with the machine", box=None)
    for each in found:
        state = each.state if each.unit_file else "not installed"
        table.add_row(each.kind.value, f"{each.unit} ({each.scope})", state, "yes" if each.at_boot else "no")
    for note in (note for each in found for note in each.notes):
        table.caption = Text(note)
    return table
