# SPDX-License-Identifier: MIT
"""``ghostbox top``: watch a VM's remote memory at work."""

from __future__ import annotations

import itertools
import json
import operator
import os
import sys
from collections.abc import Iterator
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ghostbox import page_map
from ghostbox import top as watching
from ghostbox.cli import show
from ghostbox.cli.chosen import chosen
from ghostbox.cli.context import Context
from ghostbox.cli.options import SECONDS, name_argument
from ghostbox.cli.output import plain, stdout_console
from ghostbox.errors import UsageError
from ghostbox.health import Level
from ghostbox.page_map import Cell, Look, PageMap
from ghostbox.top import DonorRates, Sample
from ghostbox.units import MIB, format_bytes

_INTERVAL_MIN_S = 0.1
_ROWS = 8
_COLUMNS_MAX = page_map.CELLS // _ROWS
_DENSITY = "░▒▓█"
_STYLES = {
    Look.ABSENT: "dim",
    Look.REMOTE: "blue",
    Look.RESIDENT: "green",
    Look.INACTIVE: "yellow",
    Look.DIRTY: "magenta",
    Look.POISONED: "bold red",
}
_LEGEND = (
    ("█", Look.RESIDENT, "resident"),
    ("█", Look.INACTIVE, "inactive"),
    ("█", Look.DIRTY, "not written back"),
    ("·", Look.REMOTE, "with donors"),
    ("!", Look.POISONED, "lost"),
    ("", Look.ABSENT, "blank: never used"),
)


@click.command(
    epilog="""\b
Examples:
  ghostbox top                        watch the VM until Ctrl-C
  ghostbox top work --interval 5s     another one, calmer
  ghostbox top --json --count 10      ten seconds of it, one object a line
  ghostbox top --json --map           with the map of the remote memory
"""
)
@name_argument
@click.option("--interval", type=SECONDS, default="1s", show_default=True, help="Time between two looks.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N looks.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a look.")
@click.option("--map/--no-map", "with_map", default=None, help="With a map of node 1 (on a terminal: yes).")
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
    """Watch the faults, the cache and the donors of a VM. Without a terminal: a line a look."""
    if interval < _INTERVAL_MIN_S:
        raise UsageError(f"--interval: {interval:g} s is less than {_INTERVAL_MIN_S:g} s")
    vm = chosen(context, name)
    live = sys.stdout.isatty() and not as_json
    wanted = live if with_map is None else with_map
    samples = watching.watch(vm, context.paths, interval_s=interval, count=count, with_map=wanted)
    try:
        if as_json:
            _print(json.dumps(_object(sample, with_map=wanted)) for sample in samples)
        elif live:
            _live(samples)
        else:
            _print(line(sample) for sample in samples)
    except BrokenPipeError:
        # Whoever read has enough. Nothing may be flushed into the pipe when we end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return  # the usual way to end it


def _object(sample: Sample, *, with_map: bool) -> dict[str, Any]:
    return {key: value for key, value in plain(sample).items() if with_map or key != "map"}


def _print(lines: Iterator[str]) -> None:
    for text in lines:
        click.echo(text)
        sys.stdout.flush()


def _live(samples: Iterator[Sample]) -> None:
    with Live("waiting for the first look …", console=stdout_console(), auto_refresh=False) as live:
        for sample in samples:
            live.update(view(sample), refresh=True)


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


