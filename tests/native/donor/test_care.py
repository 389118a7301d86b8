# SPDX-License-Identifier: MIT
"""The supervisor's rounds over real donors and a real pager, with a process in place of QEMU: a death is mended.

What needs a VM (its domain, its pauses, the supervisor as a process) is in tests/vm.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from ghostbox import health, hypervisor, pager, paths, processes
from ghostbox.donor_client import DonorClient
from ghostbox.errors import Refused
from ghostbox.hypervisor import QemuProcess
from ghostbox.plan import PagerPlan
from ghostbox.session import backup, cleanup, events, pool, view
from ghostbox.session.care import Care, look_after
from ghostbox.session.record import Book, LeaseRecord, Made, Record, VmState
from ghostbox.units import MIB
from helpers.donor import RunningDonor, running_donor
from helpers.guest import free_port
from helpers.pager import MemoryClient, memory_client, short_dir

pytestmark = pytest.mark.timeout(180)

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
    """Donors, a pager, its client, and who cares for them."""

    donors: list[RunningDonor]
    book: Book
    client: MemoryClient
    care: Care
    paths: paths.Paths

    def until_mended(self, *, timeout_s: float = 60.0) -> None:
        """Do rounds until the pager says that all is well again."""

        def mended() -> bool:
            assert self.care.round()
            found = pager.status(self.book.files.pager_control)
            return found is not None and found["health"] == "ok"

        processes.wait_until(mended, timeout_s=timeout_s, what="the memory being well again", interval_s=0.2)

    def said(self) -> str:
        """Return the events."""
        return "\n".join(f"{each.event}: {each.text}" for each in events.read(self.book.files))

    def wait_for(self, event: str) -> None:
        """Wait until a supervisor has said it."""
        processes.wait_until(lambda: event in self.said(), timeout_s=40, what=f"the event '{event}'")

    def shown(self) -> str:
        """Return what `status` says is wrong."""
        record = self.book.load()
        assert record is not None
        found = view.with_names(record, pager.status(self.book.files.pager_control))
        assert found is not None
        return "\n".join(problem.text for problem in health.assess("lab", found, record.donor_names()).problems)

    def lent(self, number: int) -> int:
        """Return what the pager can use of a donor."""
        record = self.book.load()
        assert record is not None
        found = pool.held(record, pool.status(self.book))
        return sum(each.size_bytes for each in found if each.address == self.donors[number].address)


@contextmanager
def laboratory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[str], *, with_backup: bool = False, **changed: int
) -> Iterator[Lab]:
    plan = dataclasses.replace(PLAN, **changed)
    with ExitStack() as stack:
        donors = [
            stack.enter_context(
                running_donor(
                    tmp_path, size=size, name=f"d{number}", bind=f"127.0.0.{number + 2}", port=str(free_port()),
                    control_port=str(free_port()),
                )
            )
            for number, size in enumerate(sizes)
        ]  # fmt: skip
        root = stack.enter_context(short_dir())
        own = paths.Paths(root / "s", root / "r", root / "c", root / "e", paths.find().native)
        book = Book(own.vm("lab"))
        paths.make_directory(book.files.state)
        paths.make_directory(book.files.runtime)
        copy = tmp_path / "copy" if with_backup else None
        book.save(record_of(plan, tuple(donor.address for donor in donors), copy))
        stack.callback(end, book)
        start_pager(book, plan, own)
        client = stack.enter_context(memory_client(f"{POOL // MIB}M", book.files.pager_socket))
        monkeypatch.setattr(hypervisor, "find_qemu", lambda uuid: QemuProcess(client.pid))
        care = Care("lab", own)
        stack.callback(care.close)
        yield Lab(donors, book, client, care, own)


@contextmanager
def supervised(lab: Lab) -> Iterator[None]:
    """Let a supervisor in a process of its own do its rounds; in the end it is killed."""
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
    book.load()
    cleanup.unmake(book)


def record_of(plan: PagerPlan, addresses: tuple[str, ...], copy: Path | None) -> Record:
    return Record(
        name="lab", state=VmState.RUNNING, uuid="u", mac="m", ssh_port=1, created_at="2026-01-01T00:00:00+00:00",
        domain="ghostbox-gbt-lab", libvirt_uri="test:///default", image="none", user="ghost", virt="tcg", cpus=1,
        memory_bytes=1, remote_memory_bytes=plan.pool_bytes, cache_bytes=plan.cache_bytes, disk_bytes=1, new=False,
        pager=plan, donors=addresses, backup=None if copy is None else str(copy),
    )  # fmt: skip


def start_pager(book: Book, plan: PagerPlan, own: paths.Paths) -> None:
    assert book.record is not None
    record = book.record
    sizes = [(share.address, share.size_bytes) for share in pool.shares_of(plan, pool.offers(record))]
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
    pid = donor.data_plane_pid
    donor.kill_control_plane()
    os.kill(pid, signal.SIGKILL)


def leases_of(donor: RunningDonor) -> int:
    with DonorClient(donor.address) as client:
        return len(client.leases())


def test_copies_of_a_dead_donor_find_room_on_the_others_and_it_can_lend_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["128M"] * 3, replicas=2) as lab:
        lab.client.command("fill", seed=4)
        lab.until_mended()
        dead = lab.donors[0]
        kill(dead)

        def noticed() -> bool:
            lab.care.round()
            return f"donor {dead.address} was up and is down" in lab.said()

        processes.wait_until(noticed, timeout_s=20, what="the donor's death")
        processes.wait_until(
            lambda: lab.care.round() and lab.lent(1) + lab.lent(2) >= 2 * POOL, timeout_s=30, what="room for the copies"
        )
        lab.client.command("verify", seed=4)
        dead.restart()
        lab.until_mended()
        lab.client.command("verify", seed=4)
        assert leases_of(dead) == 0, "its lease held nothing any more"
        assert f"memory-gone: {dead.address} runs again, without the" in lab.said()
        assert f"donor-removed: {dead.address} holds nothing of this VM any more" in lab.said()


def test_only_the_donor_that_lent_memory_is_believed_when_it_says_that_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["128M"]) as lab:
        [donor] = lab.donors
        lab.client.command("fill", seed=6)
        with DonorClient(donor.address) as client:
            own = client.status().id
        donor.kill_control_plane()
        host, _, port = donor.address.rpartition(":")
        data_plane = donor.data_plane_pid
        os.kill(data_plane, signal.SIGSTOP)
        try:
            with running_donor(tmp_path, size="64M", name="other", bind=host, control_port=port) as other:
                processes.wait_until(
                    lambda: lab.care.round() and "another-donor" in lab.said(), timeout_s=30, what="a word about it"
                )
                with DonorClient(other.address) as client:
                    strange = client.status().id
                text = f"another memserver answers at that address: 'other' (id {strange}) instead of 'd0' (id {own})"
                assert f"another-donor: {donor.address}: {text}: what ours holds is waited for" in lab.said()
                assert lab.shown().startswith(f"donor {donor.address} has not answered for ")
                assert f": {text}; it holds 64 MiB" in lab.shown()
        finally:
            os.kill(data_plane, signal.SIGCONT)
        donor.restart()
        lab.care.forget()
        lab.until_mended()
        lab.client.command("verify", seed=6)
        assert "memory-gone" not in lab.said()
        kill(donor)
        donor.restart()
        processes.wait_until(lambda: lab.care.round() and "is lost" in lab.said(), timeout_s=30, what="the loss")
        with DonorClient(donor.address) as client:
            assert client.status().id == own


def test_copy_on_disk_outlives_the_only_donor_which_then_lends_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["96M"], with_backup=True) as lab:
        lab.client.command("fill", seed=5)
        lab.until_mended()
        kill(lab.donors[0])
        processes.wait_until(
            lambda: lab.care.round() and "room-failed" in lab.said(), timeout_s=30, what="a word about room"
        )
        assert "the VM needs 64 MiB" in lab.said()
        lab.client.command("verify", seed=5)
        [server] = backup.find(lab.book.files)
        lab.donors[0].restart()
        lab.care.forget()
        lab.until_mended()
        lab.client.command("verify", seed=5)
        os.kill(server, signal.SIGKILL)
        processes.wait_until(lambda: not backup.find(lab.book.files), timeout_s=10, what="its end")
        lab.care.round()
        assert "backup-restarted" in lab.said()
        lab.until_mended()


def test_drains_outlive_the_supervisor_and_only_the_donor_that_asked_can_take_its_own_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["96M"] * 3, rebuild_rate_bytes=1 * MIB) as lab:
        lab.client.command("fill", seed=7)
        control = lab.book.files.pager_control
        first, second = (lab.donors[number].address for number in (0, 1))
        with DonorClient(first) as client:
            with supervised(lab):
                client.drain()
                lab.wait_for(f"move from {first} to the others")
            client.keep()
            lab.book.load()
            begun = pool.drain(lab.book, second)
            assert begun.bytes_to_move > 8 * MIB
            with supervised(lab):
                lab.wait_for(f"drain-ended: {first} is kept")
                processes.control_request(control, "set-rebuild-rate", bytes_per_s=0)
                processes.wait_until(lambda: leases_of(lab.donors[1]) == 0, timeout_s=40, what="the end of its leases")
        assert f"drain-ended: {second}" not in lab.said()
        lab.until_mended()
        lab.client.command("verify", seed=7)
        record = lab.book.load()
        assert record is not None
        assert record.asked_to == ()


def test_drain_that_does_not_fit_is_refused_with_figures_and_said_once_if_the_donor_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with laboratory(tmp_path, monkeypatch, ["48M", "48M"]) as lab:
        first = lab.donors[0].address
        lab.book.load()
        with pytest.raises(Refused, match=f"what donor {first} holds does not fit on the others") as caught:
            pool.drain(lab.book, first)
        assert "offers 16 MiB, the VM needs 64 MiB and has 32 MiB" in str(caught.value.why)
        assert f"ghostbox donor drain {first} --vm lab --to-host" in str(caught.value.hint)
        lab.donors[0].interrupt()
        processes.wait_until(
            lambda: lab.care.round() and "drain-failed" in lab.said(), timeout_s=30, what="a word about the drain"
        )
        lab.care.forget()
        assert lab.care.round()
        assert lab.said().count("drain-failed") == 1
