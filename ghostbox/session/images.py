# SPDX-License-Identifier: MIT
"""The image a VM stands on, built when it is ours and missing."""

from __future__ import annotations

from collections.abc import Callable

from ghostbox.images import Image, ImageStore, load_recipe
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
    return store.build(load_recipe(), say, name=planned.name)
