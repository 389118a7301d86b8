# SPDX-License-Identifier: MIT
"""Release leases whose donors did not answer earlier: a hidden command that other commands start."""

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
    """Release leases whose donors did not answer earlier."""
    unreleased.settle(context.paths)
