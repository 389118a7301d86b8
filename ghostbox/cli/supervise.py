# SPDX-License-Identifier: MIT
"""Run as a VM's supervisor: a hidden command that `up` starts, and any command that finds none."""

from __future__ import annotations

import logging
import os

import click

from ghostbox.cli.context import Context
from ghostbox.cli.options import VM_NAME
from ghostbox.session import reconcile, supervisor

_log = logging.getLogger(__name__)


@click.command(
    hidden=True,
    epilog="""\b
Examples:
  ghostbox supervise work     what `up` starts in the background
""",
)
@click.argument("name", type=VM_NAME)
@click.option("--lock", hidden=True, help="Names the VM on the command line; it is not read.")
@click.pass_obj
def supervise(context: Context, /, name: str, lock: str | None) -> None:
    """Supervise a VM until it ends."""
    files = context.paths.vm(name)
    held = supervisor.lock(files)
    if held is None:
        _log.info("VM '%s' does not run, or has a supervisor", name)
        return
    try:
        reconcile.look_after(name, context.paths)
    finally:
        os.close(held)
