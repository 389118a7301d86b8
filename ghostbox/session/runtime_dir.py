# SPDX-License-Identifier: MIT
"""Restore the runtime directory of a running VM: the pager's sockets and its page map.

The directory can be lost (something cleans up temporary files, a login ends) while the VM runs on. The pager is then
found through the record, and told to make its files anew.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from ghostbox import pager
from ghostbox.errors import DeadlineExceeded, GhostboxError
from ghostbox.paths import VmPaths, make_directory
from ghostbox.session import events
from ghostbox.session.record import Book, Record
from ghostbox.system import process_table, processes

RESTORE = signal.SIGUSR1
"""The signal at which a pager makes its sockets and its page map anew; earlier versions ignore it."""

_RESTORE_TIMEOUT_S = 10.0


def find_pager(record: Record, files: VmPaths) -> int | None:
    """Return the process id of the VM's pager, also if its sockets are gone."""
    known = record.pager_process
    if known is not None and process_table.is_alive(known):
        return known.pid
    found = pager.find(files.pager_control)
    return found[0] if found else None


def lost(record: Record, files: VmPaths) -> list[Path]:
    """Return the files of a running pager that are gone; without them no command reaches it, and none can take over."""
    missing = [file for file in (files.pager_control, files.pager_socket, files.pager_state) if not file.exists()]
    return missing if missing and find_pager(record, files) is not None else []


def restore(book: Book) -> bool:
    """Let the pager make lost files anew; return whether any were lost. The caller holds the VM's lock.

    Raises:
        GhostboxError: the directory cannot be made, or the pager's version cannot restore files. The VM runs on.
    """
    record, files = book.record, book.files
    missing = lost(record, files)
    pid = find_pager(record, files)
    if not missing or pid is None:
        return False
    _make(record, files)
    if process_table.takes_signal(pid, RESTORE):
        process_table.send(pid, RESTORE, lambda: find_pager(record, files) == pid)
        try:
            processes.wait_until(
                lambda: not lost(record, files) and pager.status(files.pager_control) is not None,
                timeout_s=_RESTORE_TIMEOUT_S,
                what="the pager's sockets",
            )
        except DeadlineExceeded:
            raise _too_old(record, pid) from None
    else:
        raise _too_old(record, pid)
    text = f"files in {files.runtime} were gone ({', '.join(file.name for file in missing)}): made anew"
    events.append(files, "runtime-restored", f"{text}; the pager (pid {pid}) served on")
    return True


class PageMap:
    """Keeps the page map open, so that it can be restored if its file is removed and then the pager dies."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def close(self) -> None:
        """Close the page map."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = None

    def watch(self, files: VmPaths) -> None:
        """Open the page map's present file, if it is another one than before."""
        try:
            found = files.pager_state.stat()
            held = None if self._descriptor is None else os.fstat(self._descriptor)
            if held is None or (held.st_dev, held.st_ino) != (found.st_dev, found.st_ino):
                self.close()
                self._descriptor = os.open(files.pager_state, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # the file is gone: the open descriptor is the last access to it

    def put_back(self, record: Record, files: VmPaths) -> None:
        """Write the page map's file anew if the pager died without it, so that another pager can take over.

        Raises:
            GhostboxError: the directory cannot be made.
        """
        if files.pager_state.exists() or self._descriptor is None:
            return
        _make(record, files)
        draft = files.pager_state.with_suffix(".kept")
        with open(self._descriptor, "rb", closefd=False) as kept, draft.open("wb") as copy:
            kept.seek(0)
            shutil.copyfileobj(kept, copy, 1 << 20)
        draft.chmod(0o600)
        draft.replace(files.pager_state)


def _make(record: Record, files: VmPaths) -> None:
    try:
        make_directory(files.runtime)
    except OSError as err:
        user = "$USER" if os.geteuid() else "the user"
        raise GhostboxError(
            f"the runtime directory of VM '{record.name}' is gone and cannot be made anew: {files.runtime}",
            why=f"{os.strerror(err.errno or 0)}; the VM itself runs on",
            hint=f"log in as {user} again, which makes it; `loginctl enable-linger {user}` keeps it between logins",
        ) from err


def _too_old(record: Record, pid: int) -> GhostboxError:
    return GhostboxError(
        f"the runtime directory of VM '{record.name}' was lost, and its pager (pid {pid}) does not make it anew",
        why="it is of an earlier version; the VM itself runs on, but cannot be managed",
        hint=f"shut it down from inside: ghostbox shell {record.name} -- sudo poweroff",
    )
