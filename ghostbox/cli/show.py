# SPDX-License-Identifier: MIT
"""Make tables for people: VMs, plans, status. They fit on a terminal of 80 × 24 without cutting off what matters.

Strings are shown as they are; only a ``Text`` has colours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from rich.console import Group, RenderableType
from rich.text import Text

from ghostbox.pager import health
from ghostbox.pager.health import Level
from ghostbox.pager.model import PagerDonor, PagerStatus
from ghostbox.plan.plan import ImagePlan, NetworkPlan, VmPlan
from ghostbox.plan.prediction import Everyday, Forecast, Link
from ghostbox.plan.workloads import Expected
from ghostbox.session import UpResult, VmInfo, VmState, VmStatus, VmSummary
from ghostbox.terminal import Table
from ghostbox.units import PAGE_BYTES, format_bytes, format_duration

_COLORS = {VmState.RUNNING: "green", VmState.BROKEN: "red", VmState.PAUSED: "yellow", VmState.STOPPING: "yellow"}
_COLORS[VmState.UNMANAGED] = "red"


DONOR_COLORS = {"up": "green", "slow": "yellow", "draining": "yellow", "drained": "dim", "removed": "dim"}
CHANNEL_COLORS = {"tls": "green", "insecure": "bold red"}
_LEVELS = {Level.OK: "green", Level.DEGRADED: "yellow", Level.LOST: "bold red"}


def pairs(rows: Iterable[tuple[str, object]]) -> Table:
    """Return a table of names and values."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows:
        table.add_row(key, value if isinstance(value, Text) else str(value))
    return table


def grid(*titles: str, names: Sequence[str] = (), figures: Sequence[str] = ()) -> Table:
    """Return an empty table whose columns ``names`` are folded where there is little space; other columns are not."""
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for title in titles:
        folds = title in names
        justify: Literal["left", "right"] = "right" if title in figures else "left"
        table.add_column(title, justify=justify, no_wrap=not folds, overflow="fold")
    return table


def up_result(result: UpResult) -> RenderableType:
    """Show how to log in to the VM."""
    verb = "runs already" if result.already_running else "runs"
    login = (f"ghostbox shell {result.name}", "bold")
    return Text.assemble(f"VM '{result.name}' {verb}. Log in: ", login, f", or: {result.ssh_command}")


def plan(found: VmPlan) -> RenderableType:
    """Show what ``up`` would do, and the predicted performance."""
    head = pairs(
        [
            ("VM", f"{found.name} (domain {found.domain})"),
            ("runs on", f"{found.virt.upper()}: {found.virt_reason}"),
            ("CPUs", found.cpus),
            ("local memory", format_bytes(found.memory_bytes)),
            ("remote memory", format_bytes(found.remote_memory_bytes)),
            *(("  from", f"{share.address}: {format_bytes(share.size_bytes)}") for share in found.shares),
            ("copies", _copies(found)),
            ("cache", f"{format_bytes(found.pager.cache_bytes)}, so {_local_text(found)} of this machine's RAM in all"),
            (
                "for programs",
                f"{format_bytes(found.for_programs.usable_bytes)} of that; the guest's kernel takes the rest",
            ),
            ("disk", f"{format_bytes(found.disk_bytes)} on image {_image(found.image)}"),
            *((f"disk{number}", format_bytes(disk.size_bytes)) for number, disk in enumerate(found.disks, start=2)),
            *(("share", str(each)) for each in found.folders),
            ("network", _network(found.network)),
            ("SSH", _ssh(found)),
            *(("port", f"127.0.0.1:{each.host} -> {each.guest}") for each in found.network.forwards),
            ("tiering", found.guest.tiering),
        ]
    )
    here_bytes = found.memory_bytes + found.pager.cache_bytes
    return Group(head, "", forecast(found.forecast, here_bytes), *uses(found.uses, here_bytes))


def _local_text(found: VmPlan) -> str:
    return format_bytes(found.memory_bytes + found.pager.cache_bytes)


def _network(found: NetworkPlan) -> str:
    if found.choice.kind != "user":
        return f"{found.choice}, where the guest reaches this host" + ("" if found.filter else " and the donors")
    return "user, closed to this host and the donors" if found.is_guarded else "user, open to this host and the donors"


def _ssh(found: VmPlan) -> str:
    if found.network.choice.kind != "user":
        return f"{found.guest.user}@ the address that it gets"
    return f"{found.guest.user}@127.0.0.1:{found.network.ssh_port}"


def _copies(found: VmPlan) -> str:
    copies = (
        "1, so a donor that dies takes its part with it" if found.pager.replicas == 1 else "2, on different machines"
    )
    if found.pager.replicas > 1 and found.pager.allow_same_host:
        copies = "2, perhaps on one machine"
    return copies if found.backup is None else f"{found.pager.replicas} on donors and one in {found.backup}"


