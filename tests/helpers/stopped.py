# SPDX-License-Identifier: MIT
"""Make stopped VMs: a record on disk and nothing else, for commands on VMs that do not run."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from ghostbox import paths
from ghostbox.paths import Paths, VmPaths
from ghostbox.plan.plan import PagerPlan
from ghostbox.session.record import Book, Record, VmState
from ghostbox.units import GIB, KIB, MIB

RECORD = Record(
    name="box",
    state=VmState.STOPPED,
    uuid="6f2c0d4e-0000-4000-8000-000000000001",
    mac="52:54:00:00:00:01",
    ssh_port=2222,
    created_at="2026-01-01T00:00:00+00:00",
    domain="ghostbox-box",
    libvirt_uri="qemu:///system",
    image="debian",
    user="ghost",
    virt="tcg",
    cpus=2,
    memory_bytes=5 * GIB,
    remote_memory_bytes=32 * GIB,
    cache_bytes=2 * GIB,
    disk_bytes=20 * GIB,
    forwards=((8080, 80),),
    new=False,
    pager=PagerPlan(2 * GIB, 16 * MIB, 256 * KIB, 50, "info", 32 * GIB, replicas=2),
    donors=("tower", "attic"),
)


def here() -> Paths:
    """Return the directories that the environment names."""
    return paths.find()


def stopped_vm(name: str, where: Paths | None = None, **changes: Any) -> VmPaths:
    """Make the record of a stopped VM, as an earlier version left it: without a definition."""
    files = (where or here()).vm(name)
    Book(files).save(dataclasses.replace(RECORD, name=name, domain=f"ghostbox-{name}", **changes))
    return files


def write_editor(directory: Path, script: str) -> dict[str, str]:
    """Return the environment in which the editor is a shell script; ``$1`` is the file to edit."""
    program = directory / "editor.sh"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"EDITOR": str(program), "VISUAL": "", "PATH": os.environ["PATH"]}
