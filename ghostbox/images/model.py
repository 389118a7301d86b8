# SPDX-License-Identifier: MIT
"""Describe a finished image."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ghostbox.errors import UsageError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Image:
    """A guest image.

    ``kernel`` None means that the firmware boots the disk. ``recipe_hash`` is the file's SHA-256 if the image was
    imported; ``created_at`` is UTC, ISO 8601.
    """

    name: str
    disk: Path
    kernel: Path | None
    initrd: Path | None
    kernel_args: str
    virtual_bytes: int
    recipe_hash: str
    created_at: str
    kind: Literal["built", "imported"]

    @property
    def directory(self) -> Path:
        """Return the directory that holds only this image's files."""
        return self.disk.parent

    def to_json(self) -> dict[str, Any]:
        """Return plain data, paths as strings."""
        return {
            "name": self.name,
            "kind": self.kind,
            "disk": str(self.disk),
            "kernel": None if self.kernel is None else str(self.kernel),
            "initrd": None if self.initrd is None else str(self.initrd),
            "kernel_args": self.kernel_args,
            "virtual_bytes": self.virtual_bytes,
            "recipe_hash": self.recipe_hash,
            "created_at": self.created_at,
        }


def image_from_json(data: dict[str, Any]) -> Image:
    """Return the image that ``Image.to_json`` described."""
    return Image(
        name=data["name"],
        disk=Path(data["disk"]),
        kernel=None if data["kernel"] is None else Path(data["kernel"]),
        initrd=None if data["initrd"] is None else Path(data["initrd"]),
        kernel_args=data["kernel_args"],
        virtual_bytes=int(data["virtual_bytes"]),
        recipe_hash=data["recipe_hash"],
        created_at=data["created_at"],
        kind=data["kind"],
    )


def check_name(name: str) -> str:
    """Return ``name`` if it may name an image.

    Raises:
        UsageError: the name has other characters than lower-case letters, digits, ``.``, ``_`` and ``-``.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' cannot name an image",
            hint="use lower-case letters, digits, '.', '_' and '-'; begin with a letter or digit",
        )
    return name
