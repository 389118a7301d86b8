# SPDX-License-Identifier: MIT
"""A core dump of the pager holds no page of a VM: the buffers of fetches, write-back and copying are left out of it."""

from __future__ import annotations

import numpy as np

from helpers import process_memory
from helpers.pager import memory_client, running_memserver, running_pager

PAGES = 16 << 8  # 16 MiB
WORDS_A_PAGE = 512
SEED = 31
_ALL = (1 << 64) - 1


def _mix(x: int) -> int:
    """Return splitmix64 of a number, as the memory client computes it."""
    x = (x + 0x9E3779B97F4A7C15) & _ALL
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _ALL
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _ALL
    return x ^ (x >> 31)


def _first_word(page: int) -> int:
    return _mix((SEED * 0x2545F4914F6CDD1D + page * WORDS_A_PAGE) & _ALL) | 1


def _holds_one_of(words: np.ndarray) -> process_memory.Finder:
    """Return a pattern of the pages' first words; a received page begins at any multiple of 4 bytes."""

    def holds(content: bytes) -> bool:
        shifted = (content[at : len(content) - (len(content) - at) % 8] for at in (0, 4))
        return any(bool(np.isin(np.frombuffer(part, "<u8"), words).any()) for part in shifted)

    return holds


def test_no_page_that_went_out_or_came_back_is_in_a_core_dump() -> None:
    holds = _holds_one_of(np.array([_first_word(page) for page in range(PAGES)], dtype="<u8"))
    with (
        running_memserver(a="32M", b="32M") as donor,
        running_pager([donor.uri("a"), donor.uri("b")], cache="2M", replicas="2", allow_same_host="") as pager,
        memory_client("16M", pager) as client,
    ):
        client.command("fill", seed=SEED)
        client.command("verify", seed=SEED)
        found = process_memory.places(pager.process.pid, holds)
        assert len(found) >= 2, "what is fetched and what is written back lie in different buffers"
        assert not [each for each in found if process_memory.NOT_DUMPED not in each.flags]
