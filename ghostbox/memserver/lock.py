# SPDX-License-Identifier: MIT
"""Allow one memserver of a name at a time, by a lock that the kernel drops whenever its holder ends."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import GhostboxError, Refused, hint_for
from ghostbox.paths import make_directory
from ghostbox.system import locks


class HeldLock:
    """Is a lock that this process holds; the lock's file names this process."""

    def __init__(self, descriptor: int, path: Path) -> None:
        self._descriptor = descriptor
        self._path = path

    def write(self, control_address: str = "") -> None:
        """Write this process's id, and the control API's address once there is one, for `running`."""
        text = f"{os.getpid()} {control_address}\n"
        try:
            locks.write(self._descriptor, text)
        except OSError as err:
            raise GhostboxError(
                f"cannot write {self._path}: {err.strerror}", hint=hint_for(err, "set GHOSTBOX_RUNTIME_DIR")
            ) from err


@dataclass(frozen=True)
class Running:
    """Holds what a running memserver's lock file says: its process id and the address of its control API."""

    pid: int
    control_address: str


def owner_socket(runtime: Path) -> Path:
    """Return the path of the owner's socket of the memserver with this runtime directory."""
    return runtime / "owner.sock"


def running(directory: Path) -> Running | None:
    """Return what the lock file in ``directory`` says, if the lock is held and its holder serves."""
    try:
        pid, control_address = (directory / "lock").read_text().split()
    except (OSError, ValueError):
        return None
    return Running(int(pid), control_address) if not locks.is_free(directory / "lock") else None


@contextmanager
def name_lock(name: str, directory: Path, former: Path) -> Iterator[HeldLock]:
    """Hold the lock of the memserver called ``name``; its file has this process's id.

    The lock is in the state directory, which neither a logout nor the cleaning of temporary files removes. ``former``
    is the runtime directory, where versions before 2026-11-29 had it.

    Raises:
        Refused: another process holds the lock.
        GhostboxError: ``directory`` cannot be made or written.
    """
    path = directory / "lock"
    try:
        make_directory(directory, 0o700)
        if not locks.is_free(former / "lock"):
            raise _already_runs(name, former / "lock")
        descriptor = locks.take(path)
    except locks.Held as err:
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
        path.unlink(missing_ok=True)  # this process still holds the lock, so the file is its own
        os.close(descriptor)
        with contextlib.suppress(OSError):  # a data plane that runs on has its socket there
            former.rmdir()


def _already_runs(name: str, path: Path) -> Refused:
    holder = next(iter(path.read_text().split()), "unknown")
    return Refused(
        f"memserver '{name}' is already running (pid {holder})",
        hint=f"choose another --name, or end the running one: kill {holder} (it waits until no host holds a lease)",
    )
