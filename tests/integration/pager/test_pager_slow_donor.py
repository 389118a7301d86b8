# SPDX-License-Identifier: MIT
"""Silent or slow donors are noticed, waited for as long as it takes, and named."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ghostbox.system.processes import wait_until
from helpers.hostile_donor import HostileDonor, half, hostile_donor
from helpers.nbd_raw import READ
from helpers.netns import machines
from helpers.pager import (
    MemoryClient,
    RunningPager,
    installed_build,
    memory_client,
    pager_argv,
    running_memserver,
    running_pager,
    stopped,
)

PAGES = 16 << 8  # 16 MiB
# The pager notices a silent donor within 2 s; a busy test machine may take longer.
NOTICED_S = 10.0


def down_s(pager: RunningPager, donor: int = 0) -> float | None:
    """Return how long a donor has been away, in seconds, by the pager's status."""
    seconds: float | None = pager.status()["donors"][donor]["down_s"]
    return seconds


def wait_until_down(pager: RunningPager, donor: int = 0) -> None:
    wait_until(lambda: down_s(pager, donor) is not None, timeout_s=NOTICED_S, what="a donor is noticed to be away")


def wait_until_up(pager: RunningPager, donor: int = 0) -> None:
    wait_until(lambda: down_s(pager, donor) is None, timeout_s=60, what="the donor is back")


