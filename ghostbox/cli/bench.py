# SPDX-License-Identifier: MIT
"""Measure GhostBox beside the alternatives (``ghostbox bench``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Group, RenderableType
from rich.text import Text

from ghostbox import bench as benchmark
from ghostbox.bench import Report, narrow, plot
from ghostbox.bench.model import GuestSizes, Predicted, Row, Spread
from ghostbox.cli.context import Context
from ghostbox.cli.key_options import key_option
from ghostbox.cli.output import Stages, emit, output_options
from ghostbox.config import settable
from ghostbox.config.schema import LOCAL
from ghostbox.donors import known
from ghostbox.errors import UsageError
from ghostbox.terminal import Table
from ghostbox.units import GIB, KIB, MIB, format_bytes

_ROUNDS, _SHORT_ROUNDS = 5, 1
_WITHIN = f"within {Predicted.TOLERANCE * 100:.0f} %"


@click.command(
    epilog="""\b
Examples:
  ghostbox bench                              all parts, 5 rounds, about 20 minutes
  ghostbox bench --short                      check that everything runs; the figures mean little
  ghostbox bench --only faults,sequential     two parts of it
  ghostbox bench --only server/lean --json    a group of rows, all figures of all rounds
  ghostbox bench --donor tower                on memory leased from a donor: faults to writes
  ghostbox bench --plot bench.svg             also draw a picture
  ghostbox bench --vm --rounds 1              in guests, beside swap over NBD and local memory; over an hour
  ghostbox bench --vm --only guest/1.2        … with a set of 1.2 × the local RAM
  ghostbox bench --vm --only guest/2          … of 2 × the local RAM
  ghostbox bench --vm --local 896M            … with twice the local RAM, and twice the rest
  ghostbox bench --vm --wire 1gbit            … over a wire of 1 Gbit/s
  GHOSTBOX_IMAGE_PACKAGES=redis-server,redis-tools ghostbox image build --name redis
  ghostbox bench --vm --only redis --image redis   … Redis, in an image that has it

