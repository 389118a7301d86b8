# SPDX-License-Identifier: MIT
"""Change single keys in the text of a configuration file; its comments and the order of its keys stay.

The text is changed line by line if a key stands on lines of its own below its section. If it does not (a section is
written as ``vm: {cpus: 2}``, or has an anchor), the whole file is written anew with the same values, without its
comments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from ghostbox.config import document
from ghostbox.errors import ConfigError

_INDENT = "  "


def rewritten(text: str, changes: Mapping[str, Any], removed: Sequence[str] = ()) -> str:
    """Return a configuration's text with other values.

    Args:
        text: YAML that `document.parse` reads.
        changes: new values by dotted key, as plain data.
        removed: dotted keys to take out; a key that is missing is no error.
    """
    wanted = {entry.name: entry.value for entry in document.parse(text, "the definition") if entry.name not in removed}
    wanted.update(changes)
    changed = text if not text or text.endswith("\n") else text + "\n"
    try:
        for name in removed:
            changed = _without_value(changed, name)
        for name, value in changes.items():
            changed = _with_value(changed, name, value)
        found = {entry.name: entry.value for entry in document.parse(changed, "the definition")}
    except (ConfigError, _Unusual):
        found = {}
    return changed if found == wanted else _rewritten(text, wanted)


class _Unusual(Exception):
    """Is raised for a text that cannot be changed line by line."""


def _rewritten(text: str, values: Mapping[str, Any]) -> str:
    """Write all values, behind the comment at the beginning of the file."""
    lines = text.splitlines(keepends=True)
    n_opening = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, {})[key] = value
    parts = [
        f"{section}:\n" + "".join(_line(key, value) for key, value in found.items())
        for section, found in sections.items()
    ]
    return "".join([*lines[:n_opening], *parts])


def _line(key: str, value: Any, comment: str = "") -> str:
    return f"{_INDENT}{key}: {_flow(value)}{comment}\n"


def _flow(value: Any) -> str:
    """Return a value on one line."""
    dumped = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return dumped.removesuffix("\n...\n").removesuffix("\n")


def _with_value(text: str, name: str, value: Any) -> str:
    section_name, _, key_name = name.partition(".")
    lines = text.splitlines(keepends=True)
    section = _section(text, section_name)
    if section is None:
        gap = [f"{section_name}:\n"] if _find(_root(text), section_name) is None else []
        at = len(lines) if gap else _line_of(text, section_name) + 1
        return "".join([*lines[:at], *gap, _line(key_name, value), *lines[at:]])
    found = _find(section, key_name)
    if found is None:
        at = max(_last_line(child) for _, child in section.value) + 1
        indent = " " * section.value[0][0].start_mark.column
        return "".join([*lines[:at], _line(key_name, value).replace(_INDENT, indent, 1), *lines[at:]])
    key, old = found
    first, last = key.start_mark.line, _last_line(old)
    comment = _comment(lines[last], old) if first == last else ""
    indent = " " * key.start_mark.column
    return "".join([*lines[:first], _line(key_name, value, comment).replace(_INDENT, indent, 1), *lines[last + 1 :]])


def _without_value(text: str, name: str) -> str:
    section_name, _, key_name = name.partition(".")
    section = _section(text, section_name)
    found = None if section is None else _find(section, key_name)
    if found is None or section is None:
        return text
    lines = text.splitlines(keepends=True)
    key, value = found
    first, last = key.start_mark.line, _last_line(value)
    if len(section.value) == 1:
        first = next(
            node.start_mark.line for node, child in _root(text).value if child is section or node.value == section_name
        )
    return "".join(lines[:first] + lines[last + 1 :])


def _root(text: str) -> yaml.MappingNode:
    root = document.compose(text)
    if root is None:
        return yaml.MappingNode("tag:yaml.org,2002:map", [])
    if not isinstance(root, yaml.MappingNode) or root.flow_style:
        raise _Unusual
    return root


def _section(text: str, name: str) -> yaml.MappingNode | None:
    """Return a section whose keys stand on lines of their own; None if the section is missing or empty."""
    found = _find(_root(text), name)
    if found is None or found[1].tag == "tag:yaml.org,2002:null":
        return None
    section = found[1]
    if not isinstance(section, yaml.MappingNode) or section.flow_style or not section.value:
        raise _Unusual
    return section


def _find(mapping: yaml.MappingNode, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    return next(((key, value) for key, value in mapping.value if key.value == name), None)


def _line_of(text: str, name: str) -> int:
    found = _find(_root(text), name)
    assert found is not None
    return int(found[0].start_mark.line)


def _last_line(node: yaml.Node) -> int:
    """Return the last line of a value. PyYAML ends a block where the next node begins, behind comments."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        children = [child for pair in node.value for child in (pair if isinstance(pair, tuple) else (pair,))]
        return max(_last_line(child) for child in children)
    end = node.end_mark
    at_start = end.column == 0 and end.line > node.start_mark.line
    return int(end.line - 1 if at_start else end.line)


def _comment(line: str, value: yaml.Node) -> str:
    """Return the comment behind a value on its last line; empty if there is none."""
    rest = line.rstrip("\n")[value.end_mark.column :]
    return rest if rest.strip().startswith("#") else ""
