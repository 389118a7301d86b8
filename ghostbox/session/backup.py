# SPDX-License-Identifier: MIT
"""Keep a copy of a VM's remote memory on a local disk: a sparse file, which qemu-nbd serves to the pager.

The copy is only of use while the VM runs, so it is removed when the VM ends. If qemu-nbd dies and is started again, the
pager reconnects and writes what the copy has missed.
"""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from urllib.parse import quote

from ghostbox.errors import GhostboxError, ProgramError, Refused
from ghostbox.paths import VmPaths
from ghostbox.system import pidfd, processes
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
        Refused: the file exists already, or its directory does not exist.
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
    """Return warnings about the place of the copy, to be shown before the VM is made."""
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
    """Make the file, sparse: it takes space only as it is written.

    Raises:
        GhostboxError: the file cannot be made.
    """
    try:
        with file.open("xb") as stream:
            file.chmod(0o600)
            stream.truncate(size_bytes)
    except OSError as err:
        raise GhostboxError(f"pool.backup: cannot make {file}: {err.strerror}") from err


def ensure(files: VmPaths, file: Path) -> bool:
    """Start the server if it does not run; return whether it was started.

    Raises:
        ProgramError: qemu-nbd does not start; ``why`` has its last words.
    """
    if find(files) and files.backup_socket.exists():
        return False
    pidfd.end_all(lambda: find(files))  # a server without its socket is of no use
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
    """Return the process ids of the VM's copy servers: one, or none."""
    return processes.find("qemu-nbd", f"--socket={files.backup_socket}")


def remove(files: VmPaths, file: Path) -> None:
    """End the server and remove the file. A server or a file that is gone already is no error.

    Raises:
        ProgramError: the server does not end.
        GhostboxError: the file cannot be removed.
    """
    pidfd.end_all(lambda: find(files))
    files.backup_socket.unlink(missing_ok=True)
    try:
        file.unlink(missing_ok=True)
    except OSError as err:
        raise GhostboxError(f"cannot remove {file}: {err.strerror}", hint=f"sudo rm {file}") from err


def _identity(file: Path) -> str:
    """Return the option by which the pager sees that a restarted server still has the same file."""
    inode = file.stat().st_ino if file.exists() else 0
    return f"--description=backup of a VM's memory, file {inode}"


def _listens(files: VmPaths) -> bool:
    """Tell whether the server sends NBD's greeting: it accepts connections before it has opened the file."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(_GREETING_TIMEOUT_S)
            sock.connect(str(files.backup_socket))
            return sock.recv(len(_GREETING)) == _GREETING
    except OSError:
        return False