def view(sample: Sample) -> RenderableType:
    """Return a sample as what a terminal shows."""
    rows: list[tuple[str, object]] = [
        ("VM", f"{sample.vm}, pager up {sample.uptime_s:.0f} s"),
        *_health_rows(sample),
        (
            "faults",
            f"[bold]{sample.faults_per_s:,.0f}[/]/s: {sample.fetched_per_s:,.0f} fetched,"
            f" {sample.found_again_per_s:,.0f} found again, {sample.new_per_s:,.0f} new",
        ),
        ("fetch time", f"p50 [bold]{_us(sample.p50_us)}[/], p99 [bold]{_us(sample.p99_us)}[/]"),
        ("hits", f"{_percent(sample.hit_rate)}, second chance taken {_percent(sample.second_chance_rate)}"),
        ("readahead", f"{_percent(sample.readahead_accuracy)} used"),
        ("cache", f"{_bar(sample)} of {format_bytes(sample.cache_bytes)}"),
        ("", f"{format_bytes(sample.resident_bytes)} resident, {format_bytes(sample.inactive_bytes)} inactive"),
        (
            "remote",
            f"{format_bytes(sample.remote_bytes)} of {format_bytes(sample.total_bytes)} with donors,"
            f" {format_bytes(sample.dirty_bytes)} not written yet, {sample.evicted_per_s:,.0f} pages/s evicted",
        ),
    ]
    parts: list[RenderableType] = [show.pairs(rows), "", _donor_table(sample)]
    if sample.map is not None and sample.map.n_cells:
        parts += ["", heat_map(sample.map, columns=min(stdout_console().width, _COLUMNS_MAX))]
    return Group(*parts)


def _health_rows(sample: Sample) -> list[tuple[str, object]]:
    """Nothing while all is well."""
    if sample.health.level is Level.OK:
        return []
    rows: list[tuple[str, object]] = [("health", show.level(sample.health.level))]
    for problem in sample.health.problems:
        rows.append(("", escape(problem.text)))
        rows += [] if problem.advice is None else [("", f"[dim]{escape(problem.advice)}[/]")]
    return rows


def heat_map(found: PageMap, *, columns: int) -> RenderableType:
    """Show where the pages of node 1 are: a character a cell, denser the more of it is here."""
    rows = page_map.grid(found, columns=columns, rows=_ROWS)
    n_cells = sum(map(len, rows))
    text = Text("\n").join(map(_line, rows))
    legend = Text.assemble(
        "node 1, a character for ",
        format_bytes(found.length_bytes // n_cells),
        ": ",
        *(Text.assemble((glyph, _STYLES[look]), f" {what}  ") for glyph, look, what in _LEGEND),
        f"{_DENSITY} how much",
    )
    return Group(legend, text)


def _line(cells: list[Cell]) -> Text:
    """Put neighbours of one colour together: a terminal far away is sent less."""
    runs = itertools.groupby(map(_glyph, cells), key=operator.itemgetter(1))
    return Text.assemble(*(("".join(glyph for glyph, _ in run), style) for style, run in runs))


def _glyph(cell: Cell) -> tuple[str, str]:
    if cell.look is Look.POISONED:
        return "!", _STYLES[cell.look]
    if cell.here > 0:
        return _DENSITY[min(int(cell.here * len(_DENSITY)), len(_DENSITY) - 1)], _STYLES[cell.look]
    return ("·" if cell.look is Look.REMOTE else " "), _STYLES[cell.look]


def _donor_table(sample: Sample) -> Table:
    table = Table(
        "DONOR", "STATE", "REQUESTS/S", "P50", "P99", "READ", "WRITTEN", "ERRORS", "", box=None, pad_edge=False
    )
    for each in sample.donors:
        slowest = "[yellow]slowest[/]" if each.uri == sample.slowest_donor else ""
        table.add_row(*_donor_cells(each), escape(each.absence) or slowest)
    return table


def _donor_cells(donor: DonorRates) -> tuple[str, ...]:
    color = show.DONOR_COLORS.get(donor.state, "red")
    return (
        escape(donor.name),
        f"[{color}]{donor.state}[/]",
        f"{donor.requests_per_s:,.0f}",
        _us(donor.p50_us),
        _us(donor.p99_us),
        _rate(donor.read_bytes_per_s),
        _rate(donor.written_bytes_per_s),
        str(donor.errors),
    )


def _bar(sample: Sample, width: int = 40) -> str:
    """Return the cache as a bar: resident, inactive, free."""
    whole = max(sample.cache_bytes, sample.resident_bytes + sample.inactive_bytes, 1)
    resident = round(sample.resident_bytes * width / whole)
    inactive = min(round(sample.inactive_bytes * width / whole), width - resident)
    return f"[green]{'█' * resident}[/][yellow]{'▒' * inactive}[/][dim]{'·' * (width - resident - inactive)}[/]"


def _us(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} µs"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.0f} %"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / MIB:.1f} MiB/s"
