# SPDX-License-Identifier: MIT
"""The hidden command that releases what donors which did not answer still hold. Other commands start it."""

from __future__ import annotations

import click

from ghostbox.cli.context import Context
from ghostbox.session import unreleased


@click.command(
    hidden=True,
    epilog="""\b
Examples:
  ghostbox settle-leases     what `list`, `status` and supervisors start in the background
""",
)
@click.pass_obj
def settle_leases(context: Context, /) -> None:
    """Release what donors that were silent still hold."""
    unreleased.settle(context.paths)
