# SPDX-License-Identifier: MIT
"""Build guest images from Debian's packages, or import them; VMs use overlays, so an image is never written to."""

from ghostbox.images.imports import backing_file
from ghostbox.images.model import Image
from ghostbox.images.recipe import Recipe, customized, load_recipe
from ghostbox.images.store import ImageStore

__all__ = ["Image", "ImageStore", "Recipe", "backing_file", "customized", "load_recipe"]
