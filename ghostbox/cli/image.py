# SPDX-License-Identifier: MIT
"""Build, import, list and delete guest images (``ghostbox image``)."""

from __future__ import annotations

from pathlib import Path

import click

from ghostbox.cli.context import Context
from ghostbox.cli.options import confirm, yes_option
from ghostbox.cli.output import Stages, emit, output_options
from ghostbox.images import Image, ImageStore, backing_file, customized, load_recipe
from ghostbox.terminal import Table
from ghostbox.units import format_bytes


def _store(context: Context) -> ImageStore:
    return ImageStore(context.paths.images)


def _bases_in_use(context: Context) -> set[Path]:
    """Return the images that VMs' disks stand on."""
    found = (backing_file(disk) for disk in (context.paths.state / "vms").glob("*/disk.qcow2"))
    return {base for base in found if base is not None}


def _table(images: list[Image]) -> Table:
    table = Table(box=None, header_style="bold")
    for title in ("name", "kind", "boot", "size", "created", "disk"):
        table.add_column(title)
    for image in images:
        boot = "firmware" if image.kernel is None else "kernel"
        size = format_bytes(image.virtual_bytes)
        table.add_row(image.name, image.kind, boot, size, image.created_at[:19], str(image.disk))
    return table


@click.group(
    epilog="""\b
Examples:
  ghostbox image build
  ghostbox image import debian-13-genericcloud-amd64.qcow2 --name trixie
  ghostbox image list
"""
)
def image() -> None:
    """Build, import, list and delete guest images."""


@image.command(
    epilog="""\b
Examples:
  ghostbox image build                    does nothing if the image exists
  ghostbox image build --force            build again, with today's package versions
  ghostbox image build --recipe my.yaml --name mine

Without --recipe, the configuration's image.suite and image.packages are used.
"""
)
@click.option("--name", help="Name of the image; the default is the recipe's name.")
@click.option(
    "--recipe",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The recipe to build; the default is a Debian guest.",
)
@click.option("--mirror", metavar="URI", help="Debian archive to take packages from; the default is apt's own.")
@click.option("--force", is_flag=True, help="Build even if the image exists. VMs keep the image that they use.")
@output_options
@click.pass_obj
def build(
    context: Context, name: str | None, recipe: Path | None, mirror: str | None, force: bool, output: str
) -> None:
    """Make a guest image from Debian's packages."""
    loaded = load_recipe(recipe)
    if recipe is None:
        wanted = context.config().image
        loaded = customized(loaded, wanted.suite, wanted.packages)
    with Stages().stage("image") as stage:
        built = _store(context).build(
            loaded, stage.say, name=name, force=force, mirror=mirror, in_use=_bases_in_use(context)
        )
        stage.say(f"{built.name}, {format_bytes(built.disk.stat().st_size)}")
    emit(built, output, lambda: _table([built]))


@image.command(
    name="import",
    epilog="""\b
Examples:
  ghostbox image import debian-13-genericcloud-amd64.qcow2
  ghostbox image import disk.raw --name mine --sha256 9b1e…
""",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the image; the default comes from the file's name.")
@click.option("--sha256", metavar="HEX", help="Refuse the file if its checksum differs.")
@output_options
@click.pass_obj
def import_(context: Context, file: Path, name: str | None, sha256: str | None, output: str) -> None:
    """Import FILE, a cloud image with cloud-init. Its format is qcow2 or raw; firmware boots it."""
    with Stages().stage("image") as stage:
        taken = _store(context).import_file(file, name, sha256, stage.say)
        stage.say(taken.name)
    emit(taken, output, lambda: _table([taken]))


@image.command(
    name="list",
    epilog="""\b
Examples:
  ghostbox image list
  ghostbox image list --json
""",
)
@output_options
@click.pass_obj
def list_(context: Context, output: str) -> None:
    """List the images."""
    images = _store(context).list()
    emit(images, output, lambda: _table(images) if images else "no images; make one: ghostbox image build")


@image.command(
    epilog="""\b
Examples:
  ghostbox image delete debian
  ghostbox image delete debian --yes
"""
)
@click.argument("name")
@yes_option
@output_options
@click.pass_obj
def delete(context: Context, name: str, yes: bool, output: str) -> None:
    """Delete an image that no VM uses."""
    store = _store(context)
    found = store.get(name)
    confirm(f"Delete image '{name}' ({found.disk})?", yes=yes)
    store.delete(name, _bases_in_use(context))
    emit({"deleted": name}, output, lambda: f"deleted image '{name}'")
