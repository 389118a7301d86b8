# SPDX-License-Identifier: MIT
"""List the project's own files for the style tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_DIRECTORIES = ("ghostbox", "tests", "common", "memserver", "qemu", "images", "docs", ".ci")
_SKIPPED = {"__pycache__", "native", "data", "seeds", "golden"}
_BINARY = {".pyc", ".png", ".qcow2", ".bin", ".so", ".o", ".xz"}


@cache
def files() -> tuple[Path, ...]:
    """Return every text file of the project."""
    found = [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".git")]
    for name in _DIRECTORIES:
        found += [path for path in (ROOT / name).rglob("*") if path.is_file() and _wanted(path)]
    return tuple(sorted(found))


def _wanted(path: Path) -> bool:
    return path.suffix not in _BINARY and not _SKIPPED.intersection(path.relative_to(ROOT).parts)


def with_suffix(*suffixes: str) -> list[Path]:
    """Return the files of these kinds (``.py``)."""
    return [path for path in files() if path.suffix in suffixes]


def documents() -> list[Path]:
    """Return the documents: those that a newcomer reads first, and all below docs/."""
    return [path for path in with_suffix(".md") if path.parent == ROOT or ROOT / "docs" in path.parents]


def package_modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    modules = {}
    for path in with_suffix(".py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] == "ghostbox":
            modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


@cache
def syntax(path: Path) -> ast.Module:
    """Return the syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yield each imported module (``from a import b`` gives ``a.b``, which may be too fine) with its line."""
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            for alias in node.names:
                yield f"{node.module}.{alias.name}", node.lineno


def shown(path: Path) -> str:
    """Return a path in the form that messages show."""
    return str(path.relative_to(ROOT))
