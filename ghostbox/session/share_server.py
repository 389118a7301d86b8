# SPDX-License-Identifier: MIT
"""Serve one shared folder to the guest, in a process of its own; `shares` has the whole picture."""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import resource
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from ghostbox.config import SharedFolder
from ghostbox.errors import GuestError
from ghostbox.paths import Paths, VmPaths
from ghostbox.session import readiness, shares
from ghostbox.session.record import Book
from ghostbox.system import locks, sftp

if TYPE_CHECKING:
    from ghostbox.system.ssh import GuestSsh

_log = logging.getLogger(__name__)
_LOGIN_TIMEOUT_S = 300.0
_NO_SSHFS = 127


def serve(name: str, number: int, paths: Paths) -> None:
    """Serve one folder until the guest ends the connection.

    Raises:
        NotFound: no VM has this name.
        GuestError: the guest takes no login, or has no sshfs, or has lost the mount.
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
        with readiness.guest(book.record, book.files) as ssh:
            ssh.wait_ready(_LOGIN_TIMEOUT_S)
            _serve(ssh, folder)


def _lock(files: VmPaths, number: int) -> int | None:
    try:
        return locks.take(shares.lock_file(files, number))
    except (FileNotFoundError, locks.Held):
        return None


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
    """Return the command that mounts a folder in the guest, for all its users, as the login user's files."""
    where = shlex.quote(shares.place(folder))
    options = "passive,allow_other,dcache_timeout=1" + (",ro" if folder.read_only else "")
    # A mount whose connection broke stays in place and blocks; umount -l removes it.
    return (
        f"command -v sshfs >/dev/null || exit {_NO_SSHFS}; "
        f"sudo -n umount -l {where} 2>/dev/null; sudo -n mkdir -p {where} && "
        f'exec sudo -n sshfs -f :/ {where} -o {options} -o uid="$(id -u)",gid="$(id -g)"'
    )


def _become_owner(directory: Path) -> None:
    """Give up root's rights for those of the directory's owner; a process that is not root keeps its own."""
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
