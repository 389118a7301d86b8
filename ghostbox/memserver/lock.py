# SPDX-License-Identifier: MIT
"""One memserver of a name at a time: a lock that the kernel drops when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ghostbox import processes
from ghostbox.errors import GhostboxError, Refused, hint_for
from ghostbox.paths import make_directory


class HeldLock:
    """A lock that we hold; its file says who we are."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path

    def write(self, control_address: str = "") -> None:
        """Write our pid, and once there is one the address of the control API, for `running`."""
        text = f"{os.getpid()} {control_address}\n"
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)
        except OSError as err:
            raise GhostboxError(
                f"cannot write {self._path}: {err.strerror}", hint=hint_for(err, "set GHOSTBOX_RUNTIME_DIR")
            ) from err


@dataclass(frozen=True)
class Running:
    """A memserver that says it runs here: its process, and where its control API is."""

    pid: int
    control_address: str


def running(directory: Path) -> Running | None:
    """Return what the lock file in ``directory`` says, if it is held and its holder serves."""
    try:
        pid, control_address = (directory / "lock").read_text().split()
    except (OSError, ValueError):
        return None
    return Running(int(pid), control_address) if not processes.is_unlocked(directory / "lock") else None


@contextmanager
def name_lock(name: str, directory: Path, former: Path) -> Iterator[HeldLock]:
    """Hold the lock of the memserver called ``name``; its file names our pid, for the one who finds it locked.

    It lies in the state directory, which no cleaner and no logout removes. ``former`` is the runtime directory, where
    versions before 2026-11-29 had it.

    Raises:
        Refused: another process holds it.
        GhostboxError: ``directory`` cannot be made or written.
    """
    path = directory / "lock"
    try:
        make_directory(directory, 0o700)
        if not processes.is_unlocked(former / "lock"):
            raise _already_runs(name, former / "lock")
        descriptor = _lock_file(path)
    except BlockingIOError as err:
        raise _already_runs(name, path) from err
    except OSError as err:
        raise GhostboxError(
            f"cannot use {directory}: {err.strerror}",
            hint=hint_for(err, "run as a user who may write there, or set GHOSTBOX_STATE_DIR"),
        ) from err
    try:
        held = HeldLock(descriptor, path)
        held.write()
        yield held
    finally:
        path.unlink(missing_ok=True)  # still locked, so it is ours
        os.close(descriptor)
        with contextlib.suppress(OSError):  # a data plane that lives on has its socket there
            former.rmdir()


def _already_runs(name: str, path: Path) -> Refused:
    holder = next(iter(path.read_text().split()), "unknown")
    return Refused(
        f"memserver '{name}' is already running (pid {holder})",
        hint=f"choose another --name, or end that one: kill {holder} (it waits until nobody holds a lease)",
    )


def _lock_file(path: Path) -> int:
    """Open and lock the file; again if its last holder removed it between the two."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
