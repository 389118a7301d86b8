# SPDX-License-Identifier: MIT
"""Show GhostBox on this machine alone (``ghostbox demo``)."""

from __future__ import annotations

import click
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from ghostbox import demo as demonstration
from ghostbox.cli import show
from ghostbox.cli.context import Context
from ghostbox.cli.key_options import key_option
from ghostbox.cli.output import Stages, emit, output_options
from ghostbox.demo import DemoResult
from ghostbox.units import format_bytes


@click.command(
    epilog="""\b
Examples:
  ghostbox demo           two donors and a VM on this machine; the VM runs on
  ghostbox demo --json    the same, with the result as JSON
  ghostbox demo --down    remove the VM and its donors
"""
)
@click.option("--down", is_flag=True, help="Remove the demo's VM and its donors.")
@key_option("vm.name", default=demonstration.VM_NAME, show_default=True, expose_value=True)
@output_options
@click.pass_obj
def demo(context: Context, /, down: bool, name: str, output: str) -> int:
    """Show GhostBox on this machine alone: a VM on the memory of two donors, which a program in it fills and checks."""
    stages = Stages()
    if down:
        demonstration.tear_down(context.paths, stages, name)
        return 0
    result = demonstration.run(context.config, context.paths, stages, name)
    emit(result, output, lambda: _summary(result))
    return 1 if result.problems else 0


def _summary(result: DemoResult) -> RenderableType:
    good = not result.problems
    verdict = ("every byte came back right", "bold green") if good else ("this is not right", "bold red")
    rows: list[tuple[str, object]] = [
        (
            "checked",
            Text.assemble(
                f"{format_bytes(result.bytes_checked)} on a cache of {format_bytes(result.cache_bytes)}: ", verdict
            ),
        ),
        *(("problem", Text(problem, "red")) for problem in result.problems),
        ("went out", f"{format_bytes(result.traffic.written_bytes)} to the donors{_way(result)}"),
        ("came back", f"{format_bytes(result.traffic.read_bytes)}, {result.traffic.fetched_pages} pages waited for"),
        ("rates", _rates(result)),
        ("donors hold", ", ".join(f"{donor} {format_bytes(held)}" for donor, held in result.donor_bytes.items())),
        ("memory tiers", ", ".join(f"node {nodes}: {tier}" for tier, nodes in result.tiers.items())),
        ("", ""),
        ("look around", Text.assemble((f"ghostbox shell {result.name}", "bold"), f"  or  {result.ssh_command}")),
        ("clean up", Text(f"ghostbox demo --down{_name_flag(result.name)}", "bold")),
    ]
    numa = Panel(result.numa, title="the guest's memory (numactl --hardware)", border_style="dim", expand=False)
    color = "green" if good else "red"
    return Group(numa, Panel(show.pairs(rows), title="GhostBox", border_style=color, expand=False))


def _way(result: DemoResult) -> str:
    return ", over TLS" if result.over_tls else ""


def _name_flag(name: str) -> str:
    return "" if name == demonstration.VM_NAME else f" --name {name}"


def _rates(result: DemoResult) -> str:
    fill, check = format_bytes(int(result.fill_bytes_per_s)), format_bytes(int(result.check_bytes_per_s))
    slow = " (emulated CPU)" if result.virt == "tcg" else ""
    return f"filled at {fill}/s, checked at {check}/s, {result.random_reads_per_s:,.0f} random pages/s{slow}"
