# SPDX-License-Identifier: MIT
"""A living process unmaps memory, as QEMU does when it is unplugged: its pages are given up, even after failures."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator

import pytest

from ghostbox.system.processes import wait_until
from helpers import hostile_client
from helpers.pager import RunningMemserver, RunningPager, memory_client, running_memserver, running_pager, stopped
from helpers.takeover import PagerLine, pager_line


def wait_given_up(pager: RunningPager | PagerLine, donor: RunningMemserver) -> None:
    """Wait until no page of the region is left in the cache or on the donor."""
    wait_until(lambda: not pager.status()["regions"], timeout_s=20, what="end of the region")
    assert pager.status()["pages"]["present"] == 0
    assert donor.resident_bytes("a") == 0


@contextlib.contextmanager
def overfull() -> Iterator[tuple[RunningMemserver, RunningPager, hostile_client.Client]]:
    """Yield a process whose thread writes to 4 MiB with a cache of one.

    The pager's first ZAP has arrived there, and was not read.
    """
    with contextlib.ExitStack() as stack:
        donor = stack.enter_context(running_memserver(a="4M"))
        threads: list[threading.Thread] = []
        # The threads end when no process holds the userfaultfd open any more.
        stack.callback(lambda: [thread.join(20) for thread in threads])  # type: ignore[func-returns-value]
        pager = stack.enter_context(running_pager([donor.uri("a")], cache="1M"))
        peer = hostile_client.Client(str(pager.listen), 0, pages=1024)
        peer.join()
        stack.callback(os.close, peer.uffd)
        threads.append(peer.fill())
        assert select.select([peer.sock], [], [], 20)[0], "no ZAP came"
        yield donor, pager, peer


def test_a_goodbye_is_heard_though_something_is_sent_before_it_is_read() -> None:
    """The next ZAP meets a closed connection; GOODBYE is still readable, behind the answer to the last ZAP."""
    with overfull() as (donor, pager, peer):
        with stopped(pager.process):
            peer.zapped()
            peer.leave()
        wait_given_up(pager, donor)


def test_a_goodbye_is_heard_from_a_process_that_reads_nothing_any_more() -> None:
    """The kernel resets a connection that is closed with an unread message."""
    with overfull() as (donor, pager, peer):
        with stopped(pager.process):
            peer.leave()
        wait_given_up(pager, donor)


def test_memory_that_is_unmapped_while_it_is_paged_out_is_given_up() -> None:
    with (
        running_memserver(a="16M") as donor,
        running_pager([donor.uri("a")], cache="2M") as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", seed=1)
        client.command("unmap")
        wait_given_up(pager, donor)
        for seed in range(2, 7):
            index = client.command("map", bytes="16M")["index"]
            client.command("fill", seed=seed, region=index)
            client.command("unmap", region=index)
            wait_given_up(pager, donor)


@pytest.mark.parametrize("how", ["dead", "deaf"])
def test_memory_that_is_unmapped_without_a_pager_is_given_up_by_the_next_one(how: str) -> None:
    """No pager runs, or it dies before it has read GOODBYE."""
    with (
        running_memserver(a="16M") as donor,
        pager_line([donor.uri("a")]) as line,
        memory_client("16M", line.listen) as client,
    ):
        client.command("fill", seed=1)
        line.process.send_signal(signal.SIGKILL if how == "dead" else signal.SIGSTOP)
        client.command("unmap")
        line.kill()
        line.resume()
        wait_given_up(line, donor)
        index = client.command("map", bytes="16M")["index"]
        client.command("fill", seed=2, region=index)
        client.command("verify", seed=2, region=index)