@pytest.mark.parametrize("libnbd", [False, True], ids=["wire", "libnbd"])
def test_a_donor_that_stops_is_noticed_without_being_asked_and_goes_on_when_it_does(libnbd: bool) -> None:
    options: dict[str, Any] = {"libnbd": ""} if libnbd else {}
    with (
        running_memserver(a="16M") as donor,
        running_pager([donor.uri("a")], cache="2M", readahead="0", **options) as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", seed=1)
        with stopped(donor.process):
            wait_until_down(pager)
            assert "connection lost: no answer for 1." in pager.log()
            client.start("read", first=0)
            assert client.answers_nothing("read", for_s=0.3)
            client.command("verify", seed=1, first=PAGES - 1, n=1)
        assert client.result("read")["ok"]
        wait_until_up(pager)
        client.command("verify", seed=1)
        assert pager.status()["pages"]["poisoned"] == 0


def page_content(page: int) -> bytes:
    return struct.pack("=Q", page + 1) * 512


@contextlib.contextmanager
def hostile(**options: Any) -> Iterator[tuple[HostileDonor, RunningPager, MemoryClient]]:
    """Yield memory whose first content comes from a donor in Python: the number of each page, plus one."""
    with hostile_donor(16 << 20) as donor:
        donor.memory[:] = b"".join(page_content(page) for page in range(PAGES))
        with (
            running_pager([donor.uri], cache="2M", readahead="0", contents="keep", **options) as pager,
            memory_client("16M", pager) as client,
        ):
            yield donor, pager, client


@pytest.mark.parametrize("libnbd", [False, True], ids=["wire", "libnbd"])
def test_an_answer_that_never_ends_is_asked_for_again(libnbd: bool) -> None:
    with hostile(**({"libnbd": ""} if libnbd else {})) as (donor, pager, client):
        lies = [half]
        donor.choose = lambda request: (
            lies.pop() if lies and (request.command, request.offset) == (READ, 5 << 12) else None
        )
        assert client.command("read", first=5)["value"] == 6
        assert donor.told == ["half"]
        assert "connection lost: no answer for 1." in pager.log()


def test_a_donor_that_takes_longer_than_the_pager_waits_answers_in_the_end() -> None:
    """The pager waits longer after each connection that it gave up too soon."""
    with hostile() as (donor, pager, client):
        donor.delay_s = 2.0
        assert client.command("read", first=7, timeout_s=60)["value"] == 8
        assert "connection lost: no answer for 1." in pager.log()
        said = pager.log().count("connection lost")
        for page in (8, 9):
            assert client.command("read", first=page, timeout_s=60)["value"] == page + 1
        assert pager.log().count("connection lost") <= said + 2, "the other connections may learn yet"


def test_a_donor_that_accepts_and_never_negotiates_is_given_up_and_tried_again() -> None:
    with hostile(log_level="debug") as (donor, pager, client):
        donor.talks.clear()
        lies = [half]
        donor.choose = lambda request: lies.pop() if lies and request.command == READ else None
        client.start("read", first=3)
        wait_until(lambda: "no connection: it did not negotiate for" in pager.log(), timeout_s=30, what="giving up")
        donor.talks.set()
        assert client.result("read")["value"] == 4


def test_why_a_donor_is_away_is_said_once_a_cause_and_shown_until_it_is_back() -> None:
    def why() -> str | None:
        found: str | None = pager.status()["donors"][0]["why"]
        return found

    def said(cause: str) -> int:
        begin = re.escape(f"warning ghostbox-pager: donor {donor.uri('a')}: no connection: ")
        return len(re.findall(f"{begin}{cause}; trying again", pager.log()))

    # These are the messages of libnbd 1.14, and of 1.22, which adds the server's message.
    no_export = r"(?:the )?server has no export named 'a'(?:: no export of this name)?"

    with running_memserver(a="16M") as donor, running_pager([donor.uri("a")], log_level="debug") as pager:
        assert why() is None
        donor.process.kill()
        donor.process.wait(10)
        wait_until(lambda: why() == "connection refused", timeout_s=20, what="the first cause")
        tried = pager.log().count("no connection")
        wait_until(lambda: pager.log().count("no connection") > tried + 6, timeout_s=20, what="more attempts")
        with running_memserver(b="16M", options=["--port", donor.address.rpartition(":")[2]]):
            wait_until(lambda: re.fullmatch(no_export, why() or "") is not None, timeout_s=20, what="the second cause")
        wait_until(lambda: said("connection refused") == 2, timeout_s=20, what="the first one again")
        assert pager.status()["donors"][0]["down_s"] > 0
        assert (said("connection refused"), said(no_export)) == (2, 1)


def test_a_pager_does_not_start_with_a_donor_that_never_negotiates(place: Path) -> None:
    with hostile_donor(16 << 20) as donor:
        donor.talks.clear()
        argv = pager_argv(installed_build(), place, [donor.uri], "2M", {})
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert f"donor {donor.uri}: cannot connect: it did not finish connecting within 5 s" in done.stderr


def test_a_slow_donor_is_named_until_it_is_quick_again() -> None:
    with hostile(slow_us="200000") as (donor, pager, client):
        client.command("seq-read", first=0, n=20)
        assert pager.status()["donors"][0]["slow"] is False
        donor.delay_s = 0.3
        client.command("seq-read", first=100, n=3)
        status = pager.status()["donors"][0]
        assert status["slow"] is True
        assert status["smoothed_us"] > 5_000
        assert f"donor {donor.uri} is slow: " in pager.log()
        assert "answers took more than 200 ms" in pager.log()
        donor.delay_s = 0.0
        for first in range(1000, 4000, 600):
            client.command("seq-read", first=first, n=500)
        wait_until(lambda: not pager.status()["donors"][0]["slow"], timeout_s=60, what="it is quick again")
        assert f"donor {donor.uri} is no longer slow" in pager.log()


def test_a_lost_network_link_is_noticed_and_the_donor_is_used_again() -> None:
    with (
        machines(1) as (machine,),
        running_memserver(a="16M", prefix=machine.prefix, options=("--bind", machine.address)) as donor,
        running_pager([donor.uri("a")], cache="2M", readahead="0") as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", seed=3)
        machine.pull_cable()
        wait_until_down(pager)
        client.start("read", first=0)
        assert client.answers_nothing("read", for_s=0.3)
        machine.plug_cable()
        assert client.result("read")["ok"]
        client.command("verify", seed=3)


# The hog spins for 150 ms and rests for 40 ms: an ordinary process on the same processor runs in these 40 ms only.
HOG = """
import time
while True:
    end = time.monotonic() + 0.15
    while time.monotonic() < end:
        pass
    time.sleep(0.04)
"""


def test_a_pager_that_gets_no_processor_calls_no_donor_slow() -> None:
    """The pager shares a processor with a hog; the donor has another processor, and real-time priority."""
    processors = sorted(os.sched_getaffinity(0))
    if os.geteuid() != 0 or len(processors) < 2 or shutil.which("chrt") is None:
        pytest.skip("cannot run here: it takes root, two processors and the tool chrt")
    shared, own = ("taskset", "-c", str(processors[0])), ("taskset", "-c", str(processors[1]))
    with (
        running_memserver(a="16M", prefix=(*own, "chrt", "-f", "10")) as donor,
        running_pager([donor.uri("a")], cache="2M", readahead="0", slow_us="50000", prefix=shared) as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", seed=1)
        with subprocess.Popen([*shared, "chrt", "-f", "20", sys.executable, "-c", HOG]) as hog:
            try:
                # Many requests are in flight, so that the pager is kept from running while it waits for some of them.
                for first in range(0, 2048, 64):
                    for page in range(first, first + 64):
                        client.start("read", first=page)
                    for _ in range(64):
                        assert client.result("read")["ok"]
            finally:
                hog.kill()
        latency = pager.status()["donors"][0]["latency"]
        assert latency["max_us"] > 50_000, "it waited"
        assert pager.status()["donors"][0]["slow"] is False
        assert "is slow" not in pager.log()
