# SPDX-License-Identifier: MIT
"""The process that serves one shared folder to the guest; `shares` says how it fits in."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import pwd
import resource
import shlex
from pathlib import Path

from ghostbox import sftp
from ghostbox.config import SharedFolder
from ghostbox.errors import GuestError
from ghostbox.paths import Paths, VmPaths
from ghostbox.session import readiness, shares
from ghostbox.session.record import Book
from ghostbox.ssh import GuestSsh

_log = logging.getLogger(__name__)
_LOGIN_TIMEOUT_S = 300.0
_NO_SSHFS = 127


def serve(name: str, number: int, paths: Paths) -> None:
    """Be the process that serves one folder, until the guest goes away.

    Raises:
        NotFound: no such VM.
        GuestError: the guest lets us not in, or has no sshfs.
    """
    book = Book(paths.vm(name))
    record = book.need(name, paths)
    held = _lock(book.files, number)
    if held is None or number >= len(record.shares):
        return
    folder = shares.folders(record)[number]
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    with contextlib.closing(os.fdopen(held, "r")):
        readiness.locate(book)
        assert book.record is not None
        with readiness.guest(book.record, book.files) as ssh:
            ssh.wait_ready(_LOGIN_TIMEOUT_S)
            _serve(ssh, folder)


def _lock(files: VmPaths, number: int) -> int | None:
    try:
        descriptor = os.open(shares.lock_file(files, number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _serve(ssh: GuestSsh, folder: SharedFolder) -> None:
    with ssh.opened(mount_command(folder)) as channel:
        server = sftp.Server(folder.directory, channel, read_only=folder.read_only)
        _become_owner(folder.directory)
        _log.info("%s is served at %s", folder.directory, shares.place(folder))
        server.serve()
        status, said = channel.ending()
    if status == _NO_SSHFS:
        raise GuestError(
            f"{folder.directory} cannot be seen in the guest: it has no sshfs",
            hint="install it there: sudo apt-get install sshfs",
        )
    if status != 0:
        raise GuestError(f"{folder.directory} is not mounted in the guest any more", why=said or None)


def mount_command(folder: SharedFolder) -> str:
    """Return what mounts a folder in the guest, for all its users, as if all files were the login user's."""
    where = shlex.quote(shares.place(folder))
    options = "passive,allow_other,dcache_timeout=1" + (",ro" if folder.read_only else "")
    # The mount of a connection that broke is still there, and answers nothing.
    return (
        f"command -v sshfs >/dev/null || exit {_NO_SSHFS}; "
        f"sudo -n umount -l {where} 2>/dev/null; sudo -n mkdir -p {where} && "
        f'exec sudo -n sshfs -f :/ {where} -o {options} -o uid="$(id -u)",gid="$(id -g)"'
    )


def _become_owner(directory: Path) -> None:
    """As root: have the rights of the directory's owner from here on, and no others."""
    status = directory.stat()
    if os.geteuid() != 0 or status.st_uid == 0:
        return
    try:
        entry = pwd.getpwuid(status.st_uid)
    except KeyError:
        os.setgroups([])
        os.setgid(status.st_gid)
    else:
        os.initgroups(entry.pw_name, entry.pw_gid)
        os.setgid(entry.pw_gid)
    os.setuid(status.st_uid)
