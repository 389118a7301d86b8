# SPDX-License-Identifier: MIT
"""Each trap of userfaultfd has a test here: without care a page reads as zeroes, a write is lost or the guest hangs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox.system.processes import wait_until
from helpers import process_memory
from helpers.pager import (
    MemoryClient,
    RunningPager,
    memory_client,
    nbdkit_memory,
    running_memserver,
    running_pager,
)

PAGES = 16 << 8  # 16 MiB


@contextlib.contextmanager
def small(cache: str = "2M", size: str = "16M", **options: Any) -> Iterator[tuple[RunningPager, MemoryClient]]:
    """Yield 16 MiB of memory on a 2 MiB cache."""
    with (
        running_memserver(a=size) as donor,
        running_pager([donor.uri("a")], cache=cache, **options) as pager,
        memory_client(size, pager) as client,
    ):
        yield pager, client


def push_out(client: MemoryClient, first: int) -> None:
    """Touch 8 MiB of other pages, so that page `first` is evicted from a cache of 2 MiB."""
    client.command("seq-read", first=first + 1024, n=2048)


def test_a_zap_by_the_process_itself_does_not_lose_a_write() -> None:
    """Trap 11: a page that the pager has as mapped faults; its page table entry is gone, with the mark of a write."""
    with small(readahead="0") as (pager, client):
        client.command("fill", seed=1)
        client.command("read", first=0)
        client.command("write", first=0, value=77)
        client.command("dontneed", first=0, n=1)
        assert client.command("read", first=0)["value"] == 77
        push_out(client, 0)
        push_out(client, 0)
        assert client.command("read", first=0)["value"] == 77
        assert pager.status()["surprises"]["vanished_pages"] == 0


def test_a_page_that_was_made_by_a_second_mapping_does_not_hide_what_the_donor_has() -> None:
    """Trap 2: a process maps the memfd beside QEMU and touches holes; the guest still gets its own pages."""
    with small(readahead="0") as (pager, client):
        client.command("fill", seed=2)
        foreign = os.open(f"/proc/{client.pid}/fd/{memfd_number(client.pid)}", os.O_RDWR)
        try:
            for page in range(512):  # these pages are evicted by now: the last 2 MiB are in the cache
                os.pwrite(foreign, bytes(4096), page * 4096)
        finally:
            os.close(foreign)
        client.command("verify", seed=2)
        assert pager.status()["surprises"]["foreign_pages"] > 0
        assert "something besides QEMU maps this memory" in pager.log()


def memfd_number(pid: int) -> str:
    """Return the number of the file descriptor of the client's memory."""
    found = [
        link.name for link in Path(f"/proc/{pid}/fd").iterdir() if str(link.readlink()).startswith("/memfd:memory-")
    ]
    return found[0]


@contextlib.contextmanager
def failing_donor(tmp_path: Path, what: str, error: str, size: str = "16M") -> Iterator[tuple[str, Path]]:
    """Yield a donor that fails as long as a file exists."""
    switch = tmp_path / f"{what}-fails"
    options = (f"error-{what}={error}", f"error-{what}-rate=100%", f"error-{what}-file={switch}")
    with nbdkit_memory(size, "--filter=error", *options) as uri:
        yield uri, switch


def test_a_failed_read_is_never_zeroes_and_other_pages_go_on(tmp_path: Path) -> None:
    """Trap 3: access to the page raises SIGBUS, also later; pages of the cache and of other donors are served."""
    with (
        failing_donor(tmp_path, "pread", "EIO") as (bad, switch),
        running_memserver(a="16M") as good,
        running_pager([bad, good.uri("a")], cache="2M", extent="8M", readahead="0") as pager,
        memory_client("32M", pager) as client,
    ):
        client.command("fill", seed=3)
        switch.touch()
        outcomes = [client.attempt("verify", seed=3, first=first, n=1) for first in range(0, 8000, 500)]
        lost = [answer for answer in outcomes if not answer["ok"]]
        assert {answer["error"] for answer in lost} == {"SIGBUS"}
        assert 3 < len(lost) < len(outcomes) - 3
        assert pager.status()["pages"]["poisoned"] == len(lost)
        assert f"donor {bad} cannot return offset" in pager.log()
        switch.unlink()
        assert client.attempt("read", first=lost[0]["page"])["error"] == "SIGBUS"
        assert client.command("verify", seed=3, first=lost[0]["page"] + 1, n=1)


