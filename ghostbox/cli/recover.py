# SPDX-License-Identifier: MIT
"""The command that gives a VM another pager."""

from __future__ import annotations

import click

from ghostbox import session
from ghostbox.cli.chosen import chosen
from ghostbox.cli.context import Context
from ghostbox.cli.options import name_argument
from ghostbox.cli.output import Stages, emit, output_options
from ghostbox.session import Recovered

_SAID = {
    "recovered": "VM '{name}' goes on: its pager had died, another one took over (pid {pid})",
    "restarted": "VM '{name}' goes on with a new pager (pid {pid})",
    "restored": "VM '{name}' goes on: its pager's files were gone, the pager (pid {pid}) has made them anew",
    "none": "the pager of VM '{name}' is well (pid {pid}); nothing was done",
}


@click.command(
    epilog="""\b
Examples:
  ghostbox recover                  the guest froze because its pager died: go on
  ghostbox recover work --restart   replace the pager of a VM that runs, by a newer version of it
"""
)
@name_argument
@click.option("--restart", is_flag=True, help="Also if the pager is well: it hands over to a new one.")
@output_options
@click.pass_obj
def recover(context: Context, /, name: str | None, restart: bool, output: str) -> None:
    """Give a VM whose pager died another one; nothing is lost."""
    vm = chosen(context, name)
    found = session.recover(vm, context.paths, Stages(), restart=restart)
    emit(found, output, lambda: _sentence(found))


def _sentence(found: Recovered) -> str:
    return _SAID[found.action].format(name=found.name, pid=found.pager_pid)
