# SPDX-License-Identifier: MIT
"""Lock files between processes with flock(2): one process at a time may hold a lock.

The kernel releases a lock when its holder ends, for whatever reason. A child process does not inherit a lock: its
descriptor is closed when the child starts a program (O_CLOEXEC).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SAID_BYTES = 256


class Held(Exception):
    """Is raised if another process holds the lock; ``said`` is the content of the lock's file."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


def take(file: Path, *, wait: bool = False) -> int:
    """Open a file, which is made if it is missing, and lock it; return its descriptor.

    A holder may remove the file before it releases the lock. The file that was locked then has no name any more, and
    the lock is taken anew.

    Raises:
        Held: another process holds the lock, and not ``wait``.
        OSError: the file cannot be opened; FileNotFoundError if its directory does not exist.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_open_at(file, descriptor):
                return descriptor
        except BlockingIOError as err:
            said = os.pread(descriptor, _SAID_BYTES, 0).decode(errors="replace").strip()
            os.close(descriptor)
            raise Held(said) from err
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def write(descriptor: int, text: str) -> None:
    """Write the holder's name into the file of a lock that this process holds.

    Raises:
        OSError: the file cannot be written.
    """
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


@contextmanager
def held(file: Path, *, wait: bool = False) -> Iterator[int]:
    """Hold a lock until the end of the block; see `take`."""
    descriptor = take(file, wait=wait)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def take_directory(directory: Path) -> int:
    """Lock a directory that exists; return its descriptor.

    Raises:
        Held: another process holds the lock.
        OSError: the directory cannot be opened; FileNotFoundError if it is gone once it is locked.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if directory.stat().st_ino != os.fstat(descriptor).st_ino:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
    except BlockingIOError as err:
        os.close(descriptor)
        raise Held("") from err
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def remove_unheld(file: Path) -> bool:
    """Remove a file whose lock no process holds; return whether it was removed.

    A process that opened the file meanwhile and waits for its lock finds that the file has no name any more (`take`).
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Otherwise the name may be another file's by now, and that file's lock another process's.
        ours = _is_open_at(file, descriptor)
        if ours:
            file.unlink()
    except OSError:  # another process holds the lock, or has removed or renamed the file
        return False
    else:
        return ours
    finally:
        os.close(descriptor)


def _is_open_at(file: Path, descriptor: int) -> bool:
    """Tell whether the descriptor's file is the one that has the name now."""
    try:
        return os.path.samestat(file.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def is_free(file: Path) -> bool:
    """Tell whether no process holds the lock of a file; a file that does not exist has no holder."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)
