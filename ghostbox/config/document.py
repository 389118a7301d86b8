# SPDX-License-Identifier: MIT
"""Read a YAML file into values that know their line.

Plain words follow the core rules of YAML 1.2: ``8080:22`` is text (YAML 1.1 reads it as base 60), and so is ``no``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from ghostbox.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """Holds one ``section.key: value`` of a file."""

    name: str
    value: object
    line: int


class _Loader(yaml.SafeLoader):
    """Is SafeLoader with the plain-word rules of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - pyyaml's interface


_WORDS = (
    ("tag:yaml.org,2002:null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("tag:yaml.org,2002:float", r"[-+]?[0-9]+\.[0-9]*", list("-+0123456789")),
)
for _tag, _pattern, _first in _WORDS:
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)


def is_there(path: Path) -> bool:
    """Tell whether a file exists. A file in a directory that this user may not read counts: `read` says why."""
    try:
        return path.is_file()
    except PermissionError:
        return True


def read(path: Path) -> list[Entry]:
    """Return the entries of a configuration file, in the file's order.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or is not a mapping of sections.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "not UTF-8 text"
        raise ConfigError(f"cannot read the configuration {path}: {reason}") from err
    return parse(text, path)


def parse(text: str, where: Path | str) -> list[Entry]:
    """Return the entries of a configuration's text, in its order; ``where`` is the file that errors name.

    Raises:
        ConfigError: the text is not YAML, or not a mapping of sections.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        return [] if root is None else list(_entries(where, loader, root))
    except yaml.MarkedYAMLError as err:
        line = err.problem_mark.line + 1 if err.problem_mark else 1
        raise ConfigError(f"{where}:{line}: not valid YAML: {err.problem or err.context}") from err
    except yaml.YAMLError as err:
        raise ConfigError(f"{where}: not valid YAML: {err}") from err
    finally:
        loader.dispose()


def compose(text: str) -> yaml.Node | None:
    """Return the tree of a text that `parse` reads; each node has its line numbers."""
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def scalar(text: str) -> object:
    """Return the value of a word, as in a file: ``3`` is a number, ``[a, b]`` a list, ``null`` None.

    Raises:
        ConfigError: the word is not YAML.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else loader.construct_object(node, deep=True)
    except yaml.YAMLError as err:
        raise ConfigError(f"'{text}' is not a value: not valid YAML") from err
    finally:
        loader.dispose()


def _entries(path: Path | str, loader: _Loader, root: yaml.Node) -> Iterator[Entry]:
    for section, node in _pairs(path, root, "the configuration"):
        if node.tag == "tag:yaml.org,2002:null":
            continue
        for key, value in _pairs(path, node, f"'{section}'"):
            constructed = loader.construct_object(value, deep=True)
            yield Entry(f"{section}.{key}", constructed, value.start_mark.line + 1)


def _pairs(path: Path | str, node: yaml.Node, what: str) -> list[tuple[str, yaml.Node]]:
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(
            f"{path}:{node.start_mark.line + 1}: {what} is not a group of keys",
            hint="write 'section:' and below it, indented, 'key: value'",
        )
    seen: set[str] = set()
    for key, _ in node.value:
        if str(key.value) in seen:
            raise ConfigError(f"{path}:{key.start_mark.line + 1}: '{key.value}' stands there twice")
        seen.add(str(key.value))
    return [(str(key.value), value) for key, value in node.value]