@pytest.mark.parametrize("options", [{"hide_features": "poison"}, {"lost_pages": "wait"}], ids=["kernel", "asked"])
def test_without_poison_the_reader_waits_and_others_go_on(tmp_path: Path, options: dict[str, Any]) -> None:
    with (
        failing_donor(tmp_path, "pread", "EIO") as (bad, switch),
        running_pager([bad], cache="2M", readahead="0", **options) as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", seed=4)
        switch.touch()
        client.start("read", first=0)
        assert client.answers_nothing("read", for_s=1.0)
        client.command("verify", seed=4, first=PAGES - 1, n=1)
        assert "cannot be read from donor" in pager.log()
        switch.unlink()
        assert client.result("read")["ok"]
        client.command("verify", seed=4)


def test_a_failed_write_keeps_the_page_until_the_donor_takes_it(tmp_path: Path) -> None:
    """The pager never punches a page before the donor's reply.

    While the donor refuses writes the guest waits, and loses no page.
    """
    with (
        failing_donor(tmp_path, "pwrite", "ENOSPC") as (bad, switch),
        running_pager([bad], cache="2M") as pager,
        memory_client("16M", pager) as client,
    ):
        switch.touch()
        client.start("fill", seed=5)
        assert client.answers_nothing("fill", for_s=1.5)
        assert pager.status()["pages"]["present"] <= 512
        assert pager.status()["donors"][0]["errors"] > 0
        switch.unlink()
        assert client.result("fill")["ok"]
        client.command("verify", seed=5)


def test_a_donor_that_goes_makes_its_readers_wait_and_others_go_on() -> None:
    with running_memserver(a="16M") as good, contextlib.ExitStack() as stack:
        doomed = stack.enter_context(running_memserver(a="16M"))
        uris = [doomed.uri("a"), good.uri("a")]
        pager = stack.enter_context(running_pager(uris, cache="2M", extent="8M", readahead="0"))
        client = stack.enter_context(memory_client("32M", pager))
        client.command("fill", seed=6)
        doomed.process.kill()
        client.start("verify", seed=6, first=0, n=1)
        assert client.answers_nothing("verify", for_s=1.0)
        assert [donor["state"] for donor in pager.status()["donors"]] == ["down", "up"]
        for page in pages_of(good_extents(pager, 1)):
            client.command("read", first=page, timeout_s=5)


def test_a_donor_that_comes_back_without_its_memory_is_poison_not_zeroes() -> None:
    """Address and export are the same, but the incarnation is another one: the donor would answer with zeroes."""
    with contextlib.ExitStack() as stack:
        doomed = stack.enter_context(running_memserver(a="16M"))
        pager = stack.enter_context(running_pager([doomed.uri("a")], cache="2M", readahead="0"))
        client = stack.enter_context(memory_client("16M", pager))
        client.command("fill", seed=12)
        doomed.process.kill()
        doomed.process.wait(10)
        port = doomed.address.rpartition(":")[2]
        stack.enter_context(running_memserver(a="16M", options=["--port", port]))
        wait_until(lambda: "the pages that it held are lost" in pager.log(), timeout_s=10, what="the loss is noticed")
        assert client.attempt("verify", seed=12, first=0, n=1)["error"] == "SIGBUS"
        client.command("verify", seed=12, first=PAGES - 16, n=16)


def good_extents(pager: RunningPager, donor: int) -> list[int]:
    """Return the extents of a donor: extents go by turns to donors of one size."""
    status = pager.status()
    n_extents = 32 * (1 << 20) // status["extent_bytes"]
    return [extent for extent in range(n_extents) if extent % len(status["donors"]) == donor]


def pages_of(extents: list[int]) -> list[int]:
    """Return the first page of each 8 MiB extent."""
    return [extent * 2048 for extent in extents]


def test_pager_death_freezes_the_process_and_never_reads_zeroes() -> None:
    """Trap 5: the pager dies while the process runs."""
    with small() as (pager, client):
        client.command("fill", seed=7)
        pager.kill()
        # Until it died the pager may have evicted, or made inactive, whichever pages it chose.
        here = process_memory.present_pages(client.process.pid, PAGES)
        absent = [page for page in range(PAGES) if page not in here]
        assert here
        for page in here:
            client.command("verify", seed=7, first=page, n=1)
        client.start("verify", seed=7, first=absent[0], n=1)
        client.start("write", first=absent[-1], value=1)
        assert client.answers_nothing("verify", for_s=2.0)
        assert client.answers_nothing("write", for_s=0.1)
        assert client.attempt("discard", first=0, n=1)["error"] == "fallocate: EIO"
        client.kill()
        assert client.process.returncode == -9


def test_a_new_pager_does_not_serve_memory_whose_pages_it_does_not_know(tmp_path: Path, place: Path) -> None:
    with running_memserver(a="16M") as donor, contextlib.ExitStack() as stack:
        pager = stack.enter_context(running_pager([donor.uri("a")], cache="2M", place=place))
        client = stack.enter_context(memory_client("16M", pager, stderr=tmp_path / "err"))
        client.command("fill", seed=8)
        pager.kill()
        stack.enter_context(running_pager([donor.uri("a")], cache="2M", place=place))
        wait_until(
            lambda: "the pager refuses: this pager does not know the region" in (tmp_path / "err").read_text(),
            timeout_s=10,
            what="the refusal",
        )
        client.start("verify", seed=8, first=0, n=1)
        assert client.answers_nothing("verify", for_s=1.0)


def test_the_pagers_memory_is_locked() -> None:
    """Trap 6: reclaim must not wait for the pager that waits for reclaim."""
    with small() as (pager, client):
        client.command("fill", seed=9)
        status = Path(f"/proc/{pager.process.pid}/status").read_text()
        facts = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.startswith("Vm")}
        assert int(facts["VmLck"]) >= int(facts["VmRSS"]) // 2 > 0
        assert facts["VmSwap"] == "0"
        assert "cannot lock our memory" not in pager.log()


