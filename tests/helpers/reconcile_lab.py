# SPDX-License-Identifier: MIT
"""Run real donors, a real pager with a process in place of QEMU, and the VM's record, for a supervisor's rounds.

Tests that need a VM (its domain, its pauses, the supervisor as a process) are in tests/vm.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ghostbox import pager, paths
from ghostbox.donors import token
from ghostbox.donors.client import DonorClient
from ghostbox.pager import health
from ghostbox.plan.plan import PagerPlan, shares_of
from ghostbox.session import backup, cleanup, events, leaving, pairing, pool, view
from ghostbox.session.reconcile import Reconciler, look_after
from ghostbox.session.record import Book, LeaseRecord, Made, Record, VmState
from ghostbox.system import hypervisor, processes
from ghostbox.system.hypervisor import QemuProcess
from ghostbox.units import MIB
from helpers.donor import RunningDonor, running_donor
from helpers.pager import MemoryClient, memory_client, short_dir
from helpers.ports import free_port
from helpers.secure_host import create_token

POOL = 64 * MIB
PLAN = PagerPlan(
    cache_bytes=8 * MIB,
    extent_bytes=4 * MIB,
    readahead_bytes=256 * 1024,
    poll_us=50,
    log_level="info",
    pool_bytes=POOL,
    rebuild_after_s=1.0,
    rebuild_rate_bytes=0,
)


@dataclass
class Lab:
    """Holds donors, a pager, its client, and the reconciler."""

    donors: list[RunningDonor]
    book: Book
    client: MemoryClient
    reconciler: Reconciler
    paths: paths.Paths

    def until_mended(self, *, timeout_s: float = 60.0) -> None:
        """Do rounds until the pager reports that all is well, and no donor that left is in the record any more.

        The pager is well as soon as a drained donor is empty; the donor's lease ends in the round that finds it empty.
        """

        def mended() -> bool:
            assert self.reconciler.round()
            found = pager.status(self.book.files.pager_control)
            record = self.book.load()
            if found is None or record is None or found.health != "ok":
                return False
            leaving = {donor.uri for donor in found.donors if donor.draining or donor.state == "removed"}
            return leaving.isdisjoint(lease.nbd_uri for lease in record.leases)

        processes.wait_until(mended, timeout_s=timeout_s, what="the memory being well again", interval_s=0.2)

    def said(self) -> str:
        """Return the events."""
        return "\n".join(f"{each.event}: {each.text}" for each in events.read(self.book.files))

    def wait_for(self, event: str) -> None:
        """Wait until a supervisor has recorded this event."""
        processes.wait_until(lambda: event in self.said(), timeout_s=40, what=f"the event '{event}'")

    def shown(self) -> str:
        """Return the problems that `status` shows."""
        return "\n".join(problem.text for problem in self.health().problems)

    def advice(self) -> str:
        """Return the advice that `status` shows."""
        return "\n".join(str(problem.advice) for problem in self.health().problems)

    def level(self) -> str:
        """Return the level of the memory's health."""
        return str(self.health().level)

    def health(self) -> health.Health:
        """Return the memory's health, as `status` shows it."""
        record = self.book.load()
        assert record is not None
        found = view.with_names(record, leaving.noted(record, pager.status(self.book.files.pager_control)))
        assert found is not None
        return health.assess("lab", found, record.donor_names())

    def lent(self, number: int) -> int:
        """Return the bytes that the pager can use of a donor."""
        record = self.book.load()
        assert record is not None
        found = pool.held(record, pool.status(self.book))
        return sum(each.size_bytes for each in found if each.address == self.donors[number].address)


