# SPDX-License-Identifier: MIT
"""Watch a VM's remote memory (``ghostbox top``)."""

from __future__ import annotations

import functools
import itertools
import json
import operator
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ghostbox import terminal
from ghostbox.cli import keys, show
from ghostbox.cli import rates as watching
from ghostbox.cli.chosen import chosen
from ghostbox.cli.context import Context
from ghostbox.cli.options import SECONDS, name_argument
from ghostbox.cli.output import echo, plain, stdout_console
from ghostbox.cli.rates import DonorRates, Sample
from ghostbox.errors import UsageError
from ghostbox.pager import page_map
from ghostbox.pager.health import Level
from ghostbox.pager.page_map import Cell, Look, PageMap
from ghostbox.session.signals import Interrupts
from ghostbox.units import MIB, format_bytes, format_duration

_INTERVAL_MIN_S = 0.1
_ROWS = 8
_COLUMNS_MAX = page_map.CELLS // _ROWS
_MAP_WIDTH_MIN = 16
_DENSITY, _DENSITY_ASCII = "░▒▓█", "-=%#"
_STYLES = {
    Look.ABSENT: "dim",
    Look.REMOTE: "blue",
    Look.RESIDENT: "green",
    Look.INACTIVE: "yellow",
    Look.DIRTY: "magenta",
    Look.POISONED: "bold red",
}
# Without colours each look has a letter of its own, a small letter if less than half of the cell is on this host.
_LETTERS = {Look.RESIDENT: "R", Look.INACTIVE: "I", Look.DIRTY: "W"}
_WORDS = {
    Look.RESIDENT: "resident",
    Look.INACTIVE: "inactive",
    Look.DIRTY: "not written back",
    Look.REMOTE: "with donors",
    Look.POISONED: "lost",
}


@click.command(
    epilog="""\b
Examples:
  ghostbox top                        watch the VM until q or Ctrl-C
  ghostbox top work --interval 5s     another VM, every five seconds
  ghostbox top --json --count 10      ten seconds, one object a line
  ghostbox top --json --map           with the map of the remote memory
"""
)
@name_argument
@click.option("--interval", type=SECONDS, default="1s", show_default=True, help="Time between two samples.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N samples.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a sample.")
@click.option("--map/--no-map", "with_map", default=None, help="Show a map of node 1 (the default on a terminal).")
@click.pass_obj
def top(
    context: Context,
    /,
    *,
    name: str | None,
    interval: float,
    count: int | None,
    as_json: bool,
    with_map: bool | None,
) -> None:
    """Watch the faults, the cache and the donors of a VM. Without a terminal, each sample is a line."""
    if interval < _INTERVAL_MIN_S:
        raise UsageError(f"--interval: {interval:g} s is less than {_INTERVAL_MIN_S:g} s")
    vm = chosen(context, name)
    live = sys.stdout.isatty() and not as_json
    wanted = live if with_map is None else with_map
    look = functools.partial(watching.watch, vm, context.paths, interval_s=interval, count=count, with_map=wanted)
    try:
        if as_json:
            _print(json.dumps(_object(sample, with_map=wanted)) for sample in look())
        elif live:
            with Interrupts().watched(), keys.pressed() as asked_to_end:
                _live(look(wait=asked_to_end))
        else:
            _print(line(sample) for sample in look())
    except BrokenPipeError:
        # The reader has closed the pipe. Python flushes stdout at exit, which must not write into the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return  # Ctrl-C is a usual way to end `top`


def _object(sample: Sample, *, with_map: bool) -> dict[str, Any]:
    return {key: value for key, value in plain(sample).items() if with_map or key != "map"}


def _print(lines: Iterator[str]) -> None:
    for text in lines:
        echo(text)
        sys.stdout.flush()


def _live(samples: Iterator[Sample]) -> None:
    console = stdout_console()
    with Live("waiting for the first sample … (q ends top)", console=console, auto_refresh=False) as live:
        for sample in samples:
            live.update(screen(sample, console), refresh=True)


