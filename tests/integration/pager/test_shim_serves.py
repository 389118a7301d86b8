# SPDX-License-Identifier: MIT
"""The shim zaps, discards, unmaps and refuses, against a pager that misbehaves on purpose."""

from __future__ import annotations

import errno
import os
import signal
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers import fake_pager as wire
from helpers.fake_pager import PAGE, FakePager, Peer
from helpers.pager import MemoryClient, memory_client

SIZE = 1 << 20


@pytest.fixture
def served(fake: FakePager, place: Path) -> Iterator[tuple[MemoryClient, Peer]]:
    """Yield a client whose region the fake pager has."""
    thread = threading.Thread(target=lambda: fake.accept().handshake(), daemon=True)
    thread.start()
    with memory_client("1M", fake.path, stderr=place / "err") as client:
        thread.join(10)
        yield client, fake.peers[0]


def fill(client: MemoryClient, peer: Peer, page: int, value: int = 7) -> None:
    """Make a page present with ``value`` in its first word."""
    client.start("read", first=page)
    peer.serve_fault(struct.pack("=Q", value) + bytes(PAGE - 8))
    assert client.result("read")["value"] == value


def again_resumed(fake: FakePager) -> Peer:
    """Let another pager take over the shim and the region."""
    fake.listen()
    again = fake.accept().handshake()
    assert again.hello_flags & wire.HELLO_RESUME
    return again


def test_a_zap_keeps_the_page_and_makes_the_next_touch_a_minor_fault(served: tuple[MemoryClient, Peer]) -> None:
    client, peer = served
    fill(client, peer, 5)
    assert peer.zap((5 * PAGE, PAGE)) == 0
    client.start("read", first=5)
    page, flags = peer.serve_fault()
    assert (page, flags & wire.PAGEFAULT_MINOR) == (5, wire.PAGEFAULT_MINOR)
    assert client.result("read")["value"] == 7


