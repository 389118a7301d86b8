# SPDX-License-Identifier: MIT
"""Every extent has two copies: donors die, are drained, are added and lie, and no word is wrong."""

from __future__ import annotations

import contextlib
import functools
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox.system.processes import ControlError, wait_until
from helpers import hostile_client
from helpers.nbd import flip, read_export
from helpers.pager import (
    Build,
    MemoryClient,
    RunningMemserver,
    RunningPager,
    memory_client,
    nbdkit_memory,
    running_memserver,
    running_pager,
)
from helpers.takeover import PagerLine, fault_point_build, fault_points, pager_line

MIB = 1 << 20
OPTIONS: dict[str, Any] = {
    "replicas": "2",
    "allow_same_host": "",
    "pool": "16M",
    "extent": "1M",
    "rebuild_after": "0",
    "slow_us": "60000000",  # no donor counts as slow, even on a busy machine
}


@contextlib.contextmanager
def donors(count: int, size: str = "16M") -> Iterator[list[RunningMemserver]]:
    """Yield memory servers with one export "a" each."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(running_memserver(a=size)) for _ in range(count)]


@contextlib.contextmanager
def under_load(pager: RunningPager | PagerLine, *, seed: int = 1) -> Iterator[MemoryClient]:
    """Yield a client whose threads check every word that they read, until the block ends; then check all words."""
    with memory_client("16M", pager.listen) as client:
        client.start("stress", threads=4, seconds=600, seed=seed, discards=100)
        yield client
        client.command("stress-stop")
        answer = client.result("stress", timeout_s=120)
        assert answer["ok"], (answer, pager.log())
        assert answer["words_verified"] > 10_000


def donor_status(pager: RunningPager | PagerLine, uri: str) -> dict[str, Any]:
    """Return what ``status`` says of a donor."""
    found: dict[str, Any] = next(entry for entry in pager.status()["donors"] if entry["uri"] == uri)
    return found


def wait_paged(pager: RunningPager | PagerLine) -> None:
    """Wait until pages have been evicted and fetched again."""

    def paged() -> bool:
        status = pager.status()
        return bool(status["faults"]["missing_fetch"] > 50 and status["evictions"]["dirty"] > 50)

    wait_until(paged, timeout_s=30, what="eviction and fetches")


def wait_complete(pager: RunningPager | PagerLine, *, timeout_s: float = 40) -> None:
    """Wait until no copy is missing or being filled."""

    def complete() -> bool:
        pool = pager.status()["pool"]
        return not (pool["missing_copies"] or pool["stale_copies"] or pool["filling_copies"])

    try:
        wait_until(complete, timeout_s=timeout_s, what="all copies to be there")
    except TimeoutError as err:
        raise AssertionError((pager.status()["pool"], pager.log()[-3000:])) from err


def kill(donor: RunningMemserver) -> None:
    """Kill the donor by SIGKILL."""
    donor.process.kill()
    donor.process.wait(10)


def test_one_donor_dies_its_copies_are_made_anew_and_then_another_may_die() -> None:
    with donors(3) as (one, two, three):
        uris = [donor.uri("a") for donor in (one, two, three)]
        with running_pager(uris, cache="2M", **OPTIONS) as pager, under_load(pager):
            wait_paged(pager)
            assert pager.status()["health"] == "ok"
            assert sum(entry["used_slots"] for entry in pager.status()["donors"]) == 32
            kill(one)
            wait_until(lambda: pager.status()["health"] == "degraded", timeout_s=10, what="the loss to be noticed")
            # A broken connection degrades the pool, too; the donor counts as lost later, and its copies as missing.
            wait_until(lambda: donor_status(pager, uris[0])["used_slots"] == 0, timeout_s=40, what="the last old copy")
            wait_complete(pager)
            assert [donor_status(pager, uri)["copies"]["current"] for uri in uris[1:]] == [16, 16]
            kill(two)
            fetched = pager.status()["faults"]["missing_fetch"]
            wait_until(
                lambda: pager.status()["faults"]["missing_fetch"] > fetched + 200, timeout_s=30, what="it goes on"
            )
            assert pager.status()["pages"]["poisoned"] == 0
            assert pager.status()["health"] == "degraded"


def test_a_donor_is_drained_under_load_and_removed_and_another_takes_on_its_share() -> None:
    with donors(4) as running:
        uris = [donor.uri("a") for donor in running]
        with running_pager(uris[:3], cache="2M", **OPTIONS) as pager, under_load(pager):
            wait_paged(pager)
            with pytest.raises(ControlError, match="still holds 1. MiB; drain it first") as refused:
                pager.command("remove-donor", uri=uris[0])
            assert refused.value.code == "busy"
            assert pager.command("drain-donor", uri=uris[0])["bytes"] >= 10 * MIB
            wait_until(lambda: donor_status(pager, uris[0])["state"] == "drained", timeout_s=30, what="the drain")
            assert pager.command("remove-donor", uri=uris[0]) is None
            assert donor_status(pager, uris[0])["state"] == "removed"
            wait_until(lambda: running[0].status()["connections"] == 0, timeout_s=10, what="connections to be closed")
            assert running[0].resident_bytes("a") == 0
            assert pager.command("add-donor", uri=uris[3]) is None
            wait_until(
                lambda: donor_status(pager, uris[3])["copies"]["current"] >= 9, timeout_s=30, what="the new one's share"
            )
            wait_complete(pager)
            kill(running[1])
            wait_until(lambda: donor_status(pager, uris[1])["used_slots"] == 0, timeout_s=30, what="new copies")
            wait_complete(pager)
            assert pager.status()["pages"]["poisoned"] == 0


def test_what_does_not_fit_or_makes_no_sense_is_refused_with_figures() -> None:
    with donors(2) as (one, two), running_memserver(small="64K") as small:
        uri = one.uri("a")
        with running_pager([uri, two.uri("a")], cache="2M", **OPTIONS) as pager:
            refusals = {
                ("drain-donor", uri): (
                    "too-small",
                    "what it holds (16 MiB) does not fit elsewhere: the pool has 16 MiB in 2 copies on distinct hosts, "
                    "the other donors have room for 0 MiB of that",
                ),
                ("add-donor", uri): ("exists", f"donor {uri} is in use already"),
                ("add-donor", "http://a/b"): ("invalid", "'http://a/b' is not an NBD URI such as"),
                ("add-donor", small.uri("small")): ("too-small", "its export has 65536 bytes, less than one extent"),
                ("add-donor", "nbd://127.0.0.1:1/a"): ("unreachable", "cannot connect"),
                ("remove-donor", "nbd://127.0.0.1:1/a"): ("not-found", "no donor nbd://127.0.0.1:1/a"),
                ("remove-donor", uri): ("busy", "still holds 16 MiB; drain it first"),
            }
            for (command, argument), (code, text) in refusals.items():
                with pytest.raises(ControlError) as refused:
                    pager.command(command, uri=argument)
                assert refused.value.code == code
                assert text in str(refused.value)
            for rate in (-1, 4095):
                with pytest.raises(ControlError, match="bytes_per_s must be 0 .no limit. or a number of at least 4096"):
                    pager.command("set-rebuild-rate", bytes_per_s=rate)
            assert pager.command("set-rebuild-rate", bytes_per_s=MIB) is None
            assert pager.status()["pool"]["rebuild"]["bytes_per_s_limit"] == MIB
            assert pager.command("keep-donor", uri=uri) is None
            assert pager.status()["health"] == "ok"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": "2"}, "2 replicas need donors on 2 hosts: --donor of another host is missing"),
        (
            {"replicas": "2", "allow_same_host": "", "pool": "17M", "extent": "1M"},
            "the pool is to have 17 MiB (replicas: 2): the donors' 32 MiB are enough for 16 MiB",
        ),
        ({"pool": "33M"}, "the pool is to have 33 MiB (replicas: 1): the donors' 32 MiB are enough for 32 MiB"),
    ],
)
def test_donors_that_are_not_enough_are_refused_at_the_start(options: dict[str, Any], message: str) -> None:
    with (
        donors(2) as (one, two),
        pytest.raises(RuntimeError) as refused,
        running_pager([one.uri("a"), two.uri("a")], cache="2M", **options),
    ):
        pass
    assert message in str(refused.value)


def test_a_backup_that_is_too_small_is_refused() -> None:
    with (
        donors(1) as (one,),
        nbdkit_memory("8M") as backup,
        pytest.raises(RuntimeError) as refused,
        running_pager([one.uri("a")], cache="2M", extent="1M", backup=backup),
    ):
        pass
    assert f"backup {backup}: it has 8 MiB, the pool 16 MiB" in str(refused.value)


def test_the_copy_written_behind_is_enough_when_the_donors_memory_is_gone(place: Path) -> None:
    with donors(1) as (one,), nbdkit_memory("16M", "--filter=delay", "wdelay=20ms") as backup:
        options: dict[str, Any] = {"pool": "16M", "extent": "1M", "backup": backup}
        with running_pager([one.uri("a")], cache="2M", **options) as pager, memory_client("16M", pager) as client:
            client.command("fill", seed=3)
            client.command("verify", seed=3)
            wait_complete(pager)
            kill(one)
            client.command("verify", seed=3, timeout_s=120)
            client.command("fill", seed=4, timeout_s=120)
            client.command("verify", seed=4, timeout_s=120)
            status = pager.status()
            assert status["pages"]["poisoned"] == 0
            assert status["health"] == "degraded"
            assert donor_status(pager, backup)["backup"]


def test_a_changed_copy_is_detected_repaired_and_served_from_the_other(tmp_path: Path) -> None:
    flips = range(50, 13 * 256, 97)
    with donors(1) as (one,), nbdkit_memory("16M", "--filter=delay", "rdelay=20ms") as other:
        uri = one.uri("a")  # reads go to the quick donor
        with (
            running_pager([uri, other], cache="2M", readahead="0", **OPTIONS) as pager,
            memory_client("16M", pager) as client,
        ):
            client.command("fill", seed=5)
            client.command("verify", seed=5, first=0, n=16)
            intact = read_export(uri, tmp_path / "export")
            flip(uri, {page * 4096 + page % 4096: 0x40 for page in flips})
            for page in flips:
                client.command("verify", seed=5, first=page, n=1)
            wait_complete(pager)
            status = pager.status()
            assert status["pages"]["poisoned"] == 0
            assert status["donors"][0]["checksum_errors"] >= 13
            assert status["donors"][1]["checksum_errors"] == 0
            assert f"donor {uri}: the page at offset " in pager.log()
            mended = read_export(uri, tmp_path / "export")
            assert [page for page in flips if mended[page << 12 :][:4096] != intact[page << 12 :][:4096]] == []


@pytest.fixture(scope="module")
def build() -> Build:
    """Return pagers that kill themselves at a given point."""
    return fault_point_build()


def test_killed_at_each_step_of_a_rebuild_the_next_pager_goes_on_with_it(build: Build) -> None:
    points = [point for point in fault_points() if point.startswith("rebuild_")]
    assert len(points) == 8
    with (
        donors(3) as running,
        pager_line([donor.uri("a") for donor in running], build=build, **OPTIONS) as line,
        under_load(line),
    ):
        wait_paged(line)
        for number, point in enumerate(points * 2):
            uri = fullest(line)  # the donor drained before it may be empty, and would have nothing to move
            line.kill()
            line.resume("--rebuild-after", "1", crash_at=f"{point}:{1 + number % 5}")
            wait_until(lambda: drained_or_dead(line, uri), timeout_s=10, what="the donors")  # noqa: B023 - called at once
            line.wait_crash()
            line.resume("--rebuild-after", "1")
            line.command("keep-donor", uri=uri)
        wait_complete(line)
        assert line.status()["pages"]["poisoned"] == 0


def fullest(line: PagerLine) -> str:
    """Return the URI of the donor that holds the most copies."""
    return str(max(line.status()["donors"], key=lambda donor: donor["used_slots"])["uri"])


def drained_or_dead(line: PagerLine, uri: str) -> bool:
    """Ask for a drain, which a pager refuses while it is still connecting."""
    try:
        line.command("drain-donor", uri=uri)
    except ControlError as err:
        return err.code == "gone"
    return True


def test_the_only_donor_is_gone_for_good_and_only_its_pages_are_lost() -> None:
    options: dict[str, Any] = {"pool": "16M", "extent": "1M", "on_donor_loss": "poison", "poison_after": "1"}
    with donors(3, "8M") as (one, two, three):
        uris = [donor.uri("a") for donor in (one, two, three)]
        with (
            running_pager(uris[:2], cache="2M", readahead="0", **options) as pager,
            memory_client("16M", pager) as client,
        ):
            client.command("fill", seed=6)
            kill(one)
            # The memory's health is known before the pages are counted and told of.
            wait_until(lambda: pager.status()["donors"][0]["lost_pages"], timeout_s=20, what="the loss to be told")
            status = pager.status()
            assert status["health"] == "lost"
            lost = status["donors"][0]["lost_pages"]
            assert 6 * 256 <= lost <= 8 * 256
            assert status["pool"]["lost_pages"] == lost
            told = f"donor {uris[0]}: {(lost * 4096 + MIB // 2) // MIB} MiB ({lost} pages) that only it held are lost"
            assert told in pager.log()
            bad = [page for page in range(0, 4096, 256) if client.attempt("read", first=page).get("error") == "SIGBUS"]
            assert 6 <= len(bad) <= 8
            # A donor that is added has room for the pages that are written from now on.
            with pytest.raises(ControlError, match="still holds 8 MiB"):
                pager.command("remove-donor", uri=uris[0])
            pager.command("add-donor", uri=uris[2])
            wait_until(lambda: donor_status(pager, uris[0])["used_slots"] == 0, timeout_s=20, what="new extents")
            assert pager.command("remove-donor", uri=uris[0]) is None
            for page in set(range(0, 4096, 256)) - set(bad):
                client.command("verify", seed=6, first=page, n=256)
                client.command("fill", seed=7, first=page, n=256)
            for page in set(range(0, 4096, 256)) - set(bad):
                client.command("verify", seed=7, first=page, n=256)
            assert pager.status()["pages"]["poisoned"] >= lost
            assert pager.status()["pool"]["missing_copies"] == 0


def test_a_wait_for_lost_memory_holds_up_no_other_thread() -> None:
    """With --lost-pages wait, later writes to extents that lost their only copy have a place to go to."""
    options: dict[str, Any] = {"pool": "16M", "extent": "1M", "on_donor_loss": "poison", "poison_after": "1"}
    with donors(3, "8M") as (one, two, three):
        uris = [donor.uri("a") for donor in (one, two, three)]
        with (
            running_pager(uris[:2], cache="2M", readahead="0", lost_pages="wait", **options) as pager,
            memory_client("16M", pager) as client,
        ):
            client.command("fill", seed=6, first=0, n=2048)
            client.start("read", first=3 * 256)
            assert client.result("read")["ok"], "extents are dealt out in turn: the odd ones are on the second donor"
            kill(one)
            told = "that only it held are lost: a program that touches them waits for ever"
            wait_until(lambda: told in pager.log(), timeout_s=20, what="the loss to be told")
            assert pager.status()["health"] == "lost"
            client.start("read", first=0)
            assert client.answers_nothing("read", for_s=0.5)
            pager.command("add-donor", uri=uris[2])
            wait_until(lambda: donor_status(pager, uris[0])["used_slots"] == 0, timeout_s=20, what="new extents")
            client.command("fill", seed=7, first=2048, n=2048)
            client.command("verify", seed=7, first=2048, n=2048)
            client.command("verify", seed=6, first=256, n=256)
            assert pager.status()["pages"]["poisoned"] >= 6 * 256 // 2
            assert client.answers_nothing("read", for_s=0.5)


def test_pages_that_the_guest_is_giving_back_wait_for_its_end_before_they_are_copied() -> None:
    """Else the discard's end lets the guest write anew while an old page is in flight to the new copy."""
    with running_memserver(a="1M") as one, running_memserver(a="1M") as two:
        uris = [one.uri("a"), two.uri("a")]
        with running_pager(uris[:1], cache="1M", extent="64K", contents="keep") as pager:
            peer = hostile_client.Client(str(pager.listen), 0)
            peer.join()
            peer.discard(hostile_client.DISCARD_BEGIN, 16, 8)
            assert peer.answer()[0] == hostile_client.DISCARD_READY
            pager.command("add-donor", uri=uris[1])
            pager.command("drain-donor", uri=uris[0])
            wait_until(
                lambda: donor_status(pager, uris[1])["copies"]["filling"] == 1, timeout_s=20, what="its extent's turn"
            )
            for _ in range(20):
                time.sleep(0.05)
                assert donor_status(pager, uris[1])["copies"]["filling"] == 1
            peer.discard(hostile_client.DISCARD_END, 16, 8)
            assert peer.answer()[0] == hostile_client.DISCARD_DONE
            wait_until(lambda: donor_status(pager, uris[0])["state"] == "drained", timeout_s=20, what="the drain")
            peer.leave()