def forecast(found: Forecast, here_bytes: int) -> RenderableType:
    """Show what remote memory will cost beside ``here_bytes`` of local memory and cache; everyday examples first."""
    about = "about " if found.assumed else ""
    slower = [f"{each.slowdown:,.0f} × at {each.locality_percent} %" for each in found.slowdowns]
    rows: list[tuple[str, object]] = [
        ("expected", Text("in part assumed, not measured", "yellow") if found.assumed else "from measurements"),
        (
            "  in practice",
            f"what fits into the {format_bytes(here_bytes)} here is as quick as ever",
        ),
        *(("", f"{each.what} there: {about}{_seconds(each)}") for each in found.everyday),
        ("  fault", f"{about}{found.fault_us:.0f} µs (p50), {found.fault_mean_us:.0f} µs (mean)"),
        ("  in order", f"{about}{format_bytes(int(found.sequential_bytes_per_s))}/s"),
        ("  at worst", f"{about}{', '.join(slower)} locality: one thread that only touches memory, at random"),
        *(("  over", _link(link)) for link in found.links),
        *(("  note", note) for note in found.notes),
    ]
    return pairs(rows)


def uses(found: Sequence[Expected], here_bytes: int) -> list[RenderableType]:
    """Show which share of a program's accesses waits for a donor, by kind of program and size of its memory."""
    if not found:
        return []
    factors = list(dict.fromkeys(each.factor for each in found))
    sizes = " and ".join(f"{factor:g} ×" for factor in factors)
    table = grid("A PROGRAM THAT READS", *(f"{factor:g} ×" for factor in factors), names=("A PROGRAM THAT READS",))
    for name in dict.fromkeys(each.name for each in found):
        table.add_row(name, *(_waiting(each) for each in found if each.name == name))
    about = f"accesses that wait for a donor, of a program with {sizes} the {format_bytes(here_bytes)} here, settled:"
    return ["", about, table]


def _waiting(found: Expected) -> str:
    if found.bytes_per_s:
        return f"{format_bytes(int(found.bytes_per_s))}/s"
    if found.waits == 0.0:
        return "none"
    return f"{found.waits:.1%}" if found.waits < 0.0995 else f"{found.waits:.0%}"


def _seconds(found: Everyday) -> str:
    """Return how long an action takes, compared with local memory: ``4 s instead of 1``."""
    if found.remote_s < 1.15 * found.local_s:
        return f"{_rounded(found.remote_s)} s, as in local memory"
    return f"{_rounded(found.remote_s)} s instead of {_rounded(found.local_s)}"


def _rounded(seconds: float) -> str:
    if seconds < 0.05:
        return "less than 0.1"
    return f"{seconds:,.0f}" if seconds >= 9.95 else f"{seconds:.1f}".removesuffix(".0")


def _link(link: Link) -> Text:
    when = f"measured {link.measured_at}" if link.measured_at else ("assumed", "yellow")
    figures = f"{link.rtt_p50_us:.0f} µs, {format_bytes(int(link.read_bytes_per_s))}/s, "
    return Text.assemble(f"{link.address}: {figures}", when)


def _image(image: ImagePlan) -> str:
    if not image.to_build:
        return f"{image.name}{' (of another recipe than the present one)' if image.outdated else ''}"
    packages = f" with {', '.join(image.packages)}" if image.packages else ""
    return f"{image.name} (to be built: {image.suite}{packages})"


def summaries(found: Sequence[VmSummary]) -> RenderableType:
    """Show a line for each VM."""
    titles = ("NAME", "STATE", "HEALTH", "CPUS", "LOCAL", "REMOTE", "VIRT", "SSH", "IMAGE")
    table = grid(*titles, names=("NAME", "IMAGE"), figures=("CPUS",))
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
            ("state", _colored(found.state) + Text(" until its disk can be written" if found.disk_problem else "")),
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
            *(
                (f"disk{number}", f"{format_bytes(size_bytes)}, {found.files[f'disk{number}']}")
                for number, size_bytes in enumerate(found.disks, start=2)
            ),
            *(("share", each) for each in found.shares),
            ("image", found.image),
            ("network", f"{found.network}{f', address {found.address}' if found.address else ''}"),
            ("SSH", found.ssh_command),
            *(("port", forward) for forward in found.forwards),
            *(("lease", f"{each.name} on {each.donor}, {format_bytes(each.size_bytes)}") for each in found.leases),
            ("domain", f"{found.domain} ({found.libvirt_uri})"),
            ("created", found.created_at),
            ("started", found.started_at or "-"),
        ]
    )


def status(found: VmStatus) -> RenderableType:
    """Show a VM's status: the important lines first, the counters last."""
    rows: list[tuple[str, object]] = [("VM", found.name), ("state", _state(found))]
    if found.pager is None:
        return pairs(rows)
    rows += [("health", level(None if found.health is None else found.health.level)), *_memory_rows(found)]
    return Group(pairs(rows), "", _donors(found.pager.donors), "", pairs(_counter_rows(found.pager)))


