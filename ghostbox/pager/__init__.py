# SPDX-License-Identifier: MIT
"""Drive the pager of one VM: its process, its status, the map of its pages."""

from ghostbox.pager.process import (
    SOCKET_PATH_BYTES,
    PagerFiles,
    add_donor,
    check_resume,
    drain_donor,
    find,
    hand_over,
    keep_donor,
    lose_donor,
    remove_donor,
    resume,
    serves,
    set_cache,
    set_rebuild_rate,
    start,
    status,
    stop,
)

__all__ = [
    "SOCKET_PATH_BYTES",
    "PagerFiles",
    "add_donor",
    "check_resume",
    "drain_donor",
    "find",
    "hand_over",
    "keep_donor",
    "lose_donor",
    "remove_donor",
    "resume",
    "serves",
    "set_cache",
    "set_rebuild_rate",
    "start",
    "status",
    "stop",
]
