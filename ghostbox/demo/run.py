# SPDX-License-Identifier: MIT
"""Run the demo: two secure donors on loopback, a VM on their memory, a program in it that fills and checks that memory.

The demo pairs its donors with this host, as ``donor add`` does, so that the pages go over TLS.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ghostbox import donors, pager, session
from ghostbox.config import Config
from ghostbox.demo import lenders
from ghostbox.donors import trust
from ghostbox.errors import GhostboxError, GuestError, NotFound
from ghostbox.pager.model import PagerDonor, PagerStatus
from ghostbox.paths import Paths
from ghostbox.session import Book
from ghostbox.session.progress import Progress
from ghostbox.session.readiness import guest
from ghostbox.system.ssh import GuestSsh
from ghostbox.units import GIB, MIB

VM_NAME = "demo"
MEMORY_BYTES = 1 * GIB
REMOTE_BYTES = 2 * GIB
CACHE_BYTES = 128 * MIB
WORKLOAD_BYTES = 384 * MIB
N_LENDERS = 2
SETTINGS: dict[str, object] = {
    "vm.memory": MEMORY_BYTES,
    "vm.remote_memory": REMOTE_BYTES,
    "pool.cache": CACHE_BYTES,
    "guest.tiering": "off",  # the program is bound to node 1, and its pages must stay there
}

_WORKLOAD_TIMEOUT_S = 900.0
_WORKLOAD_THERE = "/tmp/ghostbox-workload.py"  # noqa: S108 - the demo's guest has one user
_SHORT_TIMEOUT_S = 60.0
_NUMA_COMMAND = "numactl --hardware"
_TIERS_COMMAND = "grep -H . /sys/devices/virtual/memory_tiering/memory_tier*/nodelist"
_REMOTE_NODE = "1"
_LOOK_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Traffic:
    """Counts what went between the pager and the donors while the program ran; bytes and counts."""

    written_bytes: int
    read_bytes: int
    fetched_pages: int
    evicted_pages: int


@dataclass(frozen=True)
class DemoResult:
    """Holds what the demo found. ``problems`` is empty if all is well; ``over_tls``: no page went without TLS."""

    name: str
    virt: str
    numa: str
    tiers: dict[str, str]
    bytes_checked: int
    cache_bytes: int
    wrong_pages: int
    pages_by_node: dict[str, int]
    fill_bytes_per_s: float
    check_bytes_per_s: float
    random_reads_per_s: float
    traffic: Traffic
    over_tls: bool
    donor_bytes: dict[str, int]
    stage_seconds: dict[str, float]
    ssh_command: str
    problems: tuple[str, ...]


def run(
    load_config: Callable[[dict[str, object]], Config], paths: Paths, progress: Progress, name: str = VM_NAME
) -> DemoResult:
    """Run the demo; the VM and its donors run on, so that the user can look around.

    Args:
        load_config: returns the configuration with these settings on top.
        paths: where everything is.
        progress: receives the stages.
        name: of the VM; its donors are NAME-1 and NAME-2.

    Raises:
        GhostboxError: a step failed before there was a result.
    """
    before = lenders.running(paths)
    with progress.stage("memservers") as stage:
        lent = lenders.start(_lender_names(name), REMOTE_BYTES // N_LENDERS, paths, lenders.SECURE)
        stage.say(", ".join(f"{each.name} at {each.address}" for each in lent))
    try:
        config = load_config({**SETTINGS, "vm.name": name, "pool.donors": [each.address for each in lent]})
        session.up(config, paths, progress)
    except BaseException:
        if Book(paths.vm(name)).load() is None:
            lenders.stop([each for each in lent if each not in before], paths)
        raise
    return _prove(name, paths, progress, [each.address for each in lent])


def tear_down(paths: Paths, progress: Progress, name: str = VM_NAME) -> None:
    """Remove the demo's VM and end its donors. What is gone already is no error."""
    try:
        session.delete(name, paths, progress, force=True)
    except NotFound:
        progress.note(f"VM '{name}' is gone already")
    with progress.stage("memservers") as stage:
        found = [each for each in lenders.running(paths) if each.name in _lender_names(name)]
        lenders.stop(found, paths)
        stage.say(f"{len(found)} ended")


def _lender_names(name: str) -> tuple[str, ...]:
    return tuple(f"{name}-{number + 1}" for number in range(N_LENDERS))