@contextmanager
def laboratory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sizes: list[str],
    *,
    with_backup: bool = False,
    machines: Sequence[str] = (),
    secure: bool = False,
    **changed: Any,
) -> Iterator[Lab]:
    """Run donors of ``sizes`` and a VM's pager over them; ``machines`` are the donors', by default one each.

    With ``secure``, this process's host is paired with the donors, whose memory goes over TLS.
    """
    plan = dataclasses.replace(PLAN, **changed)
    with ExitStack() as stack:
        donors = [
            stack.enter_context(
                running_donor(
                    tmp_path, size=size, name=f"d{number}", bind=f"127.0.0.{number + 2}", port=str(free_port()),
                    control_port=str(free_port()), machine=machines[number] if machines else f"d{number}",
                    secure="" if secure else None,
                )
            )
            for number, size in enumerate(sizes)
        ]  # fmt: skip
        root = stack.enter_context(short_dir())
        own = paths.Paths(root / "s", root / "r", root / "c", root / "e", paths.find().native)
        book = Book(own.vm("lab"))
        paths.make_directory(book.files.state)
        paths.make_directory(book.files.runtime)
        if secure:
            monkeypatch.setenv("GHOSTBOX_STATE_DIR", str(own.state))
            for donor in donors:
                pairing.pair(token.parse(create_token(donor)), own)
        copy = tmp_path / "copy" if with_backup else None
        book.save(record_of(plan, tuple(donor.address for donor in donors), copy))
        stack.callback(end, book)
        start_pager(book, plan, own)
        client = stack.enter_context(memory_client(f"{POOL // MIB}M", book.files.pager_socket))
        monkeypatch.setattr(hypervisor, "find_qemu", lambda uuid: QemuProcess(client.pid))
        reconciler = Reconciler("lab", own)
        stack.callback(reconciler.close)
        yield Lab(donors, book, client, reconciler, own)


@contextmanager
def supervised(lab: Lab) -> Iterator[None]:
    """Let a supervisor in a process of its own do its rounds; at the end it is killed."""
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            look_after("lab", lab.paths, interval_s=0.2)
        os._exit(1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def end(book: Book) -> None:
    """Undo everything."""
    book.load()
    cleanup.unmake(book, end=True)


def record_of(plan: PagerPlan, addresses: tuple[str, ...], copy: Path | None) -> Record:
    """Return the record of a running VM."""
    return Record(
        name="lab", state=VmState.RUNNING, uuid="u", mac="m", ssh_port=1, created_at="2026-01-01T00:00:00+00:00",
        domain="ghostbox-gbt-lab", libvirt_uri="test:///default", image="none", user="ghost", virt="tcg", cpus=1,
        memory_bytes=1, remote_memory_bytes=plan.pool_bytes, cache_bytes=plan.cache_bytes, disk_bytes=1, new=False,
        pager=plan, donors=addresses, backup=None if copy is None else str(copy),
    )  # fmt: skip


def start_pager(book: Book, plan: PagerPlan, own: paths.Paths) -> None:
    """Make the leases, and start the pager over them."""
    record = book.record
    sizes = [(share.address, share.size_bytes) for share in shares_of(plan, pool.offers(record))]
    leases = []
    for number, (address, size_bytes) in enumerate(sizes):
        lease = LeaseRecord(address, f"lab-{number}", size_bytes)
        record = book.save(dataclasses.replace(record, leases=(*record.leases, lease)))
        leases.append(pool.borrow(book, lease))
    record = book.save(dataclasses.replace(record, leases=tuple(leases), made=frozenset({Made.PAGER, Made.BACKUP})))
    uri = None
    if record.backup is not None:
        backup.create(Path(record.backup), plan.pool_bytes)
        backup.ensure(book.files, Path(record.backup))
        uri = backup.uri(book.files)
    files = cleanup.pager_files(book.files)
    uris = [str(lease.nbd_uri) for lease in leases]
    pager.start(own.pager_program, plan, files, uris, peer_uid=None, backup=uri)


def kill(donor: RunningDonor) -> None:
    """Kill all processes of a donor (SIGKILL): its memory is gone."""
    pid = donor.data_plane_pid
    donor.kill_control_plane()
    os.kill(pid, signal.SIGKILL)


def leases_of(donor: RunningDonor) -> int:
    """Return how many leases a donor has."""
    with DonorClient(donor.address) as client:
        return len(client.leases())