def is_empty(pager: RunningPager, donor: int) -> bool:
    return bool(pager.status()["donors"][donor]["used_slots"] == 0)


def test_a_donor_that_comes_back_is_used_once_its_old_connection_is_closed() -> None:
    with donors(3) as (one, two, three):
        uris = [donor.uri("a") for donor in (one, two, three)]
        with running_pager(uris, cache="2M", **OPTIONS) as pager, under_load(pager):
            for _ in range(5):
                wait_paged(pager)
                at = max(n for n, entry in enumerate(pager.status()["donors"]) if entry["uri"] == uris[0])
                pager.command("drain-donor", uri=uris[0])
                wait_until(functools.partial(is_empty, pager, at), timeout_s=30, what="the drain")
                pager.command("remove-donor", uri=uris[0])
                pager.command("add-donor", uri=uris[0])
                wait_until(lambda: pager.status()["donors"][-1]["used_slots"] > 5, timeout_s=30, what="its share")
            status = pager.status()
            assert [entry["checksum_errors"] for entry in status["donors"]] == [0] * len(status["donors"])


def read_until_stale(pager: RunningPager, client: MemoryClient, uri: str, n_copies: int) -> None:
    """Read other pages until those that were written are out, and so many copies on the donor are outdated by that.

    Pages that are used again are kept longer than others, so that one pass need not be enough.
    """

    def read() -> bool:
        client.command("verify", seed=8, first=2048, n=2048)
        return bool(donor_status(pager, uri)["copies"]["stale"] >= n_copies)

    wait_until(read, timeout_s=60, what="outdated copies")


