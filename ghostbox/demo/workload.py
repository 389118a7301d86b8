# SPDX-License-Identifier: MIT
"""Fill memory with a pattern and check every page. This program runs in the guest, on Python's own library.

    numactl --membind=1 python3 workload.py BYTES SEED

Every page holds its own number and the seed, so the check finds a page that comes back in another's place, in an old
version, or as zeroes. The program prints one JSON object, and exits with 1 if a page was wrong.
"""

from __future__ import annotations

import json
import mmap
import random
import re
import struct
import sys
import time

PAGE_BYTES = 4096
_WORD = 1 << 64
_RANDOM_READS = 4096


def pattern(page: int, seed: int) -> bytes:
    """Return the content of a page: two words that no other page has, repeated."""
    return struct.pack("<QQ", (page * 0x9E3779B97F4A7C15 + seed) % _WORD, page ^ seed) * (PAGE_BYTES // 16)


def fill(memory: mmap.mmap, n_pages: int, seed: int) -> None:
    """Write every page."""
    for page in range(n_pages):
        at = page * PAGE_BYTES
        memory[at : at + PAGE_BYTES] = pattern(page, seed)


def wrong_pages(memory: mmap.mmap, pages: range | list[int], seed: int) -> list[int]:
    """Return those of ``pages`` that do not hold what was written."""
    return [page for page in pages if memory[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] != pattern(page, seed)]


def pages_by_node(n_pages: int) -> dict[str, int]:
    """Return on which NUMA nodes the pages of this process's largest mapping are (numa_maps, proc(5))."""
    with open("/proc/self/numa_maps", encoding="ascii") as stream:  # noqa: PTH123 - pathlib costs a second under TCG
        lines = [line for line in stream if re.search(r"\b(?:anon|dirty)=", line)]
    found = [{node: int(count) for node, count in re.findall(r" N(\d+)=(\d+)", line)} for line in lines]
    return max(found, key=lambda nodes: sum(nodes.values()), default={})


def timed(work: object, *arguments: object) -> tuple[float, object]:
    """Return how long a call took, and its result."""
    began = time.monotonic()
    assert callable(work)
    result = work(*arguments)
    return time.monotonic() - began, result


def main(n_bytes: int, seed: int) -> int:
    """Fill the memory, check all pages in order and some in random order, and report."""
    n_pages = n_bytes // PAGE_BYTES
    memory = mmap.mmap(-1, n_pages * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    fill_s, _ = timed(fill, memory, n_pages, seed)
    check_s, wrong = timed(wrong_pages, memory, range(n_pages), seed)
    drawn = random.Random(seed)  # noqa: S311 - these numbers choose pages and protect nothing
    some = drawn.sample(range(n_pages), min(_RANDOM_READS, n_pages))
    random_s, wrong_at_random = timed(wrong_pages, memory, some, seed)
    assert isinstance(wrong, list)
    assert isinstance(wrong_at_random, list)
    report = {
        "bytes": n_pages * PAGE_BYTES,
        "pages": n_pages,
        "pages_by_node": pages_by_node(n_pages),
        "wrong_pages": len(set(wrong) | set(wrong_at_random)),
        "first_wrong_page": min([*wrong, *wrong_at_random], default=None),
        "fill_s": fill_s,
        "check_s": check_s,
        "random_pages": len(some),
        "random_s": random_s,
    }
    print(json.dumps(report))
    return 1 if report["wrong_pages"] else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
