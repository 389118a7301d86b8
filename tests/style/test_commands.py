# SPDX-License-Identifier: MIT
"""Every command explains itself, and a test tries each of its options."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import click
import pytest

from ghostbox.cli import main
from helpers import commands, project


@pytest.mark.parametrize("name", sorted(main.commands()))
def test_command_can_be_loaded(name: str) -> None:
    assert main.cli.get_command(click.Context(main.cli), name) is not None


def test_every_help_has_an_example_and_every_option_a_text() -> None:
    wrong = []
    for found in commands.walk():
        shown = " ".join(("ghostbox", *found.words))
        context = click.Context(found.command, info_name=shown)
        text = found.command.get_help(context)
        if "Example" not in text or "ghostbox" not in text.partition("Example")[2]:
            wrong.append(f"{shown} --help has no example")
        wrong += [f"{shown}: {option.opts[-1]} has no help" for option in found.options() if not option.help]
    assert not wrong, "\n".join(wrong)


def test_examples_in_help_are_real() -> None:
    wrong = []
    for found in commands.walk():
        text = found.command.epilog or ""
        for line in re.findall(r"^\s+(ghostbox .*?)(?:\s{2,}.*)?$", text, re.MULTILINE):
            wrong += _unknown_words(line)
    assert not wrong, "\n".join(wrong)


def test_every_option_is_exercised_by_a_test() -> None:
    """A test file (with its helpers) must have both the command and the option as words of their own."""
    vocabularies = [_words(path) for path in project.with_suffix(".py") if _is_test(path)]
    untried = []
    for found in commands.walk():
        names = set(found.words[-1:]) | {alias for alias, name in main.ALIASES.items() if (name,) == found.words}
        for option in found.options():
            spellings = {*option.opts, *option.secondary_opts}
            if not any(spellings & words and (not names or names & words) for words in vocabularies):
                untried.append(" ".join(("ghostbox", *found.words, option.opts[-1])))
    assert not untried, "no test uses\n" + "\n".join(untried)


@pytest.mark.parametrize("document", [project.shown(path) for path in project.documents()])
def test_every_command_and_option_in_the_documents_exists(document: str) -> None:
    text = (project.ROOT / document).read_text(encoding="utf-8")
    fenced = "\n".join(re.findall(r"```.*?\n(.*?)```", text, re.DOTALL))
    indented = "\n".join(re.findall(r"^    (ghostbox .*)$", text, re.MULTILINE))
    lines = [line.removeprefix("$ ") for line in (raw.strip() for raw in f"{fenced}\n{indented}".splitlines())]
    lines += [" ".join(words.split()) for words in re.findall(r"`((?:\.venv/bin/)?ghostbox [a-z][^`]*)`", text)]
    calls = [line.removeprefix("sudo ").removeprefix(".venv/bin/") for line in lines]
    wrong = [problem for call in calls if call.startswith("ghostbox ") for problem in _unknown_words(call)]
    assert not wrong, "\n".join(wrong)


def _unknown_words(line: str) -> list[str]:
    """Return the unknown commands and options of an example call."""
    words = shlex.split(line.replace("…", "").replace("[", "").replace("]", ""), comments=True)[1:]
    words = words[: words.index("--")] if "--" in words else words
    options = [word.partition("=")[0] for word in words if word.startswith("-") and word != "-"]
    found = commands.find(words) if words and not words[0].startswith("-") else next(commands.walk())
    if found is None and words and (hidden := main.cli.get_command(click.Context(main.cli), words[0])) is not None:
        found = commands.Found((words[0],), hidden)
    if found is None:
        return [f"no such command: {line}"]
    known = {"-h", "--help", "--version"}
    known |= {name for option in found.command.params for name in (*option.opts, *option.secondary_opts)}
    return [f"{line}: no option {option}" for option in options if option not in known]


def _is_test(path: Path) -> bool:
    return path.name.startswith("test_") and "/tests/style/" not in str(path)


def _words(path: Path) -> set[str]:
    """Return the words of all string constants in a test file and the helpers that it imports."""
    used = [path]
    for imported, _ in project.imports(path):
        if imported.startswith("helpers."):
            helper = project.ROOT / "tests" / Path(*imported.split(".")[:2]).with_suffix(".py")
            used += [helper] if helper.is_file() else []
    return {word for each in used for word in _constants(each)}


@cache
def _constants(path: Path) -> frozenset[str]:
    texts = [
        node.value
        for node in ast.walk(project.syntax(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    return frozenset(word for text in texts for word in re.split(r"[\s=]+", text))
