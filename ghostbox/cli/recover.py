# SPDX-License-Identifier: MIT
"""Give a VM another pager (``ghostbox recover``)."""

from __future__ import annotations

import click

from ghostbox import session
from ghostbox.cli.chosen import chosen
from ghostbox.cli.context import Context
from ghostbox.cli.options import name_argument
from ghostbox.cli.output import Stages, emit, output_options
from ghostbox.session import Recovered

_SAID = {
    "recovered": "VM '{name}' runs again: its pager had died, another pager (pid {pid}) took over",
    "restarted": "VM '{name}' has a new pager (pid {pid})",
    "restored": "the files of VM '{name}'s pager were gone; the pager (pid {pid}) has made them anew",
    "none": "the pager of VM '{name}' is well (pid {pid}); nothing was done",
}


@click.command(
    epilog="""\b
Examples:
  ghostbox recover                  give a guest that froze because its pager died another pager
  ghostbox recover work --restart   replace the pager of a running VM, e.g. by a newer version
"""
)
@name_argument
@click.option("--restart", is_flag=True, help="Replace the pager also if it is well: it hands over to a new pager.")
@output_options
@click.pass_obj
def recover(context: Context, /, name: str | None, restart: bool, output: str) -> None:
    """Give a VM whose pager died another pager; nothing is lost."""
    vm = chosen(context, name)
    found = session.recover(vm, context.paths, Stages(), restart=restart)
    emit(found, output, lambda: _sentence(found))


def _sentence(found: Recovered) -> str:
    return _SAID[found.action].format(name=found.name, pid=found.pager_pid)
