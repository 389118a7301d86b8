# SPDX-License-Identifier: MIT
"""Mount a file system that hangs: whoever looks into it waits until the end of the block, as with NFS without a server.

It is a FUSE file system whose server answers nothing. Root may mount it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def hanging_fs(directory: Path) -> Iterator[None]:
    """Mount it over a directory. At the end, whoever waits gets ENOTCONN, and the directory is what it was."""
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as err:
        pytest.skip(f"cannot run here: /dev/fuse: {err.strerror}")
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    if _libc.mount(b"hanging", os.fsencode(directory), b"fuse", 0, options) != 0:
        os.close(device)
        pytest.skip(f"cannot run here: mount: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.close(device)
        assert _libc.umount2(os.fsencode(directory), _MNT_DETACH) == 0, os.strerror(ctypes.get_errno())
