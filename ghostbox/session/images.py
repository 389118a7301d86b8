# SPDX-License-Identifier: MIT
"""The image a VM stands on, built when it is ours and missing; and which images VMs stand on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ghostbox.images import Image, ImageStore, backing_file, load_recipe
from ghostbox.paths import Paths
from ghostbox.plan import ImagePlan


def ready(planned: ImagePlan, paths: Paths, say: Callable[[str], None]) -> Image:
    """Return the planned image; build it first if it is not there.

    Raises:
        ImageError: it cannot be built.
        NotFound: it was deleted since it was planned.
    """
    store = ImageStore(paths.images)
    if not planned.to_build:
        return store.get(planned.name)
    return store.build(load_recipe(), say, name=planned.name, in_use=in_use(paths))


def in_use(paths: Paths) -> list[Path]:
    """Return the base disks that VMs' overlays stand on."""
    disks = sorted((paths.state / "vms").glob("*/disk.qcow2"))
    found = [backing_file(disk) for disk in disks]
    return [base for base in found if base is not None]
