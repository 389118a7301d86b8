# SPDX-License-Identifier: MIT
"""Guest images: built from Debian's packages or imported; VMs use overlays, the base is never written."""

from ghostbox.images.imports import backing_file
from ghostbox.images.model import Image
from ghostbox.images.recipe import Recipe, customized, load_recipe
from ghostbox.images.store import ImageStore

__all__ = ["Image", "ImageStore", "Recipe", "backing_file", "customized", "load_recipe"]
