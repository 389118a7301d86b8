# SPDX-License-Identifier: MIT
"""Processes break the shim's protocol: the pager lives, answers `status`, and serves processes that keep to it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ghostbox.system.processes import wait_until
from helpers import hostile_client
from helpers.pager import Build, RunningPager, memory_client, running_memserver, running_pager
from helpers.sanitized import COMPLAINTS, sanitized_build


@pytest.fixture(scope="module")
def asan() -> Build:
    """Return the directory of programs that are built with AddressSanitizer and UBSan."""
    return sanitized_build("asan")


def run_hostile(pager: RunningPager, first_seed: int, n: int) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, hostile_client.__file__, str(pager.listen), str(first_seed), str(n)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, int] = json.loads(done.stdout)
    return seen


@contextmanager
def watched(build: Build, place: Path, **options: str) -> Iterator[RunningPager]:
    """Yield a pager that must end in order, and without a sanitizer's report."""
    with (
        running_memserver(a="32M") as donor,
        running_pager([donor.uri("a")], cache="4M", build=build, place=place, **options) as pager,
    ):
        yield pager
    assert pager.process.returncode == 0, pager.log()[-3000:]
    assert not [word for word in COMPLAINTS if word in pager.log()], pager.log()[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("first_seed", [0, 1000])
def test_hundreds_of_random_clients_disturb_nobody(asan: Build, place: Path, first_seed: int) -> None:
    with watched(asan, place) as pager, memory_client("8M", pager) as client:
        client.command("fill", seed=1)
        client.start("stress", threads=2, seconds=600, fresh=0, seed=first_seed)
        seen = run_hostile(pager, first_seed, 100)
        assert min(seen["welcome"], seen["reject"], seen["region"]) > 10, seen
        client.command("stress-stop")
        assert client.result("stress")["ok"]
        wait_until(lambda: len(pager.status()["regions"]) == 1, timeout_s=20, what="the end of their regions")
        client.command("fill", seed=2)
        client.command("verify", seed=2)
        with memory_client("16M", pager) as other:
            other.command("fill", seed=3)
            other.command("verify", seed=3)


def blocking(uffd: int) -> int:
    os.set_blocking(uffd, True)
    return uffd


def not_set_up(uffd: int) -> int:
    del uffd
    with Path("/dev/userfaultfd").open("rb") as device:
        return fcntl.ioctl(device.fileno(), hostile_client.USERFAULTFD_IOC_NEW, os.O_CLOEXEC | os.O_NONBLOCK)


@pytest.mark.parametrize(
    "instead",
    [
        blocking,
        not_set_up,
        lambda uffd: os.eventfd(0),
        lambda uffd: os.pipe()[0],
        lambda uffd: os.open("/dev/zero", os.O_RDWR),
    ],
    ids=["blocking", "not-set-up", "eventfd", "pipe", "zero"],
)
def test_what_is_no_userfaultfd_is_refused(instead: Callable[[int], int]) -> None:
    """The fault thread would block in read(2), or never sleep."""
    with (
        running_memserver(a="32M") as donor,
        running_pager([donor.uri("a")], cache="4M", poll_us="100") as pager,
        memory_client("8M", pager) as client,
    ):
        client.command("fill", seed=1)
        peer = hostile_client.Client(str(pager.listen), 0)
        peer.greet(b"qemu")
        peer.hand_over([instead(peer.uffd), peer.memfd, os.open("/proc/self/pagemap", os.O_RDONLY)])
        assert peer.answer() == (
            hostile_client.REJECT,
            "the first descriptor is no userfaultfd that is set up and does not block",
        )
        client.command("verify", seed=1, timeout_s=20)


def test_a_name_is_shown_as_plain_text() -> None:
    """Bytes that are not UTF-8 would hide the region from the status, and a newline would forge a line of the log."""
    script = (
        "import os, sys\nfrom hostile_client import Client\npeer = Client(sys.argv[1], 0)\n"
        "peer.greet(b'q\\xff\\xfe\\nerror: me')\n"
        "peer.hand_over([peer.uffd, peer.memfd, os.open('/proc/self/pagemap', os.O_RDONLY)])\n"
        "print(peer.answer()[0], flush=True)\nsys.stdin.read()\n"
    )
    with running_memserver(a="32M") as donor, running_pager([donor.uri("a")]) as pager:
        argv = [sys.executable, "-c", script, str(pager.listen)]
        where = Path(hostile_client.__file__).parent
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=where) as process:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == str(hostile_client.REGION_OK)
            assert [region["comm"] for region in pager.status()["regions"]] == ["q???error: me"]
            process.kill()
        assert "(q???error: me): 0 MiB of its memory are now served" in pager.log()


def test_silent_connection_makes_room_for_a_process_with_memory() -> None:
    with running_memserver(a="32M") as donor, running_pager([donor.uri("a")], cache="4M") as pager:
        with contextlib.ExitStack() as stack:
            for _ in range(40):  # the pager has 32 places
                silent = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                silent.connect(str(pager.listen))
            with memory_client("8M", pager) as client:
                client.command("fill", seed=1)
                client.command("verify", seed=1)
        assert f"process {os.getpid()} connected and handed no memory over: it makes room for another" in pager.log()


def test_process_that_answers_a_zap_without_a_request_is_cut_off() -> None:
    with running_memserver(a="32M") as donor, running_pager([donor.uri("a")]) as pager:
        peer = hostile_client.Client(str(pager.listen), 0)
        peer.join()
        peer.send(hostile_client.ZAP_DONE, struct.pack("=iI", 0, 0))
        assert peer.answer() == (hostile_client.REJECT, "it answered a zap that was not asked for")
        pager.kill()  # asked to end, it would wait for the process whose memory it serves: this one
