# SPDX-License-Identifier: MIT
"""Serve a shared folder: a hidden command that `up` and the VM's supervisor start."""

from __future__ import annotations

import click

from ghostbox.cli.context import Context
from ghostbox.cli.options import VM_NAME
from ghostbox.session import share_server


@click.command(
    "share-files",
    hidden=True,
    epilog="""\b
Examples:
  ghostbox share-files work 0     what `up` starts in the background for the first shared folder
""",
)
@click.argument("name", type=VM_NAME)
@click.argument("number", type=click.IntRange(0))
@click.option("--lock", hidden=True, help="Names the folder on the command line; it is not read.")
@click.pass_obj
def share_files(context: Context, /, name: str, number: int, lock: str | None) -> None:
    """Serve a shared folder of a VM until the guest ends the connection."""
    share_server.serve(name, number, context.paths)