def line(sample: Sample) -> str:
    """Return a sample as one plain line."""
    parts = [
        f"{sample.faults_per_s:.0f} faults/s",
        f"p50 {_us(sample.p50_us)} p99 {_us(sample.p99_us)}",
        f"hits {_percent(sample.hit_rate)}",
        f"resident {format_bytes(sample.resident_bytes)}",
        f"inactive {format_bytes(sample.inactive_bytes)}",
        f"remote {format_bytes(sample.remote_bytes)}",
        f"in {_rate(sum(each.read_bytes_per_s for each in sample.donors))}",
        f"out {_rate(sum(each.written_bytes_per_s for each in sample.donors))}",
        f"readahead {_percent(sample.readahead_accuracy)}",
    ]
    down = [_not_up(each) for each in sample.donors if each.state not in ("up", "removed")]
    parts += [] if sample.health.level is Level.OK else [f"MEMORY {sample.health.level.upper()}"]
    parts += [f"slowest {each.name}" for each in sample.donors if each.uri == sample.slowest_donor]
    parts += [f"NOT UP {', '.join(down)}"] if down else []
    return "  ".join(parts)


def _not_up(donor: DonorRates) -> str:
    return f"{donor.name} ({donor.absence})" if donor.absence else donor.name


def screen(sample: Sample, console: Console) -> RenderableType:
    """Return a sample for a terminal; the map has the lines that the figures leave."""
    figures = view(sample)
    if sample.map is None or not sample.map.n_cells or console.width < _MAP_WIDTH_MIN:
        return figures
    glyphs = Glyphs.of(console)
    columns = min(console.width, _COLUMNS_MAX)
    legend = map_legend(sample.map, glyphs, n_cells=columns * _ROWS)
    taken = sum(len(console.render_lines(part, pad=False)) for part in (figures, "", legend))
    rows = min(console.height - taken - 1, _ROWS)
    if rows < 1:
        return figures
    legend = map_legend(sample.map, glyphs, n_cells=columns * rows)
    return Group(figures, "", legend, heat_map(sample.map, glyphs, columns=columns, rows=rows))


def view(sample: Sample) -> RenderableType:
    """Return the figures of a sample; each line fits into 80 columns."""
    rows: list[tuple[str, object]] = [
        ("VM", f"{sample.vm}, pager up {format_duration(sample.uptime_s)}"),
        *_health_rows(sample),
        (
            "faults",
            Text.assemble(
                (f"{sample.faults_per_s:,.0f}", "bold"),
                f"/s: {sample.fetched_per_s:,.0f} fetched, {sample.found_again_per_s:,.0f} found again,"
                f" {sample.new_per_s:,.0f} new",
            ),
        ),
        ("fetch time", Text.assemble("p50 ", (_us(sample.p50_us), "bold"), ", p99 ", (_us(sample.p99_us), "bold"))),
        ("hits", f"{_percent(sample.hit_rate)}, second chance taken {_percent(sample.second_chance_rate)}"),
        ("readahead", f"{_percent(sample.readahead_accuracy)} used; {sample.evicted_per_s:,.0f} pages/s evicted"),
        ("cache", _bar(sample) + Text(f" of {format_bytes(sample.cache_bytes)}")),
        ("", f"{format_bytes(sample.resident_bytes)} resident, {format_bytes(sample.inactive_bytes)} inactive"),
        (
            "remote",
            f"{format_bytes(sample.remote_bytes)} of {format_bytes(sample.total_bytes)} with donors,"
            f" {format_bytes(sample.dirty_bytes)} not written yet",
        ),
    ]
    return Group(show.pairs(rows), "", *_donors(sample))


def _health_rows(sample: Sample) -> list[tuple[str, object]]:
    """Return the lines on the VM's health; none if all is well."""
    if sample.health.level is Level.OK:
        return []
    rows: list[tuple[str, object]] = [("health", show.level(sample.health.level))]
    for problem in sample.health.problems:
        rows.append(("", problem.text))
        rows += [] if problem.advice is None else [("", Text(problem.advice, "dim"))]
    return rows


