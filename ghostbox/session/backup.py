# SPDX-License-Identifier: MIT
"""The copy of a VM's remote memory on a local disk: a sparse file, served to the pager by qemu-nbd.

It holds what the guest had in memory, so it goes with the VM. Its server may die and be started again: the pager
connects anew and fills in what it missed.
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from urllib.parse import quote

from ghostbox import processes
from ghostbox.errors import GhostboxError, ProgramError, Refused
from ghostbox.paths import VmPaths
from ghostbox.units import format_bytes

_EXPORT = "backup"
_READY_TIMEOUT_S = 20.0
_GREETING = b"NBDMAGIC"  # The NBD protocol, fixed newstyle negotiation
_GREETING_TIMEOUT_S = 1.0
_LOG_LINES = 3


def uri(files: VmPaths) -> str:
    """Return the NBD URI of the copy."""
    return f"nbd+unix:///{_EXPORT}?socket={quote(os.fsencode(files.backup_socket))}"


def check(file: Path) -> None:
    """Refuse a place that cannot be used, before anything is made.

    Raises:
        Refused: something is there already, or there is no such directory.
        ProgramError: qemu-nbd is not installed.
    """
    if file.exists():
        raise Refused(
            f"pool.backup: {file} exists already",
            why="the copy of the VM's memory is a file of its own, and goes with the VM",
            hint="name a file that does not exist, or a directory",
        )
    if not file.parent.is_dir():
        raise Refused(f"pool.backup: there is no directory {file.parent}", hint=f"mkdir -p {file.parent}")
    if processes.which("qemu-nbd") is None:
        raise ProgramError("pool.backup needs qemu-nbd, which is not installed", hint="sudo apt install qemu-utils")


def notes(file: Path | None, size_bytes: int) -> tuple[str, ...]:
    """Return what the user should know of the place before the VM is made."""
    if file is None:
        return ()
    free_bytes = shutil.disk_usage(file.parent).free
    if free_bytes >= size_bytes:
        return ()
    return (
        f"warning: {file.parent} has {format_bytes(free_bytes)} free, the copy on disk can grow to"
        f" {format_bytes(size_bytes)}: when the disk is full, the copy is incomplete",
    )


def create(file: Path, size_bytes: int) -> None:
    """Make the file, empty; it takes room as it is written.

    Raises:
        GhostboxError: it cannot be made.
    """
    try:
        with file.open("xb") as stream:
            file.chmod(0o600)
            stream.truncate(size_bytes)
    except OSError as err:
        raise GhostboxError(f"pool.backup: cannot make {file}: {err.strerror}") from err


def ensure(files: VmPaths, file: Path) -> bool:
    """Start the server unless it runs; tell whether it was started.

    Raises:
        ProgramError: it does not start; the ``why`` is what it said.
    """
    if find(files) and files.backup_socket.exists():
        return False
    for pid in find(files):  # its socket was removed, and nobody can connect to it any more
        processes.terminate(pid)
    argv: list[str | Path] = ["qemu-nbd", "--format=raw", "--cache=writeback", "--discard=unmap", "--shared=0"]
    argv += ["--persistent", f"--export-name={_EXPORT}", f"--socket={files.backup_socket}", _identity(file), file]
    child = processes.start_detached(argv, log_path=files.backup_log)
    processes.wait_until(
        lambda: child.poll() is not None or _listens(files), timeout_s=_READY_TIMEOUT_S, what="qemu-nbd"
    )
    if child.poll() is not None:
        raise ProgramError(
            f"qemu-nbd does not serve {file} (status {child.returncode})",
            why=processes.last_words(files.backup_log, lines=_LOG_LINES),
        )
    return True


def find(files: VmPaths) -> list[int]:
    """Return the process ids of servers of this VM (one, or none)."""
    return processes.find("qemu-nbd", f"--socket={files.backup_socket}")


def remove(files: VmPaths, file: Path) -> None:
    """End the server and remove the file. What is gone already is no error.

    Raises:
        ProgramError: it does not end.
    """
    for pid in find(files):
        processes.terminate(pid)
    files.backup_socket.unlink(missing_ok=True)
    try:
        file.unlink(missing_ok=True)
    except OSError as err:
        raise GhostboxError(f"cannot remove {file}: {err.strerror}", hint=f"sudo rm {file}") from err


def _identity(file: Path) -> str:
    """Return what tells the pager, when the server was started again, that it has what the one before had."""
    inode = file.stat().st_ino if file.exists() else 0
    return f"--description=backup of a VM's memory, file {inode}"


def _listens(files: VmPaths) -> bool:
    """Tell whether the server greets: it takes connections before it has opened the file."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_GREETING_TIMEOUT_S)
            sock.connect(str(files.backup_socket))
            return sock.recv(len(_GREETING)) == _GREETING
    except OSError:
        return False