def test_an_older_copy_is_better_than_none() -> None:
    """One donor misses writes, the other one is lost for good: only pages that were written meanwhile are lost."""
    with donors(2) as (one, two):
        uris = [one.uri("a"), two.uri("a")]
        options = OPTIONS | {"rebuild_after": "60", "on_donor_loss": "poison", "poison_after": "1"}
        with running_pager(uris, cache="2M", readahead="0", **options) as pager, memory_client("16M", pager) as client:
            client.command("fill", seed=8)
            client.command("verify", seed=8)
            one.process.send_signal(signal.SIGSTOP)
            wait_until(lambda: donor_status(pager, uris[0])["down_s"], timeout_s=20, what="its silence to be noticed")
            client.command("fill", seed=9, first=0, n=1024)
            read_until_stale(pager, client, uris[0], 4)
            kill(two)
            one.process.send_signal(signal.SIGCONT)
            wait_until(lambda: "an older copy on donor" in pager.log(), timeout_s=20, what="the loss")
            wait_until(lambda: not pager.status()["donors"][0]["down_s"], timeout_s=20, what="the older copy")
            client.command("verify", seed=8, first=1024, n=3072)
            # Of what was written meanwhile, some may be in this machine still, and is right.
            answers = [client.attempt("verify", seed=9, first=page, n=1) for page in range(0, 1024, 16)]
            lost = [answer for answer in answers if answer.get("error") == "SIGBUS"]
            assert all(answer["ok"] for answer in answers if answer not in lost)
            assert lost
            assert "is lost: donor" in pager.log()


