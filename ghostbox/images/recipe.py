# SPDX-License-Identifier: MIT
"""Read the recipe of a guest image (``images/debian.yaml``)."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ghostbox import paths
from ghostbox.errors import ImageError, UsageError
from ghostbox.units import parse_bytes

_KEYS = {
    "name",
    "suite",
    "components",
    "disk_size",
    "build_space",
    "packages",
    "kernel_args",
    "masked_units",
    "files",
    "initrd_modules",
    "commands",
}


@dataclass(frozen=True)
class RecipeFile:
    """Is a text file to put into the guest; ``mode`` is its permission bits."""

    path: str
    text: str
    mode: int


@dataclass(frozen=True)
class Recipe:
    """Describes a guest image to build. Images with an equal ``hash`` are equal, except for newer package versions."""

    name: str
    suite: str
    components: tuple[str, ...]
    disk_bytes: int
    build_space_bytes: int
    packages: tuple[str, ...]
    kernel_args: str
    masked_units: tuple[str, ...]
    files: tuple[RecipeFile, ...]
    initrd_modules: tuple[str, ...]
    commands: tuple[str, ...]
    export_script: Path
    hash: str


def load_recipe(path: Path | None = None) -> Recipe:
    """Read a recipe; None means the recipe that comes with GhostBox.

    Raises:
        ImageError: the file is missing or no YAML, or a key is unknown, missing or wrong.
    """
    path = path or paths.data_file("images/debian.yaml")
    export_script = paths.data_file("images/export.sh")
    try:
        text = path.read_text()
        digest = hashlib.sha256(text.encode() + b"\0" + export_script.read_bytes()).hexdigest()
        data = yaml.safe_load(text)
    except OSError as err:
        raise ImageError(f"cannot read the image recipe {path}: {err.strerror}") from err
    except yaml.YAMLError as err:
        raise ImageError(f"image recipe {path} is not YAML", why=str(err)) from err
    _check_keys(data, path)
    try:
        return _recipe_from(data, export_script, digest)
    except (TypeError, ValueError, KeyError, UsageError) as err:
        raise ImageError(f"image recipe {path} is wrong", why=str(err)) from err


def customized(recipe: Recipe, suite: str, packages: Sequence[str]) -> Recipe:
    """Return ``recipe`` for another Debian release and with further packages (``image.suite``, ``image.packages``).

    If these change nothing, the recipe itself is returned, with its hash; order and repetition do not matter.
    """
    further = tuple(sorted(set(packages) - set(recipe.packages)))
    if suite == recipe.suite and not further:
        return recipe
    digest = hashlib.sha256("\0".join((recipe.hash, suite, *further)).encode()).hexdigest()
    return dataclasses.replace(recipe, suite=suite, packages=(*recipe.packages, *further), hash=digest)


def _check_keys(data: Any, path: Path) -> None:
    if not isinstance(data, dict):
        raise ImageError(f"image recipe {path} is not a mapping")
    unknown, missing = sorted(set(data) - _KEYS), sorted(_KEYS - set(data))
    if unknown:
        raise ImageError(f"image recipe {path}: unknown key '{unknown[0]}'")
    if missing:
        raise ImageError(f"image recipe {path}: key '{missing[0]}' is missing")


def _recipe_from(data: dict[str, Any], export_script: Path, digest: str) -> Recipe:
    return Recipe(
        name=str(data["name"]),
        suite=str(data["suite"]),
        components=tuple(data["components"]),
        disk_bytes=parse_bytes(data["disk_size"]),
        build_space_bytes=parse_bytes(data["build_space"]),
        packages=tuple(data["packages"]),
        kernel_args=str(data["kernel_args"]),
        masked_units=tuple(data["masked_units"]),
        files=tuple(
            RecipeFile(entry["path"], entry["text"], int(str(entry.get("mode", "644")), 8)) for entry in data["files"]
        ),
        initrd_modules=tuple(data["initrd_modules"]),
        commands=tuple(data["commands"]),
        export_script=export_script,
        hash=digest,
    )