def _prove(name: str, paths: Paths, progress: Progress, lent: list[str]) -> DemoResult:
    """Look at the guest's memory, run the program, compare the pager's counters before and after.

    ``lent`` are the donors' addresses. The VM may also have leases of donors of an earlier demo that was killed.
    """
    book = Book(paths.vm(name))
    record = book.need(name, paths)
    with guest(record, book.files) as ssh:
        with progress.stage("look inside"):
            numa = _output(ssh, _NUMA_COMMAND)
            tiers = _tiers(_output(ssh, _TIERS_COMMAND))
        with progress.stage("workload") as stage:
            stage.say(f"fill and check {WORKLOAD_BYTES // MIB} MiB of node {_REMOTE_NODE}")
            counters = _counters(book)
            over_tls = all(trust.means_of_uri(donor.uri) is trust.Means.TLS for donor in counters.donors)
            report, donor_bytes = _run_watched(ssh, lent)
            traffic = _traffic(counters, _counters(book))
    n_bytes = report["bytes"]
    return DemoResult(
        name=name,
        virt=record.virt,
        numa=numa,
        tiers=tiers,
        bytes_checked=n_bytes,
        cache_bytes=record.cache_bytes,
        wrong_pages=report["wrong_pages"],
        pages_by_node=report["pages_by_node"],
        fill_bytes_per_s=n_bytes / report["fill_s"],
        check_bytes_per_s=n_bytes / report["check_s"],
        random_reads_per_s=report["random_pages"] / report["random_s"],
        traffic=traffic,
        over_tls=over_tls,
        donor_bytes=donor_bytes,
        stage_seconds=dict(progress.seconds),
        ssh_command=session.info(name, paths).ssh_command,
        problems=problems(report, tiers, traffic),
    )


def problems(report: dict[str, Any], tiers: dict[str, str], traffic: Traffic) -> tuple[str, ...]:
    """Return what went wrong: wrong bytes, memory that was not remote, nodes in one tier."""
    found = []
    if report["wrong_pages"]:
        found.append(f"{report['wrong_pages']} pages came back wrong, the first is {report['first_wrong_page']}")
    if report["pages_by_node"].get(_REMOTE_NODE, 0) < report["pages"]:
        found.append(f"the program's memory was not all on node {_REMOTE_NODE}: {report['pages_by_node']}")
    if not traffic.written_bytes or not traffic.read_bytes:
        found.append("no page was remote: nothing went to the donors and came back")
    if len(tiers) < 2:
        found.append(f"the guest sees one memory tier only: {tiers}")
    return tuple(found)


def _run_watched(ssh: GuestSsh, lent: Sequence[str]) -> tuple[dict[str, Any], dict[str, int]]:
    """Run the program; return its report, and the most bytes that each donor held meanwhile.

    The donors are asked while the program runs: after its end the guest gives its memory back.
    """
    ended = threading.Event()
    with futures.ThreadPoolExecutor(max_workers=1) as aside:
        held = aside.submit(_most_held, lent, ended)
        try:
            report = _run_workload(ssh)
        finally:
            ended.set()
        return report, held.result()


def _most_held(lent: Sequence[str], ended: threading.Event) -> dict[str, int]:
    most: dict[str, int] = {}
    while True:
        for each in donors.query(lent):
            most[each.address] = max(most.get(each.address, 0), each.resident_bytes)
        if ended.wait(_LOOK_INTERVAL_S):
            return most


def _run_workload(ssh: GuestSsh) -> dict[str, Any]:
    program = Path(__file__).with_name("workload.py").read_text()
    ssh.put_text(_WORKLOAD_THERE, program)
    seed = secrets.randbits(32)
    command = f"numactl --membind={_REMOTE_NODE} python3 {_WORKLOAD_THERE} {WORKLOAD_BYTES} {seed}"
    done = ssh.run(command, _WORKLOAD_TIMEOUT_S)
    try:
        return dict(json.loads(done.stdout))
    except ValueError as err:
        raise GuestError(f"the program in the guest failed (status {done.status})", why=done.stderr.strip()) from err


def _output(ssh: GuestSsh, command: str) -> str:
    done = ssh.run(command, _SHORT_TIMEOUT_S)
    if done.status != 0:
        raise GuestError(f"'{command}' failed in the guest (status {done.status})", why=done.stderr.strip())
    return done.stdout.strip()


def _tiers(listing: str) -> dict[str, str]:
    """Return tier to nodes from ``…/memory_tier4/nodelist:0`` lines; tiers without nodes are left out."""
    found = {}
    for line in listing.splitlines():
        path, _, nodes = line.partition(":")
        if nodes.strip():
            found[Path(path).parent.name] = nodes.strip()
    return dict(sorted(found.items(), key=lambda item: int(item[0].removeprefix("memory_tier"))))


def _counters(book: Book) -> PagerStatus:
    found = pager.status(book.files.pager_control)
    if found is None:
        raise GhostboxError(
            f"the pager of VM '{book.files.state.name}' does not answer", why=f"its log is {book.files.pager_log}"
        )
    return found


def _traffic(before: PagerStatus, after: PagerStatus) -> Traffic:
    def grown(counter: Callable[[PagerDonor], int]) -> int:
        return sum(map(counter, after.donors)) - sum(map(counter, before.donors))

    return Traffic(
        written_bytes=grown(lambda donor: donor.written_bytes),
        read_bytes=grown(lambda donor: donor.read_bytes),
        fetched_pages=after.faults.missing_fetch - before.faults.missing_fetch,
        evicted_pages=after.evictions.pages - before.evictions.pages,
    )
