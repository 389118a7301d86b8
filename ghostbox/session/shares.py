# SPDX-License-Identifier: MIT
"""Shared folders: directories of this host that the guest sees below /mnt, served through our SSH connection to it.

A process of its own serves each (`share_server`, ``ghostbox share-files NAME NUMBER``): it logs in to the guest, starts
sshfs there with its standard input and output for a wire (``-o passive``), and answers what sshfs asks
(`ghostbox.sftp`). So nothing maps the guest's memory, as virtiofsd would, and any network and any kernel with FUSE will
do. As root it becomes the owner of the directory before it serves: the guest may do what that user may, and its files
are that user's. It ends with its connection; the supervisor starts the next one, so the folder is back after a reboot
of the guest.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ghostbox import processes
from ghostbox.config import SharedFolder
from ghostbox.config.kinds import Share
from ghostbox.errors import Refused, UsageError
from ghostbox.paths import Paths, VmPaths
from ghostbox.session.record import Book, Made, Record, VmState
from ghostbox.ssh import GuestSsh

COMMAND = "share-files"


def check(folders: Sequence[SharedFolder]) -> None:
    """Refuse folders that cannot be shared, before anything is started.

    Raises:
        UsageError: two would have one place in the guest, or one has none.
        Refused: there is no such directory, or it cannot be read.
    """
    places: set[str] = set()
    for folder in folders:
        name = folder.directory.name
        if not name or name == ".." or re.fullmatch(r"disk\d+", name):
            raise UsageError(
                f"{folder.directory} cannot be shared under its own name",
                why="/mnt/disk2 and so on are the VM's further disks" if name.startswith("disk") else "it has none",
                hint="share a directory below it, or make a link to it with another name and share that",
            )
        if name in places:
            raise UsageError(
                f"two shared directories are named '{name}'",
                why="the guest sees each at /mnt under its own name",
                hint="make a link to one of them with another name and share that",
            )
        places.add(name)
        _check_directory(folder)


def _check_directory(folder: SharedFolder) -> None:
    directory = folder.directory
    if not directory.is_dir():
        what = "is no directory" if directory.exists() else "does not exist"
        raise Refused(f"{directory} cannot be shared: it {what}", hint=f"mkdir -p {shlex.quote(str(directory))}")
    wanted = os.R_OK | os.X_OK | (0 if folder.read_only else os.W_OK)
    if not os.access(directory, wanted):
        may = "read" if folder.read_only else "read and write"
        raise Refused(
            f"{directory} cannot be shared: you may not {may} it",
            hint="share it with :ro" if os.access(directory, os.R_OK | os.X_OK) else "share another directory",
        )


def folders(record: Record) -> list[SharedFolder]:
    """Return the VM's shared folders."""
    return [Share().parse(text) for text in record.shares]


def place(folder: SharedFolder) -> str:
    """Return where the guest sees it."""
    return f"/mnt/{folder.directory.name}"


def missing(record: Record, files: VmPaths) -> list[int]:
    """Return the numbers of the folders that no process serves."""
    if record.state is not VmState.RUNNING or Made.DOMAIN not in record.made:
        return []
    return [number for number in range(len(record.shares)) if processes.is_unlocked(lock_file(files, number))]


def ensure(book: Book, paths: Paths) -> None:
    """Start what is missing."""
    record, files = book.record, book.files
    if record is None or not files.runtime.is_dir():
        return
    for number in missing(record, files):
        processes.start_detached(
            [sys.executable, "-P", "-m", "ghostbox", COMMAND, record.name, str(number),
             "--lock", lock_file(files, number)],
            log_path=log_file(files, number),
            env={
                "GHOSTBOX_STATE_DIR": str(paths.state),
                "GHOSTBOX_RUNTIME_DIR": str(paths.runtime),
                "GHOSTBOX_CACHE_DIR": str(paths.cache),
                "GHOSTBOX_NATIVE_DIR": str(paths.native),
            },
        )  # fmt: skip


def stop(files: VmPaths) -> None:
    """End the processes that serve the VM's folders.

    Raises:
        ProgramError: one does not end.
    """
    for lock in files.runtime.glob("share-*.lock"):
        for pid in processes.find("", COMMAND, str(lock)):
            processes.terminate(pid)


def log_file(files: VmPaths, number: int) -> Path:
    """Return what the process that serves a folder says."""
    return files.state / f"share-{number}.log"


def lock_file(files: VmPaths, number: int) -> Path:
    """Return the file that the process which serves a folder holds (flock)."""
    return files.runtime / f"share-{number}.lock"


def wait_mounted(book: Book, ssh: GuestSsh, *, timeout_s: float) -> list[str]:
    """Wait until the guest sees its folders; return a sentence for each that it does not see."""
    record = book.record
    assert record is not None
    problems = []
    for number, folder in enumerate(folders(record)):
        where = shlex.quote(place(folder))
        rounds = max(1, round(timeout_s / 0.2))
        wait = f"for i in $(seq {rounds}); do mountpoint -q {where} && exit; sleep 0.2; done; exit 1"
        if ssh.run(wait, timeout_s * 2 + 10).status != 0:
            why = processes.last_words(log_file(book.files, number), lines=2) or "nothing is known of the reason"
            problems.append(f"{folder.directory} is not at {place(folder)}: {why}")
    return problems
