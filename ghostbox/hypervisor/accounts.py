# SPDX-License-Identifier: MIT
"""Which user QEMU runs as, and whether that user can reach a file."""

from __future__ import annotations

import os
import pwd
import re
import stat
from dataclasses import dataclass
from pathlib import Path

QEMU_CONF = Path("/etc/libvirt/qemu.conf")
_PACKAGED_USERS = ("libvirt-qemu", "qemu")


@dataclass(frozen=True)
class Account:
    """A user and all groups that a process of it has."""

    name: str
    uid: int
    groups: frozenset[int]


def qemu_user(uri: str, conf: Path = QEMU_CONF) -> Account:
    """Return the account that QEMU runs under for this libvirt URI.

    A session libvirt runs QEMU as the caller. The system one takes ``user`` from qemu.conf, else the user that the
    distribution's package made, else root.
    """
    if "/session" in uri:
        return _account(pwd.getpwuid(os.geteuid()))
    configured = _configured_user(conf)
    for name in (configured, *_PACKAGED_USERS) if configured else _PACKAGED_USERS:
        try:
            return _account(pwd.getpwuid(int(name[1:])) if name.startswith("+") else pwd.getpwnam(name))
        except (KeyError, ValueError):
            continue
    return _account(pwd.getpwuid(0))


def unreachable_part(path: Path, account: Account) -> Path | None:
    """Return the first directory above ``path`` that ``account`` may not pass, or None."""
    ways = (path.absolute(), path.resolve())  # through symbolic links, and where they lead
    for parent in (parent for way in ways for parent in reversed(way.parents)):
        if parent.exists() and not _may_pass(parent.stat(), account):
            return parent
    return None


def _may_pass(status: os.stat_result, account: Account) -> bool:
    if account.uid == 0:
        return True
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid in account.groups:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _configured_user(conf: Path) -> str | None:
    try:
        text = conf.read_text()
    except OSError:
        return None
    match = re.search(r'^\s*user\s*=\s*"([^"]+)"', text, re.MULTILINE)
    return match[1] if match else None


def _account(entry: pwd.struct_passwd) -> Account:
    groups = frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return Account(entry.pw_name, entry.pw_uid, groups)
