# SPDX-License-Identifier: MIT
"""Serve one directory by SFTP, version 3 (draft-ietf-secsh-filexfer-02), over any pair of byte streams.

The client (sshfs in the guest) is not trusted: it sees only what is below the directory. Each path is walked from the
directory's own descriptor, one name at a time, and no symbolic link on the way is followed (``O_NOFOLLOW``): the
guest's kernel follows links itself, in the guest. The user that this process runs as decides what files may be read and
written. A read-only share refuses every request that would write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

_VERSION = 3
_MOST_PACKET_BYTES = 300 << 10
_MOST_READ_BYTES = 256 << 10
_MOST_HANDLES = 4096
_NAMES_A_REPLY = 100

_INIT, _VERSION_REPLY, _STATUS, _HANDLE, _DATA, _NAME, _ATTRS, _EXTENDED_REPLY = 1, 2, 101, 102, 103, 104, 105, 201
_OK, _EOF, _NO_SUCH_FILE, _PERMISSION_DENIED, _FAILURE, _BAD_MESSAGE, _UNSUPPORTED = 0, 1, 2, 3, 4, 5, 8
_READ, _WRITE, _APPEND, _CREATE, _TRUNCATE, _EXCLUSIVE = 1, 2, 4, 8, 16, 32
_HAS_SIZE, _HAS_OWNER, _HAS_MODE, _HAS_TIMES = 1, 2, 4, 8
_CODES = {errno.ENOENT: _NO_SUCH_FILE, errno.EACCES: _PERMISSION_DENIED, errno.EPERM: _PERMISSION_DENIED,
          errno.EROFS: _PERMISSION_DENIED}  # fmt: skip
_EXTENSIONS = (
    (b"posix-rename@openssh.com", b"1"),
    (b"statvfs@openssh.com", b"2"),
    (b"hardlink@openssh.com", b"1"),
    (b"fsync@openssh.com", b"1"),
)  # OpenSSH's PROTOCOL, section 4


class Stream(Protocol):
    """Describes where packets come from and go to; an SSH channel and a socket both fit."""

    def recv(self, n_bytes: int, /) -> bytes:
        """Return some bytes; none at the end."""

    def sendall(self, data: bytes, /) -> object:
        """Send all of the data."""


class _Malformed(Exception):
    """Is raised if the client breaks the protocol."""


class _Reader:
    """Reads the fields of one packet, in order."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, n_bytes: int) -> bytes:
        if self._at + n_bytes > len(self._data):
            raise _Malformed
        self._at += n_bytes
        return self._data[self._at - n_bytes : self._at]

    def number(self) -> int:
        return int(struct.unpack(">I", self.take(4))[0])

    def long(self) -> int:
        return int(struct.unpack(">Q", self.take(8))[0])

    def text(self) -> bytes:
        return self.take(self.number())


class _Attributes:
    """Holds the attributes that a request sets; None for those that it leaves."""

    def __init__(self, packet: _Reader) -> None:
        flags = packet.number()
        self.size = packet.long() if flags & _HAS_SIZE else None
        self.owner = (packet.number(), packet.number()) if flags & _HAS_OWNER else None
        self.mode = packet.number() & 0o7777 if flags & _HAS_MODE else None
        self.times = (packet.number(), packet.number()) if flags & _HAS_TIMES else None


