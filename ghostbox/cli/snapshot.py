# SPDX-License-Identifier: MIT
"""Keep a stopped VM's state beside it, or in a file: ``ghostbox snapshot``, ``export`` and ``import``."""

from __future__ import annotations

from pathlib import Path

import click

from ghostbox.cli.chosen import chosen
from ghostbox.cli.context import Context
from ghostbox.cli.options import VM_NAME, confirm, yes_option
from ghostbox.cli.output import Stages, emit, output_options
from ghostbox.session import archive, snapshots
from ghostbox.session.snapshots import Snapshot
from ghostbox.terminal import Table
from ghostbox.units import format_bytes

_vm = click.argument("vm", required=False)
_first = click.argument("first", metavar="[VM]")
_second = click.argument("second", metavar="NAME", required=False)


@click.group(
    epilog="""\b
Examples:
  ghostbox snapshot create work before-upgrade
  ghostbox snapshot list work
  ghostbox snapshot restore work before-upgrade
"""
)
def snapshot() -> None:
    """Keep the state of a stopped VM's disks, and restore it."""


@snapshot.command(
    epilog="""\b
Examples:
  ghostbox down work && ghostbox snapshot create work before-upgrade

A snapshot has all disks of the VM and its definition. It takes space only as the guest overwrites data.
"""
)
@_first
@_second
@output_options
@click.pass_obj
def create(context: Context, /, first: str, second: str | None, output: str) -> None:
    """Make a snapshot of a stopped VM."""
    vm, name = _split(context, first, second)
    made = snapshots.create(vm, name, context.paths)
    emit(made, output, lambda: f"snapshot '{made.name}' of VM '{vm}' is made: {_disks(made)}")


@snapshot.command(
    "list",
    epilog="""\b
Examples:
  ghostbox snapshot list work
  ghostbox snapshot list work --json
""",
)
@_vm
@output_options
@click.pass_obj
def list_(context: Context, /, vm: str | None, output: str) -> None:
    """List the snapshots of a VM, the oldest first."""
    found = snapshots.find_all(chosen(context, vm), context.paths)
    emit(found, output, lambda: _table(found))


@snapshot.command(
    epilog="""\b
Examples:
  ghostbox snapshot restore work before-upgrade        asks first
  ghostbox snapshot restore work before-upgrade -y

To keep the present state, make another snapshot first.
"""
)
@_first
@_second
@yes_option
@output_options
@click.pass_obj
def restore(context: Context, /, first: str, second: str | None, yes: bool, output: str) -> None:
    """Restore a stopped VM's disks and definition. The disks' present content is lost."""
    vm, name = _split(context, first, second)
    confirm(f"Restore snapshot '{name}' of VM '{vm}', and lose what was written to its disks since?", yes=yes)
    found = snapshots.restore(vm, name, context.paths)
    emit(found, output, lambda: f"VM '{vm}' is as it was at {found.created_at}: {_disks(found)}")


@snapshot.command(
    epilog="""\b
Examples:
  ghostbox snapshot delete work before-upgrade
"""
)
@_first
@_second
@yes_option
@click.pass_obj
def delete(context: Context, /, first: str, second: str | None, yes: bool) -> None:
    """Remove a snapshot of a stopped VM. The disks' content stays."""
    vm, name = _split(context, first, second)
    confirm(f"Delete snapshot '{name}' of VM '{vm}'?", yes=yes)
    snapshots.delete(vm, name, context.paths)
    Stages().note(f"snapshot '{name}' of VM '{vm}' is deleted")


def _split(context: Context, first: str, second: str | None) -> tuple[str, str]:
    """Return the VM and the other word; the name of the only VM may be left out."""
    return (chosen(context, None), first) if second is None else (chosen(context, first), second)


def _disks(found: Snapshot) -> str:
    return ", ".join(f"{Path(disk).stem} {format_bytes(size)}" for disk, size in found.disks.items())


def _table(found: list[Snapshot]) -> Table:
    table = Table(box=None, header_style="bold")
    for title in ("name", "created", "disks"):
        table.add_column(title)
    for each in found:
        table.add_row(each.name, each.created_at, _disks(each))
    return table


@click.command(
    epilog="""\b
Examples:
  ghostbox export work work.ghostbox        write disks, kernel and definition into one file
  scp work.ghostbox other: && ssh other ghostbox import work.ghostbox

Snapshots, keys and addresses are not in the file. While it is written, it takes up to twice its size.
"""
)
@_first
@click.argument("second", metavar="FILE", required=False)
@output_options
@click.pass_obj
def export(context: Context, /, first: str, second: str | None, output: str) -> None:
    """Write a stopped VM into one file, which needs no image."""
    vm, word = _split(context, first, second)
    file = Path(word)
    made = archive.export(vm, file, context.config({"vm.name": vm}), context.paths, Stages())
    emit(made, output, lambda: f"VM '{vm}' is in {file}, {format_bytes(made.size_bytes)}")


@click.command(
    "import",
    epilog="""\b
Examples:
  ghostbox import work.ghostbox                 keep the name that the file has
  ghostbox import work.ghostbox --name copy     another name; keys, address and UUID are always new
  ghostbox up copy --donor tower

The whole file is checked; a damaged or cut-off file leaves nothing behind.
""",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", type=VM_NAME, metavar="NAME", help="Name of the new VM; the default is the exported VM's name.")
@output_options
@click.pass_obj
def import_(context: Context, /, file: Path, name: str | None, output: str) -> None:
    """Make a VM from a file that `export` wrote."""
    stages = Stages()
    made = archive.import_(file, name, context.paths, stages)
    emit(made, output, lambda: f"VM '{made.name}' is imported. Start it: ghostbox up {made.name} --donor HOST")
    if made.left_out:
        stages.note(f"left out, since these keys belong to the other host: {', '.join(made.left_out)}")
