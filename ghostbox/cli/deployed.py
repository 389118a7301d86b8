# SPDX-License-Identifier: MIT
"""Start, show and stop a deployed memserver, on its own machine (``ghostbox deployed``, which `donor deploy` runs)."""

from __future__ import annotations

import click

from ghostbox.cli.context import Context
from ghostbox.cli.memserver import memserver
from ghostbox.cli.output import emit, output_options
from ghostbox.memserver import deployed as deployed_memserver
from ghostbox.memserver.deployed import Shown

_NAME = click.option("--name", required=True, help="Name of the memserver.")
_BY = click.option(
    "--by",
    type=click.Choice(["system", "user", "background"]),
    required=True,
    help="Which systemd starts it; or nothing, once and in the background.",
)


@click.group(hidden=True)
def deployed() -> None:
    """Do on a donor what `ghostbox donor deploy` has it do."""


@deployed.command(context_settings={"ignore_unknown_options": True})
@_NAME
@_BY
@click.argument("options", nargs=-1, type=click.UNPROCESSED)
@output_options
@click.pass_obj
def start(context: Context, /, name: str, by: str, options: tuple[str, ...], output: str) -> None:
    """Start the memserver; one that runs hands its leases over."""
    memserver.make_context("memserver", list(options), parent=click.get_current_context())
    context.config()  # this checks the options' values
    found = deployed_memserver.start(name, options, context.paths, scope=deployed_memserver.scope_of(by))
    emit(found, output, lambda: _line(found))


@deployed.command()
@_NAME
@output_options
@click.pass_obj
def show(context: Context, /, name: str, output: str) -> None:
    """Show how the memserver does."""
    found = deployed_memserver.show(name, context.paths)
    emit(found, output, lambda: _line(found))


@deployed.command()
@_NAME
@_BY
@output_options
@click.pass_obj
def stop(context: Context, /, name: str, by: str, output: str) -> None:
    """Stop the memserver, and remove its service; refused while hosts hold leases."""
    found = deployed_memserver.stop(name, context.paths, scope=deployed_memserver.scope_of(by))
    emit(found, output, lambda: _line(found))


def _line(found: Shown) -> str:
    state = f"runs at {found.address}, {found.leases} leases held" if found.running else "does not run"
    return f"memserver '{found.name}' {state}"