def _state(found: VmStatus) -> Text:
    text = _colored(found.state)
    if found.paused_for_donor:
        text.append(" until its donor is back")
    if found.disk_problem:
        text.append(" until its disk can be written")
    if found.uptime_s is not None:
        text.append(f", up for {format_duration(found.uptime_s)}")
    return text


def health_notes(found: VmStatus | VmInfo) -> list[str]:
    """Return what is wrong with a VM's memory and its disks, and advice."""
    problems = [each for each in (found.problem, found.disk_problem) if each is not None]
    problems += () if found.health is None else found.health.problems
    lines = []
    for problem in problems:
        lines.append(f"warning: {problem.text}")
        if problem.advice is not None:
            lines.append(f"     do: {problem.advice}")
    return lines


def _memory_rows(found: VmStatus) -> list[tuple[str, object]]:
    assert found.pager is not None
    pages, cache = found.pager.pages, format_bytes(found.pager.cache_bytes)

    def size(n_pages: int) -> str:
        return format_bytes(n_pages * PAGE_BYTES)

    in_use = "" if found.in_use_bytes is None else f", {format_bytes(found.in_use_bytes)} in use"
    return [
        ("remote", f"{size(pages.total)}{in_use}"),
        ("cache", f"{size(pages.resident)} resident, {size(pages.inactive)} inactive of {cache}"),
        ("on donors", f"{size(pages.on_donor)}; {size(pages.dirty)} not written yet"),
    ]


def _counter_rows(pager: PagerStatus) -> list[tuple[str, object]]:
    faults, evictions, fetch = pager.faults, pager.evictions, pager.latency.fetch
    return [
        ("faults", f"{faults.missing_fetch} fetched, {faults.missing_zero} new, {faults.minor} found again"),
        ("fetch time", f"p50 {_us(fetch.p50_us)}, p99 {_us(fetch.p99_us)}"),
        ("evicted", f"{evictions.clean} clean, {evictions.dirty} dirty, {evictions.zero} zero pages"),
        ("kernel", _kernel(pager)),
    ]


def _kernel(pager: PagerStatus) -> str:
    """Return how the pager notices writes, and which features of userfaultfd are missing (or were told to hide)."""
    how = "tracks writes itself" if pager.dirty_tracking == "wp-async" else "writes are write-protect faults"
    missing = [name for name, there in pager.features.items() if not there]
    return f"{how} ({pager.dirty_tracking})" + (f"; without {', '.join(missing)}" if missing else "")


def _us(value: float | None) -> str:
    return "-" if not value else f"{value:.0f} µs"


def _donors(donors: Sequence[PagerDonor]) -> RenderableType:
    """Show a line for each donor, however many leases it has; removed donors are left out."""
    titles = ("DONOR", "STATE", "CHANNEL", "SIZE", "READ", "WRITTEN", "ERRORS")
    table = grid(*titles, names=("DONOR",), figures=titles[3:])
    away: list[str] = []
    for (name, state), alike in health.together(donors).items():
        sizes = (
            sum(each.export_bytes for each in alike),
            sum(each.read_bytes for each in alike),
            sum(each.written_bytes for each in alike),
        )
        errors = sum(each.errors for each in alike)
        shown = Text(state, DONOR_COLORS.get(state, "red"))
        table.add_row(name, shown, _channel(alike), *map(format_bytes, sizes), str(errors))
        notes = filter(None, (health.absence(alike[0]), health.refusal(alike)))
        away += [f"  {name}: {note}" for note in notes]
    return Group(table, *away)


def _channel(alike: Sequence[PagerDonor]) -> Text:
    """Show how the bytes of a donor's exports go; of several ways the worst."""
    channels = {each.channel for each in alike}
    found = next((each for each in ("insecure", "local", "tls") if each in channels), "-")
    return Text(found, CHANNEL_COLORS.get(found, ""))


def channel_notes(found: VmStatus) -> list[str]:
    """Return a warning if memory of the VM goes over a network without encryption."""
    donors = () if found.pager is None else found.pager.donors
    open_to_all = [each for each in donors if each.channel == "insecure" and each.state != "removed"]
    names = dict.fromkeys(health.name_of(each) for each in open_to_all)
    if not names:
        return []
    return [
        f"warning: what VM '{found.name}' keeps on {', '.join(names)} is neither encrypted nor protected (--insecure):"
        " to pair, on the donor: ghostbox token create; here: ghostbox donor add TOKEN, then down and up"
    ]


def level(found: Level | None) -> Text:
    """Show the health of a VM's memory."""
    return Text("-") if found is None else Text(str(found), _LEVELS[found])


def _colored(state: VmState) -> Text:
    return Text(str(state), _COLORS.get(state, ""))
