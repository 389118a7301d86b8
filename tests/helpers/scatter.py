# SPDX-License-Identifier: MIT
"""Run a program in a guest that fills memory of node 1 and, on request, frees every second piece of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ghostbox.system import processes
from helpers.machine import Machine

FREED_PAGES = 8192
# The pieces have 512 KiB, so no freed piece is as large as a pageblock (2 MiB).
_PROGRAM = f"""
import mmap, os, time
def told(file):
    while not os.path.exists(file):
        time.sleep(0.2)
piece, n_bytes = 512 << 10, {2 * FREED_PAGES} * mmap.PAGESIZE
memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_NOHUGEPAGE)
for at in range(0, n_bytes, mmap.PAGESIZE):
    memory[at] = 1
open("scatter-filled", "w").close()
told("scatter-free")
for at in range(0, n_bytes, 2 * piece):
    memory.madvise(mmap.MADV_DONTNEED, at, piece)
told("scatter-end")
"""


@contextlib.contextmanager
def scattered(machine: Machine) -> Iterator[None]:
    """Run the program until it has filled its memory; it keeps the rest until the end of the block."""
    machine.guest("rm -f scatter-*")
    machine.host.cli("shell", machine.name, "--", "cat > scatter.py", stdin=_PROGRAM, check=True)
    work = machine.host.start("shell", machine.name, "--", "exec numactl --membind=1 python3 scatter.py")

    def filled() -> bool:
        assert work.poll() is None, work.communicate()
        return machine.cli("shell", "--", "test -e scatter-filled", check=False).returncode == 0

    processes.wait_until(filled, timeout_s=120, what="memory to free", interval_s=0.5)
    try:
        yield
        assert work.poll() is None, work.communicate()
    finally:
        machine.guest("touch scatter-free scatter-end")
        assert work.wait(60) == 0
        work.communicate()


def free_every_second_piece(machine: Machine) -> None:
    """Tell the program to free every second piece."""
    machine.guest("touch scatter-free")


def discarded_pages(machine: Machine) -> int:
    """Return how many pages of node 1 the guest has given back."""
    return int(machine.status()["pager"]["discards"]["pages"])


def wait_for_reports(machine: Machine) -> None:
    """Wait until an idle guest has reported nearly all free memory; its rounds are 2 s apart."""

    def at_rest() -> bool:
        before = discarded_pages(machine)
        machine.guest("sleep 3")
        return discarded_pages(machine) - before < FREED_PAGES // 16

    processes.wait_until(at_rest, timeout_s=120, what="the end of the guest's reports")


def wait_until_given_back(machine: Machine, before: int, n_pages: int) -> None:
    """Wait until the guest has given back this many pages more than ``before``."""
    processes.wait_until(
        lambda: discarded_pages(machine) - before >= n_pages,
        timeout_s=120,
        what=f"{n_pages} pages given back to the donors",
        interval_s=0.5,
    )
