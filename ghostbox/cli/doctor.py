# SPDX-License-Identifier: MIT
"""Check this machine, and show the command that mends each fault (``ghostbox doctor``)."""

from __future__ import annotations

import click
from rich.console import Group
from rich.text import Text

from ghostbox.cli.context import Context
from ghostbox.cli.output import emit, output_options
from ghostbox.doctor import Check, Machine, Result, Role, run
from ghostbox.errors import Refused

_COLORS = {Result.OK: "green", Result.WARN: "yellow", Result.FAIL: "red"}


@click.command(
    epilog="""\b
Examples:
  ghostbox doctor
  ghostbox doctor --role donor
  ghostbox doctor --json

The exit code is 5 if a check fails; a warning is no failure. Nothing is changed.
"""
)
@click.option("--role", type=click.Choice([role.value for role in Role]), help="Check only what this role needs.")
@output_options
@click.pass_obj
def doctor(context: Context, role: str | None, output: str) -> None:
    """Check this machine; show what was found, why it matters, and what mends it."""
    checks = run(Machine(context.config(), context.paths), Role if role is None else [Role(role)])
    failed = [check.name for check in checks if check.result is Result.FAIL]
    emit({"ok": not failed, "checks": checks}, output, lambda: Group(*(_lines(check) for check in checks)))
    if failed:
        what = "check" if len(failed) == 1 else "checks"
        raise Refused(f"{len(failed)} {what} failed: {', '.join(failed)}", hint="the lines above say what mends each")


def _lines(check: Check) -> Text:
    text = Text()
    text.append(f"{check.result.value:<4}", style=_COLORS[check.result])
    text.append(f"  {check.name:<21} {check.found}")
    for word, line in (("why", check.why), ("fix", check.fix)):
        if line:
            text.append(f"\n      {word}: ", style="bold")
            text.append(line)
    return text
