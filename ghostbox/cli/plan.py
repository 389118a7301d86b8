# SPDX-License-Identifier: MIT
"""Show what ``up`` would do and predict how the VM's memory performs (``ghostbox plan``, ``up --dry-run``)."""

from __future__ import annotations

import click

from ghostbox.cli.vm import up

_ONLY_FOR_UP = {"autostart", "dry_run", "printed", "timeout", "no_wait", "no_recover", "overcommit"}


@click.command(
    params=[parameter for parameter in up.params if parameter.name not in _ONLY_FOR_UP],
    epilog="""\b
Examples:
  ghostbox donor bench                                measure the links first
  ghostbox plan                                       then see the prediction
  ghostbox plan --donor tower --remote-memory 16G --json
""",
)
@click.pass_context
def plan(context: click.Context, /, **given: object) -> None:
    """Show what `up` would do, and predict fault latency, bandwidth and slowdown. Nothing is done."""
    context.invoke(up, **given, dry_run=True)
