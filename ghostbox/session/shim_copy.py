# SPDX-License-Identifier: MIT
"""Where a VM's copy of the shim goes: QEMU's dynamic loader must be able to find it there and to run it.

Each VM has a copy of its own, named after what is in it: an upgrade never overwrites one that a QEMU has mapped.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ghostbox.errors import Refused
from ghostbox.paths import Paths

# ld.so(8): the items of LD_PRELOAD are separated by spaces or colons, which cannot be escaped; it expands $ORIGIN,
# $LIB and $PLATFORM in them.
_SPECIAL = {" ": "a space", ":": "a colon", "$": "a dollar sign"}


def place(paths: Paths, name: str) -> Path:
    """Return the file for the copy: in the VM's state directory, or in its runtime directory if that will not do.

    Raises:
        Refused: neither will.
    """
    for directory in _candidates(paths, name):
        if problem(directory) is None:
            digest = hashlib.sha256(paths.shim_library.read_bytes()).hexdigest()[:12]
            return directory / f"libghostbox-shim-{digest}.so"
    refused = refusal(paths, name)
    assert refused is not None
    raise refused


def refusal(paths: Paths, name: str) -> Refused | None:
    """Return the error for a VM of this name whose shim can lie nowhere, with each reason; None if it can."""
    found = [(directory, problem(directory)) for directory in _candidates(paths, name)]
    if any(why is None for _, why in found):
        return None
    return Refused(
        "there is no directory from which QEMU could load the shim",
        why="\n".join(f"{directory}: {why}" for directory, why in found),
        hint="set GHOSTBOX_STATE_DIR to a directory without spaces, colons and dollar signs, on a file system that is"
        " not mounted noexec",
    )


def _candidates(paths: Paths, name: str) -> tuple[Path, Path]:
    return paths.vm(name).state, paths.vm(name).runtime


def problem(directory: Path) -> str | None:
    """Return why a library in ``directory`` (which need not exist yet) could not be preloaded; None if it could."""
    for char, what in _SPECIAL.items():
        if char in str(directory):
            return f"its name has {what}, and LD_PRELOAD cannot be told of such a file"
    if is_noexec(directory):
        return "its file system is mounted noexec, so no program can be loaded from it"
    return None


def is_noexec(path: Path) -> bool:
    """Tell whether the file system at ``path``, or above it where it does not exist yet, is mounted noexec."""
    existing = next(each for each in (path, *path.parents) if os.access(each, os.F_OK))
    return bool(os.statvfs(existing).f_flag & os.ST_NOEXEC)