@pytest.mark.parametrize("hidden", ["poison", "wp_async"])
def test_a_discard_is_zeroes_at_once_and_on_the_donor(hidden: str) -> None:
    with (
        running_memserver(a="16M") as donor,
        running_pager([donor.uri("a")], cache="2M", hide_features=hidden) as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", seed=10)
        wait_until(lambda: donor.resident_bytes("a") > 12 << 20, timeout_s=10, what="pages on the donor")
        client.command("discard", first=0, n=2048)
        client.command("verify", seed=0, first=0, n=2048)
        client.command("verify", seed=10, first=2048)
        wait_until(lambda: donor.resident_bytes("a") <= 9 << 20, timeout_s=10, what="a smaller donor")
        assert pager.status()["discards"] == {"requests": 1, "pages": 2048}
        client.command("discard")
        wait_until(lambda: donor.resident_bytes("a") == 0, timeout_s=10, what="an empty donor")
        client.command("verify", seed=0)


def test_memory_that_is_given_back_in_small_pieces_is_gone_from_the_donor() -> None:
    """A guest reports memory like this: 128 KiB at a time, without a pause, more requests than may be in flight."""
    with (
        running_memserver(a="64M") as donor,
        running_pager([donor.uri("a")], cache="2M") as pager,
        memory_client("64M", pager) as client,
    ):
        client.command("fill", seed=12)
        wait_until(lambda: donor.resident_bytes("a") > 60 << 20, timeout_s=10, what="pages on the donor")
        client.command("discard", piece="128K")
        wait_until(lambda: donor.resident_bytes("a") == 0, timeout_s=10, what="an empty donor")
        client.command("verify", seed=0)
        assert pager.status()["discards"] == {"requests": 512, "pages": 16384}


def test_parts_of_pages_that_are_with_the_donor_are_discarded() -> None:
    with small() as (_, client):
        client.command("fill", seed=11)
        client.command("discard", offset=2048, bytes=8192)
        client.command("verify", seed=0, first=1, n=1)
        client.command("verify", seed=11, first=3)
        answer = client.attempt("verify", seed=11, first=0, n=1)
        assert (answer["page"], answer["offset"]) == (0, 2048)
        answer = client.attempt("verify", seed=0, first=2, n=1)
        assert (answer["page"], answer["offset"]) == (2, 2048)
