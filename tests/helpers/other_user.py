# SPDX-License-Identifier: MIT
"""What another user sees: a function is run in a child process that has lost all rights. Needs root."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

NOBODY = 65534
T = TypeVar("T")


def as_user(
    look: Callable[[], T], uid: int = NOBODY, *, groups: Sequence[int] = (), first: Callable[[], None] = lambda: None
) -> T:
    """Return what ``look`` returns to user ``uid``. ``first`` is done before, by root, in the same process."""
    reader, writer = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        first()
        os.setgroups(groups)
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        writer.send(look())

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    writer.close()
    assert reader.poll(60), "the child gave no answer"
    seen: T = reader.recv()
    process.join()
    return seen
