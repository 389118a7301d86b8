# SPDX-License-Identifier: MIT
"""Choose the place of a VM's copy of the shim, where QEMU's dynamic loader can find and run it.

Each VM has its own copy, whose name has the content's digest: an upgrade never overwrites a file that a QEMU has
mapped.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ghostbox.errors import Refused
from ghostbox.paths import Paths

# ld.so(8): spaces or colons separate the items of LD_PRELOAD and cannot be escaped; the loader expands $ORIGIN, $LIB
# and $PLATFORM in the items.
_SPECIAL = {" ": "a space", ":": "a colon", "$": "a dollar sign"}


def place(paths: Paths, name: str) -> Path:
    """Return the file for the copy: in the VM's state directory, or in its runtime directory if only that is usable.

    Raises:
        Refused: neither is usable.
    """
    for directory in _candidates(paths, name):
        if problem(directory) is None:
            digest = hashlib.sha256(paths.shim_library.read_bytes()).hexdigest()[:12]
            return directory / f"libghostbox-shim-{digest}.so"
    refused = refusal(paths, name)
    assert refused is not None
    raise refused


def refusal(paths: Paths, name: str) -> Refused | None:
    """Return the error, with a reason for each directory, if the shim can lie nowhere; otherwise None."""
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
            return f"its name has {what}, which LD_PRELOAD cannot express"
    if is_noexec(directory):
        return "its file system is mounted noexec, so no program can be loaded from it"
    return None


def is_noexec(path: Path) -> bool:
    """Tell whether the file system at ``path``, or at its nearest existing parent, is mounted noexec."""
    existing = next(each for each in (path, *path.parents) if os.access(each, os.F_OK))
    return bool(os.statvfs(existing).f_flag & os.ST_NOEXEC)
