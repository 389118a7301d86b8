# SPDX-License-Identifier: MIT
"""Text from outside cannot control a terminal, and no locale makes a command fail."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable

import pytest
from rich.table import Table
from rich.text import Text

from ghostbox import log, terminal
from ghostbox.cli import output
from ghostbox.terminal import PlainConsole, printable
from helpers import project

Cli = Callable[..., subprocess.CompletedProcess[str]]
HOSTILE = "\x1b]0;owned\x07\x1b[31mred \x9b2J[bold]x[/] [http://a.b/c] fe80::b:1 :warning: \u202egnp\rover"


def shown(renderable: object, **options: object) -> str:
    out = io.StringIO()
    PlainConsole(file=out, width=200, **options).print(renderable)
    return out.getvalue()


def test_control_characters_are_shown_and_newlines_stay() -> None:
    assert printable("a\tb\nc") == "a\tb\nc"
    assert printable("\x1b[2J\x9b\x7f\r\u202e") == r"\x1b[2J\x9b\x7f\x0d\u202e"


def table_of(text: str) -> Table:
    table = Table(box=None, show_header=False)
    table.add_row(text)
    return table


@pytest.mark.parametrize("wrap", [str, Text, table_of])
def test_text_from_outside_is_neither_markup_nor_a_control_sequence(wrap: Callable[[str], object]) -> None:
    text = shown(wrap(HOSTILE), force_terminal=True)
    assert "[bold]x[/] [http://a.b/c] fe80::b:1 :warning: " in text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)


def test_a_table_cuts_nothing_off_on_80_columns() -> None:
    table = terminal.Table("address", "state", "size", box=None)
    name = "fd00:1234:5678:9abc:def0:1234:5678:9abc" * 3
    table.add_row(name, "up", "123 GiB")
    out = io.StringIO()
    PlainConsole(file=out, width=80).print(table)
    first, *rows = out.getvalue().splitlines()
    assert "state" in first and "123 GiB" in rows[0]
    assert "".join(row[: first.index("state")].strip() for row in rows) == name


def test_ghostboxs_own_colours_reach_a_terminal() -> None:
    assert "\x1b[32mok" in shown(Text("ok", "green"), force_terminal=True, color_system="standard")


def test_notes_details_and_log_lines_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    stages = output.Stages(quiet=False, console=PlainConsole(file=(out := io.StringIO()), width=200))
    stages.note(HOSTILE)
    with stages.stage("donors") as stage:
        stage.say(HOSTILE)
    log.set_up(0)
    logging.getLogger("ghostbox").warning("%s", HOSTILE)
    for text in (out.getvalue(), capsys.readouterr().err):
        assert "[http://a.b/c]fe80::b:1:warning:" in "".join(text.split())
        assert "\x1b" not in text and "\x07" not in text


def test_a_hint_with_a_url_in_brackets_is_whole_and_an_escape_in_a_name_is_shown(ghostbox_cli: Cli) -> None:
    done = ghostbox_cli("donor", "info", "[http://a\x1b[2Jb]")
    assert done.returncode != 0
    assert "[http://a" in done.stderr
    assert r"\x1b[2J" in done.stderr and "\x1b" not in done.stderr


NAMES = (
    'import sys; from ghostbox import terminal; terminal.set_up_streams(); import click; click.echo("… µ │ Ж \\udcff")'
)


@pytest.mark.parametrize(
    ("locale", "expected"),
    [
        ({"LC_ALL": "C"}, "... u | Ж \\xff\n".encode()),
        ({}, "… µ │ Ж \\xff\n".encode()),
        ({"LC_ALL": "C.UTF-8"}, "… µ │ Ж \\xff\n".encode()),
        ({"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}, b"... u | \\u0416 \\xff\n"),
        ({"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "koi8-r"}, "... u │ Ж \\xff\n".encode("koi8-r")),
        ({"LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "latin-1"}, "... µ | \\u0416 \\xff\n".encode("latin-1")),
    ],
)
def test_what_an_encoding_lacks_is_written_in_another_way(locale: dict[str, str], expected: bytes) -> None:
    done = run_in(locale, "-c", NAMES)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert done.stdout == expected


@pytest.mark.parametrize("encoding", ["ascii", "koi8-r"])
def test_help_and_errors_are_written_in_every_encoding(encoding: str) -> None:
    locale = {"LC_ALL": "C", "PYTHONIOENCODING": encoding}
    helped = run_in(locale, "-m", "ghostbox", "up", "--help")
    assert helped.returncode == 0, helped.stderr
    wrong = run_in(locale, "-m", "ghostbox", "info", "Ж…µ")
    assert wrong.returncode == 2, wrong.stderr
    assert b"Traceback" not in wrong.stderr


def run_in(locale: dict[str, str], *argv: str) -> subprocess.CompletedProcess[bytes]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "PYTHONIO"))}
    env = {**kept, **locale, "PYTHONPATH": str(project.ROOT)}
    return subprocess.run([sys.executable, *argv], capture_output=True, env=env, check=False)


def test_a_box_of_rich_is_ascii_where_the_stream_is() -> None:
    assert not terminal.writes_unicode(io.TextIOWrapper(io.BytesIO(), encoding="koi8-r"))
    assert terminal.writes_unicode(io.TextIOWrapper(io.BytesIO(), encoding="UTF-8"))
    assert not terminal.writes_unicode(io.TextIOWrapper(io.BytesIO(), encoding="ascii"))


def test_no_command_writes_markup_or_passes_text_by_the_one_way_out() -> None:
    """Strings are shown unchanged, so that markup would be seen; and only `output` and `main` call click.echo."""
    wrong = []
    for path in (project.ROOT / "ghostbox" / "cli").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        wrong += [f"{path.name}: markup {found}" for found in re.findall(r"\[/[a-z ]*\]", text)]
        wrong += [f"{path.name}: rich's Table"] if "rich.table" in text else []
        if "click.echo(" in text and path.name not in ("output.py", "main.py"):
            wrong.append(f"{path.name}: click.echo; use ghostbox.cli.output.echo")
    assert not wrong, "\n".join(wrong)


def test_json_is_ascii_and_has_every_character(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit({"name": HOSTILE}, "json", lambda: "")
    text = capsys.readouterr().out
    assert text.isascii()
    assert json.loads(text) == {"name": HOSTILE}