Parts: faults, sequential, threads, checksum, overcommit, traffic, mixed, writes, link (as root: over wires of 1 and
2.5 Gbit/s), tls (faults and reads with and without TLS), redundancy, server, sizes, memserver-memory; with --vm:
guest (guest/1.2 and guest/2, by the size of the set), weights, database (SQLite), redis (if the image has it), tiering
(the guest's tiering set in each way).
Run it on a machine that does nothing else. It starts its servers on loopback, and ends them.
"""
)
@click.option("--rounds", type=click.IntRange(1, 100), help="How often each part is measured (5; with --short 1).")
@click.option("--short", is_flag=True, help="Use small sizes and times: this only checks that it runs.")
@click.option("--vm", is_flag=True, help="Measure in two guests: one with remote memory, one that swaps.")
@key_option("vm.image", help="With --vm: the image of the guests; for Redis one that has it.")
@key_option(
    "vm.local", help="With --vm: what the guests have of this machine's RAM, 448M; remote memory grows with it."
)
@click.option(
    "--wire",
    type=click.Choice(list(narrow.RATES)),
    help="With --vm, as root: put donors and disks behind a wire of that rate, not on loopback.",
)
@click.option(
    "--donor",
    "donors",
    multiple=True,
    metavar="NAME|HOST[:PORT]",
    help="Measure on a donor's memory; may be given again.",
)
@click.option("--only", metavar="NAME,…", help="Measure only these parts.")
@click.option(
    "--plot", "plot_file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Draw a .png or .svg."
)
@output_options
@click.pass_obj
def bench(
    context: Context,
    /,
    *,
    rounds: int | None,
    short: bool,
    vm: bool,
    wire: str | None,
    donors: tuple[str, ...],
    only: str | None,
    plot_file: Path | None,
    output: str,
) -> None:
    """Measure page path and memory server, each figure beside its reference from the same run."""
    if plot_file is not None:
        plot.check(plot_file)
    for key in () if vm else context.flags:
        raise UsageError(f"{settable()[key].spelling} is for --vm", why="without --vm no guest is made")
    options = benchmark.Options(
        rounds=rounds or (_SHORT_ROUNDS if short else _ROUNDS),
        short=short,
        only=tuple(name.strip() for name in only.split(",") if name.strip()) if only else (),
        vm=context.config if vm else None,
        wire=wire,
        local_bytes=_local_bytes(context),
        donors=tuple(dict.fromkeys(known.address_of(each, context.paths) for each in donors)),
    )
    stages = Stages()
    with stages.stage("bench") as stage:
        report = benchmark.run(options, context.paths, stage.say)
        stage.detail = f"{options.rounds} round{'s' if options.rounds > 1 else ''}"
    emit(report, output, lambda: table(report))
    if plot_file is not None:
        plot.draw(report, plot_file)
        stages.note(f"drawn: {plot_file}")


def _local_bytes(context: Context) -> int | None:
    loaded = context.config()
    return loaded.vm.memory_bytes + loaded.pool.cache_bytes if LOCAL.name in context.flags else None


def table(report: Report) -> RenderableType:
    """Show every row, and below the rows the notes on references."""
    shown = Table(box=None, pad_edge=False)
    for title in ("FIGURE", "MEASURED", "REFERENCE", "", "RATIO", "MIN–MAX", "TARGET", ""):
        right = title in ("MEASURED", "REFERENCE", "RATIO", "TARGET")
        shown.add_column(title, justify="right" if right else "left", no_wrap=title != "FIGURE")
    notes: dict[str, int] = {}
    for row in report.rows:
        mark = f" ({notes.setdefault(row.note, len(notes) + 1)})" if row.note else ""
        shown.add_row(Text.assemble(row.what, (mark, "dim")), *_cells(row))
    lines = [f"({number}) {note}" for note, number in notes.items()]
    predicted = [predictions(report.predictions), ""] if report.predictions else []
    return Group(shown, "", *predicted, *lines, _summary(report))


def predictions(found: Sequence[Predicted]) -> RenderableType:
    """Show the model's predictions (as ``ghostbox plan`` makes them) from this run's link, beside the measurements."""
    shown = Table(box=None, pad_edge=False)
    for title in ("PREDICTED AS PLAN DOES", "PREDICTED", "MEASURED", "RATIO", ""):
        right = title in ("PREDICTED", "MEASURED", "RATIO")
        shown.add_column(title, justify="right" if right else "left", no_wrap=True)
    for each in found:
        divided = "–" if each.ratio is None else ratio(each.ratio)
        verdict = Text(_WITHIN, "green") if each.within else Text(f"not {_WITHIN}", "red")
        shown.add_row(each.what, value(each.predicted, each.unit), value(each.measured, each.unit), divided, verdict)
    return shown


def _cells(row: Row) -> list[str | Text]:
    target = "–" if row.target is None else str(row.target)
    if row.measured is None:
        return ["–", "–", "", "–", "", target, Text("not measured", "yellow")]
    measured = value(row.measured.median, row.unit)
    if row.reference is None or row.ratio is None:
        return [measured, "–", "", "–", "", target, Text("no reference", "yellow")]
    verdict = {True: Text("reached", "green"), False: Text("not reached", "red"), None: Text()}[row.reached]
    return [
        measured,
        value(row.reference.median, row.unit),
        row.reference_name or "",
        ratio(row.ratio.median),
        _range(row.ratio),
        target,
        verdict,
    ]


def ratio(number: float) -> str:
    """Return a ratio with two places, or two digits where it is far below 1."""
    return f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"


def _range(spread: Spread) -> str:
    return f"{ratio(spread.min)}–{ratio(spread.max)}"


def value(number: float, unit: str) -> str:
    """Return a figure for people: ``14.2 µs``, ``1.6 GiB/s``, ``85.3 k/s``."""
    if unit in ("B", "B/s"):
        for prefix, n_bytes in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
            if number >= n_bytes:
                return f"{number / n_bytes:.1f} {prefix}{unit[1:]}"
        return f"{number:.1f} {unit}"
    for prefix, factor in (("M", 1e6), ("k", 1e3)) if unit == "/s" else ():
        if number >= factor:
            return f"{number / factor:.1f} {prefix}/s"
    return f"{number:.1f} {unit}" if number < 100 else f"{number:.0f} {unit}"


def _summary(report: Report) -> str:
    judged = [row for row in report.rows if row.reached is not None]
    text = f"{sum(row.reached is True for row in judged)} of {len(judged)} targets reached"
    if report.predictions:
        text += (
            f", {sum(each.within for each in report.predictions)} of {len(report.predictions)} predictions {_WITHIN}"
        )
    if report.short:
        text += "; a short run: its figures mean little"
    if report.guests is not None:
        text += f". {_guests(report.guests)}"
    cpus, load = report.machine["cpus"], report.machine["load_1min"]
    return f"{text}. {cpus} CPUs, load {load}, Linux {report.machine['kernel']}"


def _guests(sizes: GuestSizes) -> str:
    here = f"{format_bytes(sizes.memory_bytes)} of node 0 and {format_bytes(sizes.cache_bytes)} of cache"
    far = "loopback" if sizes.wire is None else f"a wire of {sizes.wire}"
    return f"Guests: {here}, {format_bytes(sizes.remote_bytes)} on donors over {far}"
