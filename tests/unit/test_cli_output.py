# SPDX-License-Identifier: MIT
"""Commands print their formats, stages and questions as documented."""

from __future__ import annotations

import dataclasses
import enum
import io
import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console
from rich.table import Table

from ghostbox.cli import options, output
from ghostbox.cli.context import Context
from ghostbox.cli.key_options import key_options
from ghostbox.errors import UsageError
from ghostbox.system.processes import wait_until
from ghostbox.terminal import PlainConsole


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass(frozen=True)
class Thing:
    name: str
    place: Path
    colors: tuple[Color, ...]


THING = Thing("a", Path("/x"), (Color.RED,))
PLAIN = {"name": "a", "place": "/x", "colors": ["red"]}


def no_table() -> Table:
    raise AssertionError("the table is made only when it is wanted")


def test_json_and_yaml_show_dataclasses_paths_and_enums(capsys: pytest.CaptureFixture[str]) -> None:
    output.emit([THING], "json", no_table)
    assert json.loads(capsys.readouterr().out) == [PLAIN]
    output.emit(THING, "yaml", no_table)
    assert yaml.safe_load(capsys.readouterr().out) == PLAIN


def test_a_table_is_not_cut_off_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(box=None)
    table.add_column("path")
    table.add_row("/very" * 30)
    output.emit(THING, "table", lambda: table)
    assert "/very" * 30 in capsys.readouterr().out


def test_output_options_choose_the_format() -> None:
    @click.command()
    @output.output_options
    def show(output: str) -> None:
        click.echo(output)

    run = CliRunner().invoke
    assert run(show, []).output == "table\n"
    assert run(show, ["-o", "yaml"]).output == "yaml\n"
    assert run(show, ["--output", "json"]).output == "json\n"
    assert run(show, ["--json"]).output == "json\n"
    assert run(show, ["-o", "xml"]).exit_code == 2


def test_a_flag_from_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command(context_settings={"auto_envvar_prefix": "GHOSTBOX"})
    @key_options("vm.memory", "vm.cpus")
    @click.pass_obj
    def up(context: Context) -> None:
        loaded = context.config()
        click.echo(f"{loaded.vm.cpus} {loaded.origin('vm.memory')}, {loaded.origin('vm.cpus')}")

    monkeypatch.setenv("GHOSTBOX_MEMORY", "3G")
    assert CliRunner().invoke(up, ["--cpus", "7"]).output == "7 environment GHOSTBOX_MEMORY, flag\n"


def stages_on(stream: io.StringIO, **kwargs: bool) -> output.Stages:
    return output.Stages(quiet=False, console=Console(file=stream, width=120, **kwargs))  # type: ignore[arg-type]


def test_a_stage_is_a_plain_line_at_its_start_and_one_at_its_end() -> None:
    stream = io.StringIO()
    stages = stages_on(stream)
    with stages.stage("image") as stage:
        stage.say("debian [cached]")
    first, second = stream.getvalue().splitlines()
    assert first.split() == ["image", "…"]
    assert second.split()[:2] == ["image", "done"]
    assert second.endswith("debian [cached]")
    assert set(stages.seconds) == {"image"}


def test_without_a_terminal_a_long_stage_says_now_and_then_that_it_is_at_work() -> None:
    stream = io.StringIO()
    stages = output.Stages(quiet=False, console=PlainConsole(file=stream, width=120), news_s=0.01)
    with stages.stage("boot") as stage:
        stage.say("[  OK  ] Reached target")
        wait_until(lambda: stream.getvalue().count("Reached") >= 2, timeout_s=20, what="two lines of news")
    news = next(line for line in stream.getvalue().splitlines() if "Reached" in line)
    assert re.fullmatch(r"boot +… +\d+\.\d s  \[  OK  \] Reached target", news), news


def test_on_a_terminal_a_stage_at_work_shows_its_elapsed_time_on_one_line_of_80_columns() -> None:
    stream = io.StringIO()
    stages = output.Stages(quiet=False, console=PlainConsole(file=stream, width=80, force_terminal=True))
    with stages.stage("boot") as stage:
        stage.say("[  OK  ] " + "Reached " * 30)
        wait_until(lambda: "Reached" in stream.getvalue(), timeout_s=20, what="the line")
        at_work = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert re.search(r"boot +\d+ s  \[  OK  \] Reached", at_work), at_work
    assert max(map(len, re.split("[\r\n]", at_work))) <= 80


def test_a_stage_that_fails_says_so_and_the_error_goes_on() -> None:
    stream = io.StringIO()
    with pytest.raises(UsageError), stages_on(stream).stage("donors"):
        raise UsageError("no donor")
    assert stream.getvalue().splitlines()[-1].split()[:2] == ["donors", "failed"]


def test_on_a_terminal_a_stage_has_one_line_at_its_end() -> None:
    stream = io.StringIO()
    with stages_on(stream, force_terminal=True).stage("boot") as stage:
        stage.say("30 s")
    assert "boot" in stream.getvalue()
    assert "done" in stream.getvalue()


def test_quiet_prints_no_stages() -> None:
    stream = io.StringIO()
    stages = output.Stages(quiet=True, console=Console(file=stream))
    with stages.stage("image"):
        stages.note("nothing")
    assert stream.getvalue() == ""


def test_a_question_without_a_terminal_asks_for_yes() -> None:
    options.confirm("delete VM a?", yes=True)
    with pytest.raises(UsageError, match=r"delete VM a\? cannot be asked without a terminal") as caught:
        options.confirm("delete VM a?", yes=False)
    assert caught.value.hint == "add --yes"


@pytest.mark.parametrize(
    ("kind", "word", "value"),
    [(options.BYTES, "2M", 2 << 20), (options.SECONDS, "2m", 120.0), (options.VM_NAME, "big-1", "big-1")],
)
def test_option_types_parse(kind: click.ParamType[Any], word: str, value: object) -> None:
    assert kind.convert(word, None, None) == value
    with pytest.raises(click.BadParameter, match="is not a"):
        kind.convert("?!", None, None)
