# SPDX-License-Identifier: MIT
"""A file that a linter has found clean is read again if it, or anything that its answer depends on, has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import linted, project
from helpers.linted import Clean


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(project, "ROOT", tmp_path)
    monkeypatch.setattr(linted, "PLACE", tmp_path / ".bootstrap/lint")
    (tmp_path / ".bootstrap").mkdir()
    for name in ("a.c", "b.c", "a.h", "lint"):
        (tmp_path / name).write_text(name)
    return tmp_path


def unknown(tree: Path, *words: str) -> list[str]:
    found = Clean(tree / "lint", words, [tree / "a.h"]).unknown([tree / "a.c", tree / "b.c"])
    return [file.name for file in found]


def test_only_what_was_noted_is_clean(tree: Path) -> None:
    assert unknown(tree) == ["a.c", "b.c"]
    Clean(tree / "lint", [], [tree / "a.h"]).note([tree / "a.c"])
    assert unknown(tree) == ["b.c"]
    assert unknown(tree, "--more") == ["a.c", "b.c"]


@pytest.mark.parametrize(("changed", "expected"), [("a.c", ["a.c"]), ("a.h", ["a.c", "b.c"]), ("lint", ["a.c", "b.c"])])
def test_what_has_changed_is_not(tree: Path, changed: str, expected: list[str]) -> None:
    Clean(tree / "lint", [], [tree / "a.h"]).note([tree / "a.c", tree / "b.c"])
    assert unknown(tree) == []
    text = (tree / changed).read_text()
    (tree / changed).write_text("another text")
    assert unknown(tree) == expected
    if changed != "lint":  # the program is known by its time
        (tree / changed).write_text(text)
        assert unknown(tree) == []


def test_notes_that_have_become_many_go(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linted, "_KEPT", 1)
    for _ in range(2):
        Clean(tree / "lint", [], [tree / "a.h"]).note([tree / "a.c", tree / "b.c"])
    (tree / "b.c").write_text("another text")
    Clean(tree / "lint", [], [tree / "a.h"]).note([tree / "b.c"])
    assert unknown(tree) == ["a.c"]


def test_without_the_directory_of_bootstrap_nothing_is_kept(tree: Path) -> None:
    (tree / ".bootstrap").rmdir()
    Clean(tree / "lint", [], [tree / "a.h"]).note([tree / "a.c"])
    assert list(tree.glob(".boot*")) == []
    assert unknown(tree) == ["a.c", "b.c"]
