# SPDX-License-Identifier: MIT
"""Share directories of this host with the guest, which sees them below /mnt, over GhostBox's SSH connection to it.

One process serves each folder (`share_server`, ``ghostbox share-files NAME NUMBER``). It logs in to the guest, starts
sshfs there, which talks over its standard input and output (``-o passive``), and answers sshfs's requests
(`ghostbox.system.sftp`). So nothing maps the guest's memory, as virtiofsd would, and any network and any kernel with
FUSE is enough. A process of root becomes the owner of the directory before it serves: the guest may do what that user
may, and its files belong to that user. The process ends with its connection and the supervisor starts the next one, so
the folder is back after a reboot of the guest.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ghostbox.config import SharedFolder
from ghostbox.config.kinds import Share
from ghostbox.errors import Refused, UsageError
from ghostbox.paths import Paths, VmPaths
from ghostbox.session.record import Book, Made, Record, VmState
from ghostbox.system import locks, pidfd, processes

if TYPE_CHECKING:
    from ghostbox.system.ssh import GuestSsh

COMMAND = "share-files"


def check(folders: Sequence[SharedFolder]) -> None:
    """Refuse folders that cannot be shared, before anything is started.

    Raises:
        UsageError: two folders would have the same place in the guest, or a folder's name is not usable.
        Refused: the directory does not exist, or this user may not read it.
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
    """Return the folder's path in the guest."""
    return f"/mnt/{folder.directory.name}"


def missing(record: Record, files: VmPaths) -> list[int]:
    """Return the numbers of the folders that no process serves."""
    if record.state is not VmState.RUNNING or Made.DOMAIN not in record.made:
        return []
    return [number for number in range(len(record.shares)) if locks.is_free(lock_file(files, number))]


def ensure(book: Book, paths: Paths) -> None:
    """Start a process for each folder that no process serves."""
    record, files = book.found, book.files
    if record is None or not files.runtime.is_dir():
        return
    for number in missing(record, files):
        words = (COMMAND, record.name, str(number), "--lock", lock_file(files, number))
        processes.start_own(*words, paths=paths, log_path=log_file(files, number))


def stop(files: VmPaths) -> None:
    """End the processes that serve the VM's folders.

    Raises:
        ProgramError: a process does not end.
    """
    for lock in files.runtime.glob("share-*.lock"):
        pidfd.end_all(partial(processes.find, "", "-m", "ghostbox", COMMAND, str(lock)))


def log_file(files: VmPaths, number: int) -> Path:
    """Return the log of the process that serves a folder."""
    return files.state / f"share-{number}.log"


def lock_file(files: VmPaths, number: int) -> Path:
    """Return the file that the process which serves a folder holds locked (flock)."""
    return files.runtime / f"share-{number}.lock"


def wait_mounted(book: Book, ssh: GuestSsh, *, timeout_s: float) -> list[str]:
    """Wait until the guest has its folders mounted; return a sentence for each that is missing."""
    record = book.record
    problems = []
    for number, folder in enumerate(folders(record)):
        where = shlex.quote(place(folder))
        rounds = max(1, round(timeout_s / 0.2))
        wait = f"for i in $(seq {rounds}); do mountpoint -q {where} && exit; sleep 0.2; done; exit 1"
        if ssh.run(wait, timeout_s * 2 + 10).status != 0:
            why = processes.last_words(log_file(book.files, number), lines=2) or "the reason is not known"
            problems.append(f"{folder.directory} is not at {place(folder)}: {why}")
    return problems