class _Directory:
    """Is an open directory with its entries, each reported once."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.names = iter([".", "..", *os.listdir(descriptor)])


def _packed(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def _attributes(found: os.stat_result) -> bytes:
    flags = _HAS_SIZE | _HAS_OWNER | _HAS_MODE | _HAS_TIMES
    times = [max(0, min(int(when), 0xFFFFFFFF)) for when in (found.st_atime, found.st_mtime)]
    return struct.pack(">IQIIIII", flags, found.st_size, found.st_uid, found.st_gid, found.st_mode, *times)


class Server:
    """Serves ``directory`` until the stream ends."""

    def __init__(self, directory: Path, stream: Stream, *, read_only: bool) -> None:
        self._stream = stream
        self._read_only = read_only
        self._root = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._handles: dict[bytes, int | _Directory] = {}
        self._next_handle = 0
        self._requests: dict[int, Callable[[_Reader], bytes]] = {
            3: self._open, 4: self._close, 5: self._read, 6: self._write, 7: self._stat, 8: self._fstat,
            9: self._setstat, 10: self._fsetstat, 11: self._opendir, 12: self._readdir, 13: self._remove,
            14: self._mkdir, 15: self._rmdir, 16: self._realpath, 17: self._stat, 18: self._rename,
            19: self._readlink, 20: self._symlink, 200: self._extended,
        }  # fmt: skip

    def serve(self) -> None:
        """Answer requests until the client ends the connection or breaks the protocol."""
        try:
            while (packet := self._packet()) is not None:
                self._stream.sendall(_packed(self._answer(packet)))
        except (_Malformed, OSError):
            return
        finally:
            self._close_all()

    def _packet(self) -> bytes | None:
        head = self._exactly(4)
        if head is None:
            return None
        length = struct.unpack(">I", head)[0]
        if not 1 <= length <= _MOST_PACKET_BYTES:
            raise _Malformed
        return self._exactly(length)

    def _exactly(self, n_bytes: int) -> bytes | None:
        parts, missing = [], n_bytes
        while missing:
            part = self._stream.recv(min(missing, 1 << 16))
            if not part:
                return None
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _answer(self, packet: bytes) -> bytes:
        fields = _Reader(packet)
        kind = fields.take(1)[0]
        if kind == _INIT:
            names = b"".join(_packed(name) + _packed(version) for name, version in _EXTENSIONS)
            return struct.pack(">BI", _VERSION_REPLY, _VERSION) + names
        number = fields.take(4)
        try:
            request = self._requests.get(kind)
            reply = _status(_UNSUPPORTED) if request is None else request(fields)
        except OSError as err:
            reply = _status(_CODES.get(err.errno or 0, _FAILURE), os.strerror(err.errno or 0))
        except (ValueError, OverflowError):  # a name with a zero byte, or a number out of range
            reply = _status(_BAD_MESSAGE)
        return reply[:1] + number + reply[1:]

    def _close_all(self) -> None:
        for handle in self._handles.values():
            os.close(handle.descriptor if isinstance(handle, _Directory) else handle)
        self._handles.clear()
        os.close(self._root)

    @contextlib.contextmanager
    def _at(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield the descriptor of the directory that holds ``path``, and its last name (``.`` for the root)."""
        names: list[bytes] = []
        for name in path.split(b"/"):
            if name == b"..":
                names = names[:-1]
            elif name not in (b"", b"."):
                names.append(name)
        descriptor = os.dup(self._root)
        try:
            for name in names[:-1]:
                flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                below = os.open(name, flags, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor, names[-1] if names else b"."
        finally:
            os.close(descriptor)

    def _writing(self) -> None:
        if self._read_only:
            raise OSError(errno.EROFS, "read-only")

    def _add(self, handle: int | _Directory) -> bytes:
        if len(self._handles) >= _MOST_HANDLES:
            os.close(handle.descriptor if isinstance(handle, _Directory) else handle)
            raise OSError(errno.EMFILE, "too many files are open")
        self._next_handle += 1
        name = str(self._next_handle).encode()
        self._handles[name] = handle
        return bytes([_HANDLE]) + _packed(name)

    def _file(self, packet: _Reader) -> int:
        found = self._handles.get(packet.text())
        if not isinstance(found, int):
            raise OSError(errno.EBADF, "no such handle")
        return found

    def _open(self, packet: _Reader) -> bytes:
        path, wanted, attributes = packet.text(), packet.number(), _Attributes(packet)
        if wanted & ~_READ:
            self._writing()
        access = {_READ: os.O_RDONLY, _WRITE: os.O_WRONLY}.get(wanted & (_READ | _WRITE), os.O_RDWR)
        # O_NONBLOCK: a FIFO whose other end is not open must not stop the server.
        flags = access | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        for bit, flag in (
            (_APPEND, os.O_APPEND), (_CREATE, os.O_CREAT), (_TRUNCATE, os.O_TRUNC), (_EXCLUSIVE, os.O_EXCL)
        ):  # fmt: skip
            flags |= flag if wanted & bit else 0
        mode = 0o666 if attributes.mode is None else attributes.mode & 0o777
        with self._at(path) as (directory, name):
            descriptor = os.open(name, flags, mode, dir_fd=directory)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.EACCES, "no regular file")
        return self._add(descriptor)

    def _close(self, packet: _Reader) -> bytes:
        handle = self._handles.pop(packet.text(), None)
        if handle is None:
            return _status(_FAILURE)
        os.close(handle.descriptor if isinstance(handle, _Directory) else handle)
        return _status(_OK)

    def _read(self, packet: _Reader) -> bytes:
        descriptor, offset, length = self._file(packet), packet.long(), packet.number()
        data = os.pread(descriptor, min(length, _MOST_READ_BYTES), offset)
        return bytes([_DATA]) + _packed(data) if data else _status(_EOF)

    def _write(self, packet: _Reader) -> bytes:
        self._writing()
        descriptor, offset, data = self._file(packet), packet.long(), packet.text()
        while data:
            written = os.pwrite(descriptor, data, offset)
            data, offset = data[written:], offset + written
        return _status(_OK)

    def _stat(self, packet: _Reader) -> bytes:
        with self._at(packet.text()) as (directory, name):
            return bytes([_ATTRS]) + _attributes(os.stat(name, dir_fd=directory, follow_symlinks=False))

    def _fstat(self, packet: _Reader) -> bytes:
        return bytes([_ATTRS]) + _attributes(os.fstat(self._file(packet)))

    def _setstat(self, packet: _Reader) -> bytes:
        self._writing()
        with self._at(packet.text()) as (directory, name):
            wanted = _Attributes(packet)
            flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            if wanted.size is not None:
                descriptor = os.open(name, os.O_WRONLY | flags, dir_fd=directory)
                with contextlib.closing(os.fdopen(descriptor, "wb")) as file:
                    os.ftruncate(file.fileno(), wanted.size)
            if wanted.mode is not None:
                # Linux has no chmod that does not follow links; a descriptor's entry in /proc leads to that file only.
                descriptor = os.open(name, os.O_PATH | flags, dir_fd=directory)
                try:
                    if not stat.S_ISLNK(os.fstat(descriptor).st_mode):
                        Path(f"/proc/self/fd/{descriptor}").chmod(wanted.mode & 0o777)
                finally:
                    os.close(descriptor)
            if wanted.times is not None:
                os.utime(name, wanted.times, dir_fd=directory, follow_symlinks=False)
        return _status(_OK)

    def _fsetstat(self, packet: _Reader) -> bytes:
        self._writing()
        descriptor, wanted = self._file(packet), _Attributes(packet)
        if wanted.size is not None:
            os.ftruncate(descriptor, wanted.size)
        if wanted.mode is not None:
            os.fchmod(descriptor, wanted.mode & 0o777)
        if wanted.times is not None:
            os.utime(descriptor, wanted.times)
        return _status(_OK)

    def _opendir(self, packet: _Reader) -> bytes:
        with self._at(packet.text()) as (directory, name):
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            return self._add(_Directory(os.open(name, flags, dir_fd=directory)))

    def _readdir(self, packet: _Reader) -> bytes:
        found = self._handles.get(packet.text())
        if not isinstance(found, _Directory):
            raise OSError(errno.EBADF, "no such handle")
        entries: list[bytes] = []
        for name in found.names:
            with contextlib.suppress(FileNotFoundError):
                place = "." if name == ".." else name  # the client learns nothing of the directory above the share
                status = os.stat(place, dir_fd=found.descriptor, follow_symlinks=False)
                entries.append(_packed(os.fsencode(name)) * 2 + _attributes(status))
            if len(entries) == _NAMES_A_REPLY:
                break
        return struct.pack(">BI", _NAME, len(entries)) + b"".join(entries) if entries else _status(_EOF)

    def _remove(self, packet: _Reader) -> bytes:
        self._writing()
        with self._at(packet.text()) as (directory, name):
            os.unlink(name, dir_fd=directory)
        return _status(_OK)

    def _mkdir(self, packet: _Reader) -> bytes:
        self._writing()
        with self._at(packet.text()) as (directory, name):
            mode = _Attributes(packet).mode
            os.mkdir(name, 0o777 if mode is None else mode & 0o777, dir_fd=directory)
        return _status(_OK)

    def _rmdir(self, packet: _Reader) -> bytes:
        self._writing()
        with self._at(packet.text()) as (directory, name):
            os.rmdir(name, dir_fd=directory)
        return _status(_OK)

    def _realpath(self, packet: _Reader) -> bytes:
        path = os.path.normpath(b"/" + packet.text().lstrip(b"/"))
        return struct.pack(">BI", _NAME, 1) + _packed(path) * 2 + struct.pack(">I", 0)

    def _rename(self, packet: _Reader, *, replace: bool = False) -> bytes:
        self._writing()
        with self._at(packet.text()) as (old_at, old), self._at(packet.text()) as (new_at, new):
            if replace:
                os.replace(old, new, src_dir_fd=old_at, dst_dir_fd=new_at)
                return _status(_OK)
            try:
                os.stat(new, dir_fd=new_at, follow_symlinks=False)
            except FileNotFoundError:
                os.rename(old, new, src_dir_fd=old_at, dst_dir_fd=new_at)
                return _status(_OK)
        return _status(_FAILURE, "the new name exists already")

    def _readlink(self, packet: _Reader) -> bytes:
        with self._at(packet.text()) as (directory, name):
            target = os.readlink(name, dir_fd=directory)
        return struct.pack(">BI", _NAME, 1) + _packed(target) * 2 + struct.pack(">I", 0)

    def _symlink(self, packet: _Reader) -> bytes:
        """Make a link; OpenSSH swaps the draft's order of target and link, and sshfs does as OpenSSH."""
        self._writing()
        target = packet.text()
        with self._at(packet.text()) as (directory, name):
            os.symlink(target, name, dir_fd=directory)
        return _status(_OK)

    def _extended(self, packet: _Reader) -> bytes:
        name = packet.text()
        if name == b"posix-rename@openssh.com":
            return self._rename(packet, replace=True)
        if name == b"statvfs@openssh.com":
            return self._statvfs(packet)
        if name == b"fsync@openssh.com":
            os.fsync(self._file(packet))
            return _status(_OK)
        if name == b"hardlink@openssh.com":
            self._writing()
            with self._at(packet.text()) as (old_at, old), self._at(packet.text()) as (new_at, new):
                os.link(old, new, src_dir_fd=old_at, dst_dir_fd=new_at, follow_symlinks=False)
            return _status(_OK)
        return _status(_UNSUPPORTED)

    def _statvfs(self, packet: _Reader) -> bytes:
        packet.text()
        found = os.statvfs(self._root)
        values = (
            found.f_bsize, found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail, found.f_files, found.f_ffree,
            found.f_favail, 0, 1 if self._read_only else 0, found.f_namemax,
        )  # fmt: skip
        return bytes([_EXTENDED_REPLY]) + struct.pack(">11Q", *values)


def _status(code: int, text: str = "") -> bytes:
    return struct.pack(">BI", _STATUS, code) + _packed(text.encode()) + _packed(b"")
