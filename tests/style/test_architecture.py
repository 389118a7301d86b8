# SPDX-License-Identifier: MIT
"""Each promise of the documents names a test that exists."""

from __future__ import annotations

import re

from helpers import project

# Tables of failures have such a row for another project's promise, which no test here shows.
_OTHERS_PROMISES = {"libvirt's own promise"}


def test_every_test_that_a_document_names_exists() -> None:
    wrong = []
    for document in project.documents():
        text = document.read_text(encoding="utf-8")
        for place, name in re.findall(r"(tests/[\w/-]+\.\w+)(?:::(\w+))?", text):
            path = project.ROOT / place
            if not path.is_file():
                wrong.append(f"{project.shown(document)}: {place}: no such file")
            elif name and not re.search(rf"\b{name}\b", path.read_text(encoding="utf-8")):
                wrong.append(f"{project.shown(document)}: {place}: no test {name}")
        wrong += [f"{project.shown(document)}: {name}: of which file?" for name in re.findall(r"`(::\w+)`", text)]
    assert not wrong, "\n".join(wrong)


def test_every_promise_has_a_test() -> None:
    rows = _rows("docs/promises.md", "promise")
    assert len(rows) > 80
    wrong = [row for row in rows if "`tests/" not in row]
    assert not wrong, "\n".join(wrong)


def test_every_attack_has_a_test_or_is_said_to_be_open() -> None:
    lines = (project.ROOT / "docs/SECURITY.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ") and "shown by" not in line]
    assert len(rows) > 25
    wrong = []
    for attack, today, shown in rows:
        is_open = shown == "open" and today.startswith("**yes**")
        if not (is_open or "`tests/" in shown or shown == "not ours"):
            wrong.append(f"{attack}: neither a test nor open")
    assert not wrong, "\n".join(wrong)


def test_whatever_dies_or_runs_out_has_a_test() -> None:
    rows = [*_rows("docs/failure-model.md", "what dies"), *_rows("docs/failure-model.md", "what is looked at")]
    assert len(rows) > 25
    wrong = [row for row in rows if "`tests/" not in row and not any(words in row for words in _OTHERS_PROMISES)]
    assert not wrong, "\n".join(wrong)


def _rows(place: str, first_title: str) -> list[str]:
    """Return the rows of the document's table whose first column has this title."""
    lines = iter((project.ROOT / place).read_text(encoding="utf-8").splitlines())
    for line in lines:
        if line.startswith(f"| {first_title} |"):
            next(lines)
            break
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append(line)
    return rows