def test_many_ranges_are_zapped_by_one_message(served: tuple[MemoryClient, Peer]) -> None:
    client, peer = served
    for page in range(0, 6, 2):
        fill(client, peer, page)
    ranges = [(page * PAGE, PAGE) for page in range(SIZE // PAGE)]
    assert peer.zap(*ranges) == 0
    for page in range(0, 6, 2):
        client.start("read", first=page)
        assert peer.serve_fault()[0] == page


@pytest.mark.parametrize(
    "bad",
    [(SIZE, PAGE), (0, SIZE + PAGE), (0, 0), (1, PAGE), (0, 100), (2**64 - PAGE, 2 * PAGE), (PAGE, 2**64 - PAGE)],
)
def test_a_range_outside_the_region_is_refused_and_nothing_is_zapped(
    served: tuple[MemoryClient, Peer], bad: tuple[int, int]
) -> None:
    client, peer = served
    fill(client, peer, 0)
    assert peer.zap((0, PAGE), bad) == errno.EINVAL
    assert client.command("read", first=0)["value"] == 7


@pytest.mark.parametrize("n_ranges", [0, 2, 257, 2**32 - 1])
def test_a_zap_that_lies_about_its_length_ends_the_connection(
    served: tuple[MemoryClient, Peer], n_ranges: int, fake: FakePager, place: Path
) -> None:
    _, peer = served
    with pytest.raises(ConnectionError):
        peer.zap((0, PAGE), n_ranges=n_ranges)
    assert fake.accept().handshake().hello_flags == wire.HELLO_RESUME
    assert f"the pager sent a zap of 40 bytes that says it has {n_ranges} ranges" in (place / "err").read_text()


@pytest.mark.parametrize("type", [0, wire.HELLO, wire.PIN, wire.ZAP_DONE, 99])
def test_a_message_that_a_pager_never_sends_ends_the_connection(
    served: tuple[MemoryClient, Peer], type: int, fake: FakePager
) -> None:
    _, peer = served
    peer.send(type)
    assert peer.hung_up()
    fake.accept().handshake()


def test_rubbish_ends_the_connection_and_the_memory_stays_registered(
    served: tuple[MemoryClient, Peer], fake: FakePager
) -> None:
    client, peer = served
    peer.sock.send(os.urandom(100))
    assert peer.hung_up()
    second = fake.accept().handshake()
    fill(client, second, 9)


def test_a_discard_waits_for_the_pager_and_then_punches(served: tuple[MemoryClient, Peer]) -> None:
    client, peer = served
    fill(client, peer, 2)
    client.start("discard", first=2, n=3)
    seq, offset, length, _ = peer.take_range(wire.DISCARD_BEGIN)
    assert (offset, length) == (2 * PAGE, 3 * PAGE)
    assert client.answers_nothing("discard", for_s=0.3)
    assert os.fstat(peer.memfd).st_blocks * 512 == PAGE
    peer.ready(seq)
    assert peer.take_range(wire.DISCARD_END) == (seq, offset, length, 0)
    assert os.fstat(peer.memfd).st_blocks == 0
    assert client.answers_nothing("discard", for_s=0.3)  # the pager's page map may not know the page so far
    peer.done(seq)
    assert client.result("discard")["ok"]


def test_a_discard_that_the_pager_refuses_punches_nothing(served: tuple[MemoryClient, Peer]) -> None:
    client, peer = served
    fill(client, peer, 2)
    client.start("discard", first=2, n=1)
    peer.ready(peer.take_range(wire.DISCARD_BEGIN)[0], errno.EBUSY)
    assert client.result("discard")["error"] == "fallocate: EBUSY"
    assert client.command("read", first=2)["value"] == 7


def test_answers_to_discards_may_come_in_any_order(served: tuple[MemoryClient, Peer]) -> None:
    client, peer = served
    seqs = {}
    for first in (10, 20, 30):
        client.start("discard", first=first, n=1)
        seq, offset, _, _ = peer.take_range(wire.DISCARD_BEGIN)
        seqs[offset // PAGE] = seq
    assert len(set(seqs.values())) == 3
    for first in (20, 30, 10):
        peer.ready(seqs[first])
        assert peer.take_range(wire.DISCARD_END)[:2] == (seqs[first], first * PAGE)
        peer.done(seqs[first])
        assert client.result("discard")["ok"]


def test_an_answer_to_nothing_is_ignored(served: tuple[MemoryClient, Peer]) -> None:
    client, peer = served
    peer.ready(12345)
    assert peer.zap((0, PAGE)) == 0
    assert client.command("allocated")["bytes"] == 0


def test_zaps_go_on_while_a_discard_waits(served: tuple[MemoryClient, Peer]) -> None:
    client, peer = served
    client.start("discard", first=0, n=1)
    seq = peer.take_range(wire.DISCARD_BEGIN)[0]
    assert peer.zap((PAGE, PAGE)) == 0
    peer.agree(seq)
    assert client.result("discard")["ok"]


def test_parts_of_pages_are_zeroed_and_only_whole_pages_discarded(served: tuple[MemoryClient, Peer]) -> None:
    client, peer = served
    client.start("discard", offset=4096 + 2048, bytes=2 * 4096)
    for page in (1, 3):  # the two edges are written through the mapping
        assert peer.serve_fault(b"\xff" * PAGE)[0] == page
    seq, offset, length, _ = peer.take_range(wire.DISCARD_BEGIN)
    assert (offset, length) == (2 * PAGE, PAGE)
    peer.agree(seq)
    assert client.result("discard")["ok"]
    assert os.pread(peer.memfd, PAGE, PAGE) == b"\xff" * 2048 + bytes(2048)
    assert os.pread(peer.memfd, PAGE, 3 * PAGE) == bytes(2048) + b"\xff" * 2048


def test_a_discard_within_one_page_punches_nothing(served: tuple[MemoryClient, Peer]) -> None:
    client, peer = served
    client.start("discard", offset=4096 + 8, bytes=16)
    assert peer.serve_fault(b"\xff" * PAGE)[0] == 1
    assert client.result("discard")["ok"]
    assert os.pread(peer.memfd, 32, PAGE) == b"\xff" * 8 + bytes(16) + b"\xff" * 8


def test_madvise_remove_is_a_discard(served: tuple[MemoryClient, Peer]) -> None:
    client, peer = served
    client.start("remove", first=4, n=2)
    seq, offset, length, _ = peer.take_range(wire.DISCARD_BEGIN)
    assert (offset, length) == (4 * PAGE, 2 * PAGE)
    peer.agree(seq)
    assert client.result("remove")["ok"]


def test_a_discard_fails_if_no_pager_follows_the_one_that_died(
    served: tuple[MemoryClient, Peer], fake: FakePager
) -> None:
    client, peer = served
    fill(client, peer, 0)
    client.start("discard", first=0, n=1)
    peer.take_range(wire.DISCARD_BEGIN)
    fake.stop()
    assert client.answers_nothing("discard", for_s=2.0)
    assert client.result("discard")["error"] == "fallocate: EIO"
    assert client.command("allocated")["bytes"] == PAGE


@pytest.mark.parametrize("step", ["begun", "ready", "ended"])
def test_a_discard_that_a_pager_left_undone_is_asked_of_the_next_one(
    served: tuple[MemoryClient, Peer], fake: FakePager, step: str
) -> None:
    client, peer = served
    fill(client, peer, 0)
    client.start("discard", first=0, n=2)
    seq = peer.take_range(wire.DISCARD_BEGIN)[0]
    if step != "begun":
        peer.ready(seq)
    if step == "ended":
        assert peer.take_range(wire.DISCARD_END)[0] == seq
    fake.stop()
    again = again_resumed(fake)
    seq, offset, length, _ = again.take_range(wire.DISCARD_BEGIN)
    assert (offset, length) == (0, 2 * PAGE)
    assert client.answers_nothing("discard", for_s=0.2)
    again.agree(seq)
    assert client.result("discard")["ok"]
    assert client.command("allocated")["bytes"] == 0


def test_an_old_promise_does_not_let_a_hole_be_punched_under_the_next_pager(
    served: tuple[MemoryClient, Peer], fake: FakePager
) -> None:
    """READY came, and then another pager, before the waiting thread ran: the pages are the other pager's now."""
    client, peer = served
    fill(client, peer, 0)
    client.start("discard", first=0, n=1)
    seq = peer.take_range(wire.DISCARD_BEGIN)[0]
    fake.stop()
    again = again_resumed(fake)
    again.ready(seq)  # the answer is for the earlier connection: no thread waits for it
    seq = again.take_range(wire.DISCARD_BEGIN)[0]
    assert client.answers_nothing("discard", for_s=0.3)
    assert client.command("allocated")["bytes"] == PAGE
    again.agree(seq)
    assert client.result("discard")["ok"]


def test_without_a_pager_a_discard_fails_and_reads_wait(
    served: tuple[MemoryClient, Peer], fake: FakePager, place: Path
) -> None:
    client, peer = served
    fill(client, peer, 0)
    fake.stop()
    assert peer.uffd == -1
    client.start("read", first=1)
    assert client.answers_nothing("read", for_s=1.0)
    assert client.attempt("discard", first=0, n=1)["error"] == "fallocate: EIO"
    assert "accesses to absent pages wait until a pager is back" in (place / "err").read_text()


def test_a_pager_that_comes_back_gets_the_same_region(served: tuple[MemoryClient, Peer], fake: FakePager) -> None:
    client, peer = served
    fill(client, peer, 0, value=11)
    before = (peer.base, peer.length)
    fake.stop()
    client.start("read", first=1)
    assert client.answers_nothing("read", for_s=0.5)
    again = again_resumed(fake)
    assert (again.base, again.length) == before
    assert os.pread(again.memfd, 8, 0) == struct.pack("=Q", 11)
    # The dead pager may have read the event; a new pager wakes all threads, and they fault again.
    again.copy(1, struct.pack("=Q", 12) + bytes(PAGE - 8))
    assert client.result("read")["value"] == 12
    fill(client, again, 2)
    client.start("discard", first=0, n=1)
    again.agree(again.take_range(wire.DISCARD_BEGIN)[0])
    assert client.result("discard")["ok"]


def test_a_pager_that_refuses_to_resume_is_said_once_and_tried_again(
    served: tuple[MemoryClient, Peer], fake: FakePager, place: Path
) -> None:
    _, peer = served
    peer.sock.close()
    for _ in range(3):
        second = fake.accept()
        second.take_hello()
        second.reject(errno.EPERM, b"no page map")
    fake.accept().handshake()
    said = (place / "err").read_text()
    assert said.count("the pager refuses: no page map; trying again until a pager serves the memory") == 1


def test_a_second_mapping_is_refused(served: tuple[MemoryClient, Peer], place: Path) -> None:
    client, _ = served
    assert client.attempt("map-again")["error"] == "mmap: EBUSY"
    assert "mapped a second time, which would corrupt it" in (place / "err").read_text()


def test_pages_mapped_again_in_place_are_registered_again(served: tuple[MemoryClient, Peer]) -> None:
    client, peer = served
    fill(client, peer, 6)
    client.command("map-in-place", first=4, n=4)
    client.start("read", first=6)
    assert peer.serve_fault()[1] & wire.PAGEFAULT_MINOR
    assert client.result("read")["value"] == 7
    fill(client, peer, 5)


@pytest.mark.parametrize(
    ("command", "error"),
    [("map-over", "mmap: EINVAL"), ("move", "mremap: EINVAL"), ("preallocate", "fallocate: EOPNOTSUPP")],
)
def test_what_would_tear_the_memory_from_the_pager_is_refused(
    served: tuple[MemoryClient, Peer], command: str, error: str
) -> None:
    client, _ = served
    assert client.attempt(command)["error"] == error


def test_a_part_cannot_be_unmapped(served: tuple[MemoryClient, Peer]) -> None:
    client, peer = served
    assert client.attempt("unmap", n=2)["error"] == "munmap: EINVAL"
    fill(client, peer, 0)


def test_unmapping_says_goodbye_and_a_late_zap_touches_nothing(served: tuple[MemoryClient, Peer]) -> None:
    client, peer = served
    client.command("unmap")
    seq = peer.take_bye()
    assert peer.zap((0, PAGE)) == errno.ESRCH
    peer.send(wire.BYE_DONE, seq=seq)
    assert peer.hung_up()


def test_a_goodbye_that_a_pager_did_not_answer_is_said_to_the_next_one(
    served: tuple[MemoryClient, Peer], fake: FakePager
) -> None:
    client, peer = served
    client.command("unmap")
    peer.take_bye()
    fake.stop()
    again_resumed(fake).part()
    assert fake.no_shim_connects()


def test_memory_that_is_unmapped_while_there_is_no_pager_is_given_up_by_the_next_one(
    served: tuple[MemoryClient, Peer], fake: FakePager
) -> None:
    client, _ = served
    fake.stop()
    client.command("unmap")
    again_resumed(fake).part()
    assert fake.no_shim_connects()
    thread = threading.Thread(target=lambda: fake.accept().handshake(), daemon=True)
    thread.start()
    client.command("map", bytes="64K")
    thread.join(10)


def test_a_pager_that_does_not_know_what_was_unmapped_is_left_alone(
    served: tuple[MemoryClient, Peer], fake: FakePager
) -> None:
    client, _ = served
    fake.stop()
    client.command("unmap")
    fake.listen()
    for error in (errno.EAGAIN, errno.ESTALE):
        again = fake.accept()
        again.take_memory()
        again.reject(error, b"this pager does not know the region")
    assert fake.no_shim_connects()


def test_an_unmapped_region_makes_room_for_another(served: tuple[MemoryClient, Peer], fake: FakePager) -> None:
    client, _ = served
    for _ in range(40):  # more discards than slots
        thread = threading.Thread(target=lambda: fake.accept().handshake(), daemon=True)
        thread.start()
        index = client.command("map", bytes="64K")["index"]
        thread.join(10)
        client.command("unmap", region=index)
        fake.peers[-1].part()


def test_regions_are_served_side_by_side(served: tuple[MemoryClient, Peer], fake: FakePager) -> None:
    client, first = served
    thread = threading.Thread(target=lambda: fake.accept().handshake(), daemon=True)
    thread.start()
    index = client.command("map", bytes="64K")["index"]
    thread.join(10)
    second = fake.peers[1]
    assert second.length == 64 << 10
    client.start("read", region=index, first=1)
    assert second.serve_fault()[0] == 1
    assert client.result("read")["value"] == 0
    client.command("unmap", region=index)
    fill(client, first, 3)
    assert first.zap((3 * PAGE, PAGE)) == 0


def test_no_more_than_sixteen_regions(served: tuple[MemoryClient, Peer], fake: FakePager) -> None:
    client, _ = served
    for _ in range(15):
        thread = threading.Thread(target=lambda: fake.accept().handshake(), daemon=True)
        thread.start()
        client.command("map", bytes="64K")
        thread.join(10)
    assert client.attempt("map", bytes="64K")["error"] == "mmap: ENOMEM"


def test_a_child_has_no_mapping_and_cannot_make_one(served: tuple[MemoryClient, Peer]) -> None:
    client, _ = served
    client.command("dofork")  # asked for, but never done
    assert client.command("fork-touch")["signal"] == signal.SIGSEGV
    assert client.command("fork-map")["status"] == errno.EPERM
    assert client.command("fork-punch")["status"] == errno.EIO


def test_huge_pages_are_not_switched_on(served: tuple[MemoryClient, Peer]) -> None:
    client, peer = served
    client.command("hugepage")
    maps = Path(f"/proc/{client.pid}/smaps").read_text()
    flags = maps.partition("memory-backend-memfd")[2].partition("VmFlags:")[2].splitlines()[0].split()
    assert "hg" not in flags
    assert "dc" in flags  # the kernel does not copy the memory at a fork
    fill(client, peer, 0)
