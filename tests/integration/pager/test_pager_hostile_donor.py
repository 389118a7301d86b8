# SPDX-License-Identifier: MIT
"""Donors lie: a reader gets the right page or waits; it never gets what a buffer happened to hold."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ghostbox.system.processes import wait_until
from helpers.hostile_donor import ENDLESS_LIES, READ_LIES, WRITE_LIES, Lie, Request, flood, honestly, hostile_donor
from helpers.nbd_raw import READ
from helpers.pager import Build, memory_client, running_pager
from helpers.sanitized import COMPLAINTS, sanitized_build

PAGES = 16 << 8  # 16 MiB


@pytest.fixture(scope="module")
def asan() -> Build:
    """Return the directory of programs that are built with AddressSanitizer and UBSan."""
    return sanitized_build("asan")


def page_content(page: int) -> bytes:
    return struct.pack("=Q", page + 1) * 512


def once(lie: Lie) -> Callable[[Request], Lie | None]:
    """Return a function that lies once, about the next read."""
    lies = [lie]
    return lambda request: lies.pop() if lies and request.command == READ else None


@pytest.mark.parametrize("libnbd", [False, True], ids=["wire", "libnbd"])
def test_no_lie_about_a_read_makes_a_wrong_page(libnbd: bool) -> None:
    """The donor provides the memory's first content, so that no checksum of the pager's can detect a lie.

    libnbd waits for the end of an answer that does not end.
    """
    options: dict[str, Any] = {"libnbd": ""} if libnbd else {}
    lies = [lie for lie in READ_LIES if not (libnbd and lie in ENDLESS_LIES)]
    with hostile_donor(16 << 20) as donor:
        donor.memory[:] = b"".join(page_content(page) for page in range(PAGES))
        with (
            running_pager([donor.uri], cache="2M", readahead="0", contents="keep", **options) as pager,
            memory_client("16M", pager) as client,
        ):
            for n, lie in enumerate(lies):
                donor.choose = once(lie)
                page = 3 + 7 * n
                got = [client.command("read", first=page)["value"]]
                got += struct.unpack("=512Q", memory_of(client.pid, page))
                assert set(got) == {page + 1}, f"{lie.__name__}: page {page}"
                assert donor.told[-1] == lie.__name__
            assert pager.status()["pages"]["poisoned"] == 0
            assert "connection lost: " in pager.log()


def memory_of(pid: int, page: int) -> bytes:
    """Return a page of the client's memory, as the client sees it."""
    maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
    base = next(int(line.split("-")[0], 16) for line in maps if "memory-backend-memfd" in line)
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(base + page * 4096)
        return memory.read(4096)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
def test_memory_at_work_is_right_while_its_donor_lies(asan: Build, place: Path, seed: int) -> None:
    """The donor tells any lie about any request, but never two in a row about one place.

    After two lies in a row the pager would count the page as lost.
    """
    rng = random.Random(seed)
    last_lied: set[int] = set()
    quiet = threading.Event()

    def choose(request: Request) -> Lie | None:
        if quiet.is_set() or request.offset in last_lied or rng.random() > 0.015:
            last_lied.discard(request.offset)
            return None
        last_lied.add(request.offset)
        return rng.choice(READ_LIES if request.command == READ else WRITE_LIES)

    with (
        hostile_donor(8 << 20) as donor,
        running_pager([donor.uri], cache="2M", build=asan, place=place) as pager,
        memory_client("8M", pager, stderr=place / "client") as client,
    ):
        client.command("fill", seed=seed, timeout_s=120)
        donor.choose = choose
        client.command("verify", seed=seed, timeout_s=120)
        answer = client.command("stress", threads=4, seconds=3, seed=seed, fresh=0, timeout_s=200)
        quiet.set()
        assert answer["words_verified"] > 1000
        assert len(donor.told) > 20
        client.command("fill", seed=seed + 1, timeout_s=120)
        client.command("verify", seed=seed + 1, timeout_s=120)
        assert pager.status()["pages"]["poisoned"] == 0
    assert pager.process.returncode == 0
    said = pager.log() + (place / "client").read_text()
    assert not [word for word in COMPLAINTS if word in said], said


def test_a_donor_that_sends_without_end_holds_up_no_other(asan: Build) -> None:
    """The donor sends errors to one request without end, on the connection for faults."""
    with (
        hostile_donor(16 << 20, identity="liar") as liar,
        hostile_donor(16 << 20, identity="good") as good,
        running_pager([liar.uri, good.uri], cache="2M", extent="8M", readahead="0", build=asan) as pager,
        memory_client("32M", pager) as client,
    ):
        client.command("fill", seed=1, timeout_s=120)
        liar.choose = lambda request: flood if request.command == READ else None
        client.start("read", first=0)
        wait_until(lambda: len(liar.told) > 0, timeout_s=10, what="the flood")
        for page in (2048, 2200, 2500):
            client.command("verify", seed=1, first=page, n=1, timeout_s=20)
        assert client.answers_nothing("read", for_s=0.5)
        liar.choose = honestly
        assert client.result("read")["ok"]
        client.command("verify", seed=1, timeout_s=120)
