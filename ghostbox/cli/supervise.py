# SPDX-License-Identifier: MIT
"""The hidden command that a VM's supervisor is. Nobody needs to call it: `up` does, and any command that misses it."""

from __future__ import annotations

import logging
import os

import click

from ghostbox.cli.context import Context
from ghostbox.cli.options import VM_NAME
from ghostbox.session import care, supervisor

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
    """Look after a VM until it ends."""
    files = context.paths.vm(name)
    held = supervisor.lock(files)
    if held is None:
        _log.info("VM '%s' does not run, or has a supervisor", name)
        return
    try:
        care.look_after(name, context.paths)
    finally:
        os.close(held)
