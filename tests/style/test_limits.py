# SPDX-License-Identifier: MIT
"""Files and functions are small enough to read, and each file names its licence."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from helpers import project

FILE_LINES = 600
FUNCTION_LINES = 60
_SPDX = "SPDX-License-Identifier"
_LICENSED = (".py", ".c", ".h", ".sh", ".S", ".ld", ".toml", ".yaml", ".yml")


def test_no_file_is_longer_than_600_lines() -> None:
    long = []
    for path in project.with_suffix(".py", ".c", ".h", ".sh", ""):
        n_lines = len(path.read_text(encoding="utf-8", errors="replace").splitlines())
        if n_lines > FILE_LINES:
            long.append(f"{project.shown(path)}: {n_lines} lines")
    assert not long, "\n".join(long)


def test_no_python_function_is_longer_than_60_lines() -> None:
    long = []
    for path in project.with_suffix(".py"):
        for name, line, n_lines in _python_functions(path):
            if n_lines > FUNCTION_LINES:
                long.append(f"{project.shown(path)}:{line}: {name} has {n_lines} lines")
    assert not long, "\n".join(long)


def test_no_c_function_is_longer_than_60_lines() -> None:
    long = []
    for path in project.with_suffix(".c"):
        for line, n_lines in _c_functions(path):
            if n_lines > FUNCTION_LINES:
                long.append(f"{project.shown(path)}:{line}: {n_lines} lines")
    assert not long, "\n".join(long)


def test_every_source_has_one_licence_line_at_its_top() -> None:
    wrong = []
    for path in project.files():
        is_script = path.suffix == "" and path.name != "LICENSE" and not path.name.startswith(".")
        if path.suffix not in _LICENSED and not is_script and path.name != "meson.build":
            continue
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        top = sum(_SPDX in line for line in lines[:3])
        whole = sum(bool(re.match(rf"(#|//|/\*|--) {_SPDX}", line)) for line in lines)
        if path.name != "pyproject.toml" and (top != 1 or whole != 1):
            wrong.append(project.shown(path))
    assert not wrong, "no, or more than one, SPDX line: " + ", ".join(wrong)


def _python_functions(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, line and length (without docstring, decorators and signature) of each function."""
    for node in ast.walk(project.syntax(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body and node.end_lineno is not None:
                yield node.name, node.lineno, node.end_lineno - body[0].lineno + 1


def _c_functions(path: Path) -> Iterator[tuple[int, int]]:
    """Yield line and length of each function: its body is between a '{' and a '}' in the first column."""
    start = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line == "{":
            start = number
        elif line == "}" and start is not None:
            yield start - 1, number - start - 1
            start = None
