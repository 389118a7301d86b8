# SPDX-License-Identifier: MIT
"""The first documents for a newcomer are short, and in all documents links and names lead to something that exists."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from helpers import project

LONGEST = {"README.md": 150, "ARCHITECTURE.md": 120, "docs/design.md": 250}
# These are users' files, or files that a program makes: the project has no such file.
_NOT_OURS = {
    "audit.jsonl",
    "audit-leases.jsonl",
    "audit-refusals.jsonl",
    "definition.yaml",
    "events.jsonl",
    "ghostbox.yaml",
    "host.json",
    "identity.json",
    "known-donors.json",
    "leases.json",
    "pairing-requests.json",
    "pairings.json",
    "snapshot.json",
    "unreleased-leases.json",
}
_NOT_OURS |= {"vm.json", "config.yaml"}
_SUFFIXES = "c|h|py|yaml|sh|json|jsonl"


@pytest.mark.parametrize("name", LONGEST)
def test_where_a_newcomer_begins_is_short(name: str) -> None:
    n_lines = len((project.ROOT / name).read_text(encoding="utf-8").splitlines())
    assert n_lines <= LONGEST[name]


def test_the_picture_is_what_its_text_draws(tmp_path: Path) -> None:
    docs = project.ROOT / "docs"
    for name in ("make_picture.py", "picture.txt"):
        shutil.copy(docs / name, tmp_path)
    subprocess.run([sys.executable, tmp_path / "make_picture.py"], check=True, timeout=60, capture_output=True)
    made = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    assert made == (docs / "picture.svg").read_text(encoding="utf-8"), "run: python docs/make_picture.py"
    assert ET.fromstring(made).tag.endswith("svg")


def test_every_link_leads_to_a_file_and_a_heading() -> None:
    wrong = []
    for path in project.documents():
        for target in _links(path):
            place, _, anchor = target.partition("#")
            found = (path.parent / place).resolve() if place else path
            if not found.exists():
                wrong.append(f"{project.shown(path)}: {target}: no such file")
            elif anchor and anchor not in _anchors(found):
                wrong.append(f"{project.shown(path)}: {target}: no such heading")
    assert not wrong, "\n".join(wrong)


def test_every_document_is_in_the_index() -> None:
    docs = project.ROOT / "docs"
    indexes = [docs / "README.md", docs / "lab" / "README.md"]
    named = {(index.parent / target.partition("#")[0]).resolve() for index in indexes for target in _links(index)}
    missing = [project.shown(path) for path in project.documents() if path not in named and path not in indexes]
    assert not [name for name in missing if name != "CHANGELOG.md"], missing


def test_every_file_that_a_document_names_exists() -> None:
    places = {project.shown(path) for path in project.files()}
    names = {place.rpartition("/")[2] for place in places} | _NOT_OURS
    wrong = []
    for path in project.documents():
        for name in re.findall(rf"`(\w[\w./-]*\.(?:{_SUFFIXES}))`", path.read_text(encoding="utf-8")):
            if not (name in places if "/" in name else name in names):
                wrong.append(f"{project.shown(path)}: no file {name}")
    for path in project.with_suffix(".c", ".h", ".py"):
        for name in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text(encoding="utf-8")):
            wrong += [] if name in places else [f"{project.shown(path)}: no document {name}"]
    assert not wrong, "\n".join(wrong)


def test_the_design_names_every_folder_of_the_pager() -> None:
    text = (project.ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)
    folders = {path.parent.name for path in project.with_suffix(".c", ".h") if "qemu/pager" in project.shown(path)}
    assert sorted(named) == sorted(folders - {"pager"})


def test_every_row_of_the_map_leads_to_a_document_and_to_files() -> None:
    text = (project.ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = text.partition("## Where to change what")[2].partition("|---|---|---|\n")[2]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if not line.startswith("| **")]
    assert rows
    wrong = []
    for row in rows:
        files = re.findall(r"`([\w./-]+)`", row[-1])
        if len(row) != 3 or not row[1].startswith("["):
            wrong.append(f"{row[0]}: not a behaviour, a document and files")
        wrong += [f"{row[0]}: no file {name}" for name in files if not (project.ROOT / name).is_file()]
        wrong += [f"{row[0]}: names no file"] * (not files)
    assert not wrong, "\n".join(wrong)


def test_every_trap_that_is_cited_has_its_number_and_a_test() -> None:
    text = (project.ROOT / "docs" / "userfaultfd.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^### Trap (\d+): (.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL))
    untested = [number for number, section in sections.items() if "`tests/" not in section]
    assert not untested, f"traps without a test: {untested}"
    wrong = []
    for path in (*project.with_suffix(".c", ".h", ".py"), *project.documents()):
        for cited in re.findall(r"\b[Tt]raps? (\d+(?:(?:,| and) \d+)*)", path.read_text(encoding="utf-8")):
            wrong += [
                f"{project.shown(path)}: trap {number}"
                for number in re.findall(r"\d+", cited)
                if number not in sections
            ]
    assert not wrong, "\n".join(wrong)


def test_every_row_of_a_table_belongs_to_one_and_has_a_cell_for_each_column() -> None:
    """A row behind a blank line is shown as text."""
    wrong = []
    for path in project.documents():
        for begins, rows in _tables(path):
            n_columns = len(_cells(rows[0]))
            if len(rows) < 3 or not all(re.fullmatch(r":?-+:?", cell) for cell in _cells(rows[1])):
                wrong.append(f"{project.shown(path)}:{begins}: a table has a heading, a line of dashes, and rows")
            wrong += [
                f"{project.shown(path)}:{begins + at}: {len(_cells(row))} cells under {n_columns} columns"
                for at, row in enumerate(rows)
                if len(_cells(row)) != n_columns
            ]
    assert not wrong, "\n".join(wrong)


def _tables(path: Path) -> list[tuple[int, list[str]]]:
    """Return the first line's number and the rows of each table of a document."""
    found: list[tuple[int, list[str]]] = []
    in_code, before = False, ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        in_code ^= line.startswith("```")
        if not in_code and line.startswith("|"):
            if not before.startswith("|"):
                found.append((number, []))
            found[-1][1].append(line)
        before = line
    return found


def _cells(row: str) -> list[str]:
    """Return a row's cells; a bar behind a backslash is text."""
    assert row.rstrip().endswith("|"), row
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip())[1:-1]]


def _links(path: Path) -> list[str]:
    """Return the links of a document that lead into the project."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]


def _anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub makes them."""
    if path.suffix != ".md":
        return set()
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
