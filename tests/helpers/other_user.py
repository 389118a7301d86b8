# SPDX-License-Identifier: MIT
"""Run a function in a child process that has lost all rights, to see what another user sees. This needs root.

The project may lie where that user cannot read, in /root for example: the parent must import whatever the function
uses.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

NOBODY = 65534
T = TypeVar("T")


def as_user(
    look: Callable[[], T], uid: int = NOBODY, *, groups: Sequence[int] = (), first: Callable[[], None] = lambda: None
) -> T:
    """Return what ``look`` returns to user ``uid``. ``first`` is done before, by root, in the same process.

    Raises:
        AssertionError: ``look`` or ``first`` failed: with the traceback in the child.
    """
    reader, writer = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        try:
            first()
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            writer.send((look(), None))
        except BaseException:
            writer.send((None, traceback.format_exc()))
            raise

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    writer.close()
    assert reader.poll(60), "the child gave no answer"
    seen, error = reader.recv()
    process.join()
    assert error is None, error
    return cast(T, seen)
