# SPDX-License-Identifier: MIT
"""--help of each C program lists each of its options, and so do the documents."""

from __future__ import annotations

import re
import subprocess

import pytest

from ghostbox import paths
from helpers import project

PROGRAMS = {"ghostbox-memserver": "docs/reference/memserver.md", "ghostbox-pager": "docs/reference/pager.md"}


def help_of(program: str) -> str:
    done = subprocess.run([paths.find().native / program, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def options_of(text: str) -> set[str]:
    """Return the options that a --help describes."""
    return set(re.findall(r"^  (--[\w-]+)", text, re.MULTILINE))


def defaults_of(text: str) -> dict[str, str]:
    """Return the default that --help names for an option."""
    entries = re.split(r"^  (?=--)", text.partition("\nFor tests:")[0], flags=re.MULTILINE)[1:]
    found = ((entry.split()[0], re.search(r"\((?:[^()]*,\s+)?default\s+([^\s()]+)\)\s*$", entry)) for entry in entries)
    return {name: match[1] for name, match in found if match is not None}


def documented(program: str) -> str:
    """Return the document of a program's options."""
    return (project.ROOT / PROGRAMS[program]).read_text(encoding="utf-8")


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_document_names_every_option_and_no_other(program: str) -> None:
    options = options_of(help_of(program))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", documented(program)))
    assert options - named == set(), "the document lacks options"
    assert named - options == set(), "the document names options that the program does not have"


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_document_says_the_defaults_of_the_program(program: str) -> None:
    rows = re.findall(r"^\| `(--[\w-]+)` \| [^|]* \| ([^|]*) \|", documented(program), re.MULTILINE)
    documented_defaults = {name: default.strip(" `") for name, default in rows}
    defaults = defaults_of(help_of(program))
    assert len(defaults) > 5
    assert {name: documented_defaults.get(name) for name in defaults} == defaults


@pytest.mark.parametrize("program", PROGRAMS)
def test_nothing_behind_help_or_version_is_read(program: str) -> None:
    for option in ("--help", "--version"):
        argv = [paths.find().native / program, option, "--no-such-option"]
        assert subprocess.run(argv, capture_output=True, check=False).returncode == 0


def test_options_for_tests_are_listed_apart() -> None:
    for_users, _, for_tests = help_of("ghostbox-pager").partition("\nFor tests:\n")
    assert options_of(for_tests) == {"--hide-features", "--fifo", "--libnbd", "--no-seccomp"}
    assert not options_of(for_users) & options_of(for_tests)
