# SPDX-License-Identifier: MIT
"""Tables for people: VMs, plans, status."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from ghostbox import health
from ghostbox.health import Level
from ghostbox.plan import ImagePlan, VmPlan
from ghostbox.prediction import Forecast
from ghostbox.session import UpResult, VmInfo, VmState, VmStatus, VmSummary
from ghostbox.units import PAGE_BYTES, format_bytes, format_duration

_COLORS = {VmState.RUNNING: "green", VmState.BROKEN: "red", VmState.PAUSED: "yellow", VmState.STOPPING: "yellow"}


DONOR_COLORS = {"up": "green", "slow": "yellow", "draining": "yellow", "drained": "dim", "removed": "dim"}
_LEVELS = {Level.OK: "[green]ok[/]", Level.DEGRADED: "[yellow]degraded[/]", Level.LOST: "[bold red]lost[/]"}


def pairs(rows: Iterable[tuple[str, object]]) -> Table:
    """Return a table of names and values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for key, value in rows:
        table.add_row(key, value if isinstance(value, str) else escape(str(value)))
    return table


def up_result(result: UpResult) -> RenderableType:
    """Show how to get into the VM."""
    verb = "runs already" if result.already_running else "runs"
    return f"VM '{result.name}' {verb}. Log in: [bold]ghostbox shell {result.name}[/], or: {result.ssh_command}"


def plan(found: VmPlan) -> RenderableType:
    """Show what ``up`` would do, and what is to be expected of it."""
    head = pairs(
        [
            ("VM", f"{found.name} (domain {found.domain})"),
            ("runs on", f"{found.virt.upper()}: {found.virt_reason}"),
            ("CPUs", found.cpus),
            ("local memory", format_bytes(found.memory_bytes)),
            ("remote memory", format_bytes(found.remote_memory_bytes)),
            *(("  from", f"{share.address}: {format_bytes(share.size_bytes)}") for share in found.shares),
            ("copies", _copies(found)),
            ("cache", format_bytes(found.pager.cache_bytes)),
            ("disk", f"{format_bytes(found.disk_bytes)} on image {_image(found.image)}"),
            ("SSH", f"{found.guest.user}@127.0.0.1:{found.network.ssh_port}"),
            *(("port", f"127.0.0.1:{each.host} -> {each.guest}") for each in found.network.forwards),
            ("tiering", found.guest.tiering),
        ]
    )
    return Group(head, "", forecast(found.forecast))


def _copies(found: VmPlan) -> str:
    copies = (
        "1, so a donor that dies takes its part with it" if found.pager.replicas == 1 else "2, on different machines"
    )
    if found.pager.replicas > 1 and found.pager.allow_same_host:
        copies = "2, perhaps on one machine"
    return copies if found.backup is None else f"{found.pager.replicas} on donors and one in {found.backup}"


def forecast(found: Forecast) -> RenderableType:
    """Show what remote memory will cost."""
    about = "about " if found.assumed else ""
    slower = [f"{each.slowdown:,.0f} × at {each.locality_percent} %" for each in found.slowdowns]
    links = [
        (
            "  over",
            f"{escape(link.address)}: {link.rtt_p50_us:.0f} µs, {format_bytes(int(link.read_bytes_per_s))}/s, {when}",
        )
        for link in found.links
        for when in [f"measured {link.measured_at}" if link.measured_at else "[yellow]assumed[/]"]
    ]
    rows = [
        ("expected", "[yellow]in part assumed, not measured[/]" if found.assumed else "from measurements"),
        ("  fault", f"{about}{found.fault_us:.0f} µs (p50), {found.fault_mean_us:.0f} µs (mean)"),
        ("  in order", f"{about}{format_bytes(int(found.sequential_bytes_per_s))}/s"),
        ("  slowdown", f"{about}{', '.join(slower)} locality"),
        *links,
        *(("  note", escape(note)) for note in found.notes),
    ]
    return pairs(rows)


def _image(image: ImagePlan) -> str:
    if not image.to_build:
        return f"{image.name}{' (of another recipe than the present one)' if image.outdated else ''}"
    packages = f" with {', '.join(image.packages)}" if image.packages else ""
    return f"{image.name} (to be built: {image.suite}{packages})"


def summaries(found: Sequence[VmSummary]) -> RenderableType:
    """Show one line a VM."""
    table = Table(
        "NAME", "STATE", "HEALTH", "CPUS", "LOCAL", "REMOTE", "RUNS ON", "SSH PORT", "IMAGE", box=None, pad_edge=False
    )
    for each in found:
        port = "-" if each.ssh_port is None else str(each.ssh_port)
        local, remote = format_bytes(each.memory_bytes), format_bytes(each.remote_memory_bytes)
        state = _colored(each.state)
        table.add_row(
            each.name, state, level(each.health), str(each.cpus), local, remote, each.virt.upper(), port, each.image
        )
    return table


