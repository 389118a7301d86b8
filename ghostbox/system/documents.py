# SPDX-License-Identifier: MIT
"""Let versions of GhostBox share the documents that they keep: the one rule for what a document does not explain.

A document is a file with a JSON object. It may have been written by a newer version than the one that reads it.

- ``version`` is the number of the document's form. A number that is newer than the reader's is refused, and the file
  stays as it is (`check`). A version gives its documents a new number when an older one must not go on without
  understanding what is new in them.
- Under a number that the reader knows, fields that it does not know are kept: they are written again with the entry
  that they belong to, and go when the entry goes (`Part`, `plain`).

docs/reference/state-documents.md lists the documents, and the one that is stricter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import model_validator

from ghostbox.errors import Refused

VERSION = "version"
"""The field that has the number of a document's form."""


@dataclass(frozen=True)
class Part:
    """Is the base of a dataclass in a document. ``further`` has the entry's fields that only a newer version knows.

    `dataclasses.replace` keeps ``further``; two parts that differ in it alone are equal.
    """

    further: dict[str, Any] = field(default_factory=dict, compare=False, repr=False, kw_only=True)

    @model_validator(mode="before")
    @classmethod
    def _set_apart(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return known(data, cls) | {_FURTHER: unknown(data, cls)}


_FURTHER = "further"


def known(data: Mapping[str, Any], form: type[Any]) -> dict[str, Any]:
    """Return the fields of an object that the dataclass ``form`` has."""
    names = _names(form)
    return {key: value for key, value in data.items() if key in names}


def unknown(data: Mapping[str, Any], form: type[Any]) -> dict[str, Any]:
    """Return the fields of an object that the dataclass ``form`` does not have."""
    names = _names(form)
    return {key: value for key, value in data.items() if key not in names}


def _names(form: type[Any]) -> set[str]:
    return {each.name for each in fields(form)} - {_FURTHER}


def check(document: object, file: Path, newest: int, *, number: str = VERSION) -> dict[str, Any]:
    """Return a document that this version may use and change.

    Args:
        document: what the file has.
        file: the file, for the error.
        newest: the newest form that this version knows.
        number: the field that has the number of the form; a document without the field is of the first form.

    Raises:
        Refused: a newer version wrote the document.
        ValueError: the document is no object, or its number is none.
    """
    if not isinstance(document, dict):
        raise ValueError("the whole value: it is no object")
    found = document.get(number, newest)
    if not isinstance(found, int) or isinstance(found, bool):
        raise ValueError(f"{number}: it is no whole number")
    if found > newest:
        raise Refused(
            f"{file} was written by a newer version of GhostBox: its form is {found}, this version knows {newest}",
            hint="use the newer version: an older one would lose what the file says",
        )
    return document


def plain(value: Any) -> Any:
    """Return dataclasses, and what is in them, as plain data for JSON; a part gets its further fields again."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {each.name: plain(getattr(value, each.name)) for each in fields(value) if each.name != _FURTHER}
        return {**value.further, **own} if isinstance(value, Part) else own
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(each) for each in value)
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value


def strangers(value: object, place: str = "") -> Iterator[str]:
    """Yield the place of each further field in a dataclass and in what is in it, such as ``leases.0.rack``."""
    inside: list[tuple[str, object]] = []
    if is_dataclass(value) and not isinstance(value, type):
        inside = [(each.name, getattr(value, each.name)) for each in fields(value) if each.name != _FURTHER]
    elif isinstance(value, (list, tuple)):
        inside = [(str(number), each) for number, each in enumerate(value)]
    if isinstance(value, Part):
        yield from (f"{place}{name}" for name in value.further)
    for name, each in inside:
        yield from strangers(each, f"{place}{name}.")
