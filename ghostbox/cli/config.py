# SPDX-License-Identifier: MIT
"""Show the installation itself: ``ghostbox config``, ``ghostbox paths``, ``ghostbox completion``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from ghostbox.cli.context import Context
from ghostbox.cli.output import echo, emit, output_options, plain
from ghostbox.config import Config, definition, document, file_candidates, keys, load, validate_file
from ghostbox.errors import NotFound
from ghostbox.terminal import Table

_CONFIG_EXAMPLES = """\b
Examples:
  ghostbox config show --origin
  ghostbox config validate ghostbox.yaml
"""


@click.group(epilog=_CONFIG_EXAMPLES)
def config() -> None:
    """Show and check the configuration."""


@config.command(
    epilog="""\b
Examples:
  ghostbox config show
  ghostbox config show --origin --json
  ghostbox config show --vm work --origin      the definition of a VM
"""
)
@click.option("--origin", is_flag=True, help="Show where each value comes from.")
@click.option("--vm", metavar="NAME", help="Show this VM's definition instead.")
@output_options
@click.pass_obj
def show(context: Context, origin: bool, vm: str | None, output: str) -> None:
    """Show every key with its value."""
    loaded, shown = context.config(), list(keys())
    if vm is not None:
        loaded, shown = _defined(context, vm), ["vm.name", *definition.vm_keys()]
    emit(_show_data(loaded, shown, origin=origin), output, lambda: _show_table(loaded, shown, origin=origin))


def _defined(context: Context, vm: str) -> Config:
    from ghostbox import session  # imported late: the other commands here need no libvirt

    return session.defined(vm, context.paths, context.config())


def _show_data(loaded: Config, shown: Sequence[str], *, origin: bool) -> dict[str, Any]:
    values = {name: plain(loaded.written(name)) for name in shown}
    if not origin:
        return values
    return {name: {"value": value, "origin": loaded.origin(name)} for name, value in values.items()}


def _show_table(loaded: Config, shown: Sequence[str], *, origin: bool) -> Table:
    table = Table(box=None, header_style="bold")
    for title in ("key", "value", *(["origin"] if origin else [])):
        table.add_column(title)
    for name in shown:
        written = loaded.written(name)
        text = ", ".join(written) if isinstance(written, list) else str(written)
        table.add_row(name, text, *([loaded.origin(name)] if origin else []))
    return table


@config.command(
    epilog="""\b
Examples:
  ghostbox config validate
  ghostbox config validate ghostbox.yaml
"""
)
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@output_options
@click.pass_obj
def validate(context: Context, file: Path | None, output: str) -> None:
    """Check FILE, or the configuration of this directory."""
    loaded = validate_file(file) if file is not None else load({}, context.config_file)
    set_keys = [name for name in keys() if loaded.origin(name) != "default"]
    what = str(file) if file is not None else "the configuration"
    emit({"valid": True, "keys_set": set_keys}, output, lambda: f"{what} is valid: {len(set_keys)} keys set")


@config.command(
    epilog="""\b
Examples:
  ghostbox config path
"""
)
@output_options
@click.pass_obj
def path(context: Context, output: str) -> None:
    """Show the paths of the configuration files, the strongest first."""
    rows = [
        {"role": found.role, "path": str(found.path), "exists": document.is_there(found.path)}
        for found in file_candidates(context.config_file)
    ]
    table = Table(box=None, header_style="bold")
    for title in ("role", "path", "exists"):
        table.add_column(title)
    for row in rows:
        table.add_row(str(row["role"]), str(row["path"]), "yes" if row["exists"] else "no")
    emit(rows, output, lambda: table)


@click.command(
    epilog="""\b
Examples:
  ghostbox paths
  ghostbox paths --json
"""
)
@output_options
@click.pass_obj
def paths(context: Context, output: str) -> None:
    """Show the paths of programs and files."""
    found = context.paths
    data = {
        "memserver": str(found.memserver_program),
        "pager": str(found.pager_program),
        "shim": str(found.shim_library),
        "state": str(found.state),
        "runtime": str(found.runtime),
        "cache": str(found.cache),
        "images": str(found.images),
        "config": str(found.config),
    }
    table = Table(box=None, show_header=False)
    for name, place in data.items():
        table.add_row(name, place)
    emit(data, output, lambda: table)


@click.command(
    epilog="""\b
Examples:
  ghostbox completion bash > ~/.local/share/bash-completion/completions/ghostbox
  ghostbox completion zsh > ~/.zfunc/_ghostbox
  ghostbox completion fish > ~/.config/fish/completions/ghostbox.fish
"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a completion script for a shell."""
    found = get_completion_class(shell)
    if found is None:
        raise NotFound(f"no completion for the shell {shell}")
    script = found(ctx.find_root().command, {}, "ghostbox", "_GHOSTBOX_COMPLETE").source()
    echo(script)