def info(found: VmInfo) -> RenderableType:
    """Show what a VM is made of."""
    return pairs(
        [
            ("name", found.name),
            ("state", _colored(found.state) + (" until its disk can be written" if found.disk_problem else "")),
            ("health", level(None if found.health is None else found.health.level)),
            ("runs on", found.virt.upper()),
            ("CPUs", found.cpus),
            ("local memory", format_bytes(found.memory_bytes)),
            ("remote memory", format_bytes(found.remote_memory_bytes)),
            ("copies", f"{found.replicas} on donors" + (f", one in {found.backup}" if found.backup else "")),
            ("on donor loss", found.on_donor_loss),
            ("tiering", found.tiering or "-"),
            ("cache", format_bytes(found.cache_bytes)),
            ("disk", f"{format_bytes(found.disk_bytes)}, {found.files['disk']}"),
            ("image", found.image),
            ("SSH", found.ssh_command),
            *(("port", forward) for forward in found.forwards),
            *(("lease", f"{each.name} on {each.donor}, {format_bytes(each.size_bytes)}") for each in found.leases),
            ("domain", f"{found.domain} ({found.libvirt_uri})"),
            ("created", found.created_at),
            ("started", found.started_at or "-"),
        ]
    )


def status(found: VmStatus) -> RenderableType:
    """Show how a VM does."""
    up_for = "-" if found.uptime_s is None else format_duration(found.uptime_s)
    state = _colored(found.state) + (" until its donor is back" if found.paused_for_donor else "")
    state += " until its disk can be written" if found.disk_problem else ""
    head = pairs([("VM", found.name), ("state", state), ("up for", up_for)])
    if found.pager is None:
        return head
    word = level(None if found.health is None else found.health.level)
    rows = [("health", word), *_memory_rows(found.pager)]
    return Group(head, pairs(rows), _donor_table(found.pager["donors"]))


def health_notes(found: VmStatus | VmInfo) -> list[str]:
    """Return what is wrong with a VM's memory and its disk, and what to do about it."""
    problems = [] if found.disk_problem is None else [found.disk_problem]
    problems += () if found.health is None else found.health.problems
    lines = []
    for problem in problems:
        lines.append(f"warning: {problem.text}")
        if problem.advice is not None:
            lines.append(f"     do: {problem.advice}")
    return lines


def _memory_rows(pager: Mapping[str, Any]) -> list[tuple[str, object]]:
    pages, faults, evictions = pager["pages"], pager["faults"], pager["evictions"]
    fetch = pager["latency"]["fetch"]

    def size(key: str) -> str:
        return format_bytes(pages[key] * PAGE_BYTES)

    return [
        ("cache", f"{size('resident')} resident, {size('inactive')} inactive of {format_bytes(pager['cache_bytes'])}"),
        ("on donors", f"{size('on_donor')}; {size('dirty')} not written yet"),
        ("faults", f"{faults['missing_fetch']} fetched, {faults['missing_zero']} new, {faults['minor']} found again"),
        ("fetch time", f"p50 {_us(fetch, 'p50_us')}, p99 {_us(fetch, 'p99_us')}"),
        ("evicted", f"{evictions['clean']} clean, {evictions['dirty']} dirty, {evictions['zero']} zero pages"),
        ("kernel", _kernel(pager)),
    ]


def _kernel(pager: Mapping[str, Any]) -> str:
    """Say how writes are noticed, and what this kernel's userfaultfd lacks (or was told to hide)."""
    how = "tracks writes itself" if pager["dirty_tracking"] == "wp-async" else "writes are write-protect faults"
    missing = [name for name, there in pager["features"].items() if not there]
    return f"{how} ({pager['dirty_tracking']})" + (f"; without {', '.join(missing)}" if missing else "")


def _us(histogram: Mapping[str, Any], key: str) -> str:
    value = histogram.get(key)
    return "-" if not value else f"{value:.0f} µs"


def _donor_table(donors: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("DONOR", "STATE", "SIZE", "READ", "WRITTEN", "ERRORS", "", box=None, pad_edge=False)
    for each in donors:
        color = DONOR_COLORS.get(each["state"], "red")
        sizes = [format_bytes(each[key]) for key in ("export_bytes", "read_bytes", "written_bytes")]
        state, name = f"[{color}]{each['state']}[/]", health.name_of(each)
        table.add_row(escape(name), state, *sizes, str(each["errors"]), escape(health.absence(each)))
    return table


def level(found: Level | None) -> str:
    """Show how the memory of a VM does."""
    return "-" if found is None else _LEVELS[found]


def _colored(state: VmState) -> str:
    color = _COLORS.get(state)
    return str(state) if color is None else f"[{color}]{state}[/]"
