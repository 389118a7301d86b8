# SPDX-License-Identifier: MIT
"""Find the user that QEMU runs as, whether that user can reach a file, and whom libvirt lets connect."""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

QEMU_CONF = Path("/etc/libvirt/qemu.conf")
LIBVIRT_GROUP = "libvirt"
"""The group whose members may connect, by libvirt's polkit rule or by the socket's group."""
# linux/posix_acl.h
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_READ_WRITE = 6
_NO_ID = 0xFFFFFFFF
_ACL = "system.posix_acl_access"
_ACL_VERSION, _ACL_ENTRY = struct.Struct("<I"), struct.Struct("<HHI")  # linux/posix_acl_xattr.h
_PACKAGED_USERS = ("libvirt-qemu", "qemu")


@dataclass(frozen=True)
class Account:
    """Is a user with all groups that its processes have."""

    name: str
    uid: int
    groups: frozenset[int]


def qemu_user(uri: str, conf: Path = QEMU_CONF) -> Account:
    """Return the account that QEMU runs under for a libvirt URI.

    A session libvirt runs QEMU as the calling user. The system's libvirt takes ``user`` from qemu.conf, or the user
    that the distribution's package made, or root.
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
    ways = (path.absolute(), path.resolve())  # the path with its symbolic links, and the path that they lead to
    for parent in (parent for way in ways for parent in reversed(way.parents)):
        if parent.exists() and not _may_pass(parent, account):
            return parent
    return None


def hand_over(file: Path, account: Account) -> None:
    """Let only this user and ``account`` read and write ``file``.

    Root gives the file to the account. Another user cannot give a file away, so an access control list lets the account
    use it.

    Raises:
        OSError: the file belongs to another user, or the file system has no access control lists (ENOTSUP).
    """
    file.chmod(0o600)
    if account.uid == os.geteuid():
        return
    if os.geteuid() == 0:
        os.chown(file, account.uid, -1)
        return
    entries = [
        (_USER_OBJ, _READ_WRITE, _NO_ID),
        (_USER, _READ_WRITE, account.uid),
        (_GROUP_OBJ, 0, _NO_ID),
        (_MASK, _READ_WRITE, _NO_ID),
        (_OTHER, 0, _NO_ID),
    ]
    os.setxattr(file, _ACL, _ACL_VERSION.pack(2) + b"".join(_ACL_ENTRY.pack(*entry) for entry in entries))


def way_in(uri: str) -> str:
    """Return how this user can get access to the libvirt of ``uri``, which has just refused."""
    if "/session" in uri:
        return "XDG_RUNTIME_DIR may be another user's: log in anew (su - USER, not su USER)"
    if os.geteuid() == 0:
        return "see auth_unix_rw in /etc/libvirt/libvirtd.conf, which can deny root, too"
    try:
        group = grp.getgrnam(LIBVIRT_GROUP)
    except KeyError:
        return "run this as root: there is no group libvirt whose members may connect"
    name = pwd.getpwuid(os.geteuid()).pw_name
    if group.gr_gid not in (os.getegid(), *os.getgroups()):
        if name in group.gr_mem:
            return f"log in again: {name} joined the group libvirt after this login began"
        return "sudo usermod -aG libvirt $USER, then log in again; or run this as root"
    return (
        f"{name} is in the group libvirt: install polkitd, which lets members connect, or set auth_unix_rw ="
        ' "none" and unix_sock_group = "libvirt" in /etc/libvirt/libvirtd.conf; then start libvirtd again'
    )


def _may_pass(directory: Path, account: Account) -> bool:
    if account.uid == 0:
        return True
    status, acl = directory.stat(), _access_list(directory)
    if acl and status.st_uid != account.uid:
        return _list_lets_pass(acl, status.st_gid, account)
    if status.st_uid == account.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid in account.groups:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _access_list(directory: Path) -> list[tuple[int, int, int]]:
    """Return the entries (tag, permissions, id) of a POSIX access control list (``setfacl``); empty without one."""
    try:
        raw = os.getxattr(directory, _ACL)
    except OSError:
        return []
    return list(_ACL_ENTRY.iter_unpack(raw[_ACL_VERSION.size :]))


def _list_lets_pass(acl: list[tuple[int, int, int]], owning_group: int, account: Account) -> bool:
    """Apply acl(5), "access check algorithm", for a user that is not the owner and wants to pass (execute)."""
    mask = next((permissions for tag, permissions, _ in acl if tag == _MASK), 7)
    for tag, permissions, number in acl:
        if tag == _USER and number == account.uid:
            return bool(permissions & mask & 1)
    groups = [
        permissions
        for tag, permissions, number in acl
        if (tag == _GROUP and number in account.groups) or (tag == _GROUP_OBJ and owning_group in account.groups)
    ]
    if groups:
        return any(permissions & mask & 1 for permissions in groups)
    return any(tag == _OTHER and permissions & 1 for tag, permissions, _ in acl)


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