@dataclass(frozen=True)
class Glyphs:
    """Holds the signs of the map: shades in colours, or without colours a letter for each look."""

    colored: bool
    density: str

    @classmethod
    def of(cls, console: Console) -> Self:
        """Return the signs that a console can show."""
        colored = not console.no_color and console.color_system is not None
        return cls(colored, _DENSITY if terminal.writes_unicode(console.file) else _DENSITY_ASCII)

    def cell(self, cell: Cell) -> tuple[str, str]:
        """Return the sign of a cell and its style."""
        style = _STYLES[cell.look] if self.colored else ""
        if cell.look is Look.POISONED:
            return "!", style
        if cell.here <= 0:
            return ("·" if cell.look is Look.REMOTE else " "), style
        if not self.colored:
            letter = _LETTERS[cell.look]
            return (letter if cell.here >= 0.5 else letter.lower()), style
        return self.density[min(int(cell.here * len(self.density)), len(self.density) - 1)], style

    def legend(self) -> Text:
        """Return the meaning of the signs."""
        words = [
            Text.assemble(self.cell(Cell(look, 0.0 if look is Look.REMOTE else 1.0)), f" {word}")
            for look, word in _WORDS.items()
        ]
        how_much = f"{self.density} how much" if self.colored else "small: less than half"
        return Text("  ").join([*words, Text("blank: never used"), Text(how_much)])


def map_legend(found: PageMap, glyphs: Glyphs, *, n_cells: int) -> Text:
    """Return the line that explains the map."""
    size = format_bytes(found.length_bytes // max(min(n_cells, found.n_cells), 1))
    return Text.assemble(f"node 1, a character for {size}: ", glyphs.legend())


def heat_map(found: PageMap, glyphs: Glyphs, *, columns: int, rows: int) -> Text:
    """Show where the pages of node 1 are: a character for each cell, denser the more of the cell is on this host."""
    cells = page_map.grid(found, columns=columns, rows=rows)
    return Text("\n").join(_line(line, glyphs) for line in cells)


def _line(cells: list[Cell], glyphs: Glyphs) -> Text:
    """Join neighbours of one style, so that fewer bytes go to the terminal."""
    runs = itertools.groupby(map(glyphs.cell, cells), key=operator.itemgetter(1))
    return Text.assemble(*(("".join(glyph for glyph, _ in run), style) for style, run in runs))


def _donors(sample: Sample) -> list[RenderableType]:
    titles = ("DONOR", "STATE", "REQ/S", "P50", "P99", "READ/S", "WRITE/S", "ERR")
    table = show.grid(*titles, names=("DONOR",), figures=titles[2:])
    below: list[RenderableType] = []
    for each in sample.donors:
        if each.state != "removed":
            table.add_row(*_donor_cells(each))
        if each.absence:
            below.append(f"  {each.name}: {each.absence}")
        if each.uri == sample.slowest_donor:
            below.append(Text.assemble("  slowest: ", (each.name, "yellow")))
    return [table, *below]


def _donor_cells(donor: DonorRates) -> tuple[str | Text, ...]:
    return (
        donor.name,
        Text(donor.state, show.DONOR_COLORS.get(donor.state, "red")),
        f"{donor.requests_per_s:,.0f}",
        _us(donor.p50_us),
        _us(donor.p99_us),
        format_bytes(int(donor.read_bytes_per_s)),
        format_bytes(int(donor.written_bytes_per_s)),
        str(donor.errors),
    )


def _bar(sample: Sample, width: int = 40) -> Text:
    """Return the cache as a bar: resident, inactive, free."""
    whole = max(sample.cache_bytes, sample.resident_bytes + sample.inactive_bytes, 1)
    resident = round(sample.resident_bytes * width / whole)
    inactive = min(round(sample.inactive_bytes * width / whole), width - resident)
    free = width - resident - inactive
    return Text.assemble(("█" * resident, "green"), ("▒" * inactive, "yellow"), ("·" * free, "dim"))


def _us(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} µs"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.0f} %"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / MIB:.1f} MiB/s"