def test_a_page_that_is_wrong_in_the_last_good_copy_is_found_in_an_older_one() -> None:
    flips = range(1100, 1280, 10)
    with donors(2) as (one, two):
        uris = [one.uri("a"), two.uri("a")]
        options = OPTIONS | {"rebuild_after": "60", "rebuild_rate": "4K"}
        with running_pager(uris, cache="2M", readahead="0", **options) as pager, memory_client("16M", pager) as client:
            client.command("fill", seed=8)
            client.command("verify", seed=8)
            two.process.send_signal(signal.SIGSTOP)
            wait_until(lambda: donor_status(pager, uris[1])["down_s"], timeout_s=20, what="its silence to be noticed")
            client.command("fill", seed=9, first=1024, n=64)
            client.command("fill", seed=9, first=1280, n=64)
            read_until_stale(pager, client, uris[1], 2)
            flip(uris[0], {page * 4096: 0x11 for page in flips})
            two.process.send_signal(signal.SIGCONT)
            wait_until(lambda: not donor_status(pager, uris[1])["down_s"], timeout_s=20, what="the older copies")
            for page in flips:
                client.command("verify", seed=8, first=page, n=1)
            pager.command("set-rebuild-rate", bytes_per_s=0)
            wait_complete(pager)
            client.command("verify", seed=8, first=2048, n=2048)  # pages of the older copy are copied to both donors
            kill(one)
            client.command("verify", seed=8, first=1088, n=192)
            assert pager.status()["pages"]["poisoned"] == 0
