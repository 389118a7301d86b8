# SPDX-License-Identifier: MIT
"""Find the image that a VM stands on.

Once the VM has a disk, that is the image under the disk. Before, it is the image that the VM names; an image that
GhostBox makes is built if it is missing. A disk keeps its image when a newer image of the same name is built: over
another base the disk's content would be garbage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ghostbox.config import Config
from ghostbox.errors import NotFound
from ghostbox.images import Image, ImageStore, Recipe, customized, load_recipe
from ghostbox.paths import Paths
from ghostbox.plan.plan import BootPlan, ImagePlan, VmPlan


def find(config: Config, paths: Paths) -> ImagePlan:
    """Return the image of the VM that ``config`` describes, or how it will be built.

    Raises:
        NotFound: there is no image of that name, and GhostBox has no recipe for it.
        ImageError: the image is damaged.
    """
    store, name = ImageStore(paths.images), config.vm.image
    under = store.under(paths.vm(config.vm.name).disk)
    if under is not None:
        return describe(under)
    recipe = customized(load_recipe(), config.image.suite, config.image.packages)
    try:
        image = store.get(name)
    except NotFound:
        if name != recipe.name:
            raise
        return _to_build(recipe, config, paths)
    outdated = (image.kind, name) == ("built", recipe.name) and image.recipe_hash != recipe.hash
    return dataclasses.replace(describe(image), outdated=outdated)


def _to_build(recipe: Recipe, config: Config, paths: Paths) -> ImagePlan:
    where = paths.images / recipe.name
    return ImagePlan(
        name=recipe.name,
        disk=where / "disk.qcow2",
        boot=BootPlan(where / "vmlinux", where / "initrd.img", recipe.kernel_args),
        virtual_bytes=recipe.disk_bytes,
        to_build=True,
        suite=config.image.suite,
        packages=config.image.packages,
    )


def ready(plan: VmPlan, paths: Paths, say: Callable[[str], None]) -> Image:
    """Return the planned image; build it first if it is missing.

    Raises:
        ImageError: the image cannot be built.
        NotFound: the image was deleted after the plan was made.
    """
    store = ImageStore(paths.images)
    under = store.under(plan.files.disk)
    if under is not None:
        return under
    if not plan.image.to_build:
        return store.get(plan.image.name)
    recipe = customized(load_recipe(), plan.image.suite, plan.image.packages)
    return store.build(recipe, say, name=plan.image.name)


def notes(image: ImagePlan) -> tuple[str, ...]:
    """Return notes on the image, to be shown before the VM is made."""
    if not image.outdated:
        return ()
    return (
        f"note: image '{image.name}' was built from another recipe than the present one",
        "      to build the present one, for VMs made from then on: ghostbox image build",
    )


def describe(image: Image) -> ImagePlan:
    """Return what a plan says of an image."""
    return ImagePlan(
        image.name, image.disk, BootPlan(image.kernel, image.initrd, image.kernel_args), image.virtual_bytes
    )
