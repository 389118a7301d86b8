# SPDX-License-Identifier: MIT
"""The rooms of the C side hold: a file includes only from its own room and rooms below it, and never in a circle.

A room is a directory. `PAGER` lists the pager's rooms from the lowest to the highest; "" is qemu/pager itself. A file
and its header (``drop.c`` and ``drop.h``) count as one.
"""

from __future__ import annotations

import graphlib
import re
from pathlib import Path

from helpers import project

PAGER = (
    "base",  # clock, own delay, fault points
    "page",  # pages, reclaim policy, checksum, runs: no I/O
    "memory",  # regions, userfaultfd, features of the kernel
    "donor",  # one donor: its connections, names, latency, liveness
    "pool",  # all donors: extents, copies, slots, suspects, the state file
    "",  # state that the threads share: options, struct pager, the event loop
    "regions",  # regions that begin, end, or are recovered from an earlier pager
    "fault",  # the fault thread
    "link",  # the transport to shims
    "rebuild",  # filling of missing copies of extents
    "evict",  # the evict thread
    "session",  # handling of the shims' messages
    "control",  # the control socket
    "main",  # main.c
)
MAIN = {"main", "interpose", "outgoing"}  # entry points of programs, and functions that replace libc's: no header
FOLDERS = ("qemu/pager", "qemu/shim")


def _sources(folder: str) -> list[Path]:
    return [path for path in project.with_suffix(".c", ".h") if project.shown(path).startswith(folder + "/")]


def _room(path: Path) -> str:
    if path.name == "main.c":
        return "main"
    return project.shown(path.parent).removeprefix("qemu/pager").removeprefix("/")


def _included(path: Path, root: Path) -> list[Path]:
    """Return the project's files that a file includes; like the compiler, look beside the file first."""
    names = re.findall(r'^#include "(.+)"', path.read_text(encoding="utf-8"), re.MULTILINE)
    found = [next((place for place in (path.parent / name, root / name) if place.exists()), None) for name in names]
    return [place for place in found if place is not None]


def test_every_folder_of_the_pager_is_a_room() -> None:
    assert {_room(path) for path in _sources("qemu/pager")} == set(PAGER)


def test_no_file_of_the_pager_includes_from_a_higher_room() -> None:
    wrong = [
        f"{project.shown(path)} includes {project.shown(included)}"
        for path in _sources("qemu/pager")
        for included in _included(path, project.ROOT / "qemu/pager")
        if PAGER.index(_room(included)) > PAGER.index(_room(path))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_includes_itself_through_others() -> None:
    for folder in FOLDERS:
        root = project.ROOT / folder
        graph: dict[Path, set[Path]] = {}
        for path in _sources(folder):
            node = path.with_suffix("")
            targets = {included.with_suffix("") for included in _included(path, root)} - {node}
            graph.setdefault(node, set()).update(targets)
        graphlib.TopologicalSorter(graph).prepare()


def test_every_c_file_has_its_header_and_includes_it_first() -> None:
    wrong = []
    for folder in FOLDERS:
        for path in _sources(folder):
            if path.suffix != ".c" or path.stem in MAIN:
                continue
            includes = re.findall(r'^#include ["<](.+)[">]', path.read_text(encoding="utf-8"), re.MULTILINE)
            expected = project.shown(path.with_suffix(".h")).removeprefix(folder + "/")
            if not path.with_suffix(".h").exists() or includes[:1] != [expected]:
                wrong.append(f"{project.shown(path)}: includes {includes[:1]} first, not {expected}")
    assert not wrong, "\n".join(wrong)
