# SPDX-License-Identifier: MIT
"""An ordinary SFTP client sees all of a shared directory, and nothing above or beside it."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import paramiko
import pytest

from ghostbox.system import sftp


class Named(socket.socket):
    """Be a socket that paramiko takes for a channel."""

    def get_name(self) -> str:
        return "test"


@contextlib.contextmanager
def served(directory: Path, *, read_only: bool = False) -> Iterator[Named]:
    """Serve ``directory`` in a thread; yield the client's end."""
    ours, other = socket.socketpair()
    with ours, Named(fileno=other.detach()) as theirs:
        server = sftp.Server(directory, ours, read_only=read_only)

        def serve() -> None:
            with ours:
                server.serve()

        thread = threading.Thread(target=serve)
        thread.start()
        theirs.settimeout(20)
        yield theirs
        with contextlib.suppress(OSError):
            theirs.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.fixture
def share(tmp_path: Path) -> Path:
    directory = tmp_path / "share"
    directory.mkdir()
    (tmp_path / "secret").write_text("not for the guest")
    (directory / "a file").write_text("hello")
    (directory / "out").symlink_to("../secret")
    (directory / "up").symlink_to("..")
    (directory / "above").symlink_to(tmp_path)
    return directory


@pytest.fixture
def client(share: Path) -> Iterator[paramiko.SFTPClient]:
    with served(share) as sock:
        yield paramiko.SFTPClient(sock)  # type: ignore[arg-type]


@pytest.fixture
def reader(share: Path) -> Iterator[paramiko.SFTPClient]:
    with served(share, read_only=True) as sock:
        yield paramiko.SFTPClient(sock)  # type: ignore[arg-type]


def test_files_are_read_and_written_at_any_place(client: paramiko.SFTPClient, share: Path) -> None:
    data = os.urandom(1 << 20)
    with client.open("new", "w") as file:
        file.write(data)
    assert (share / "new").read_bytes() == data
    with client.open("new", "r+") as file:
        file.seek(500_000)
        file.write(b"in the middle")
        file.seek(499_990)
        assert file.read(30) == data[499_990:500_000] + b"in the middle" + data[500_013:500_020]
    with client.open("a file", "a") as file:
        file.write(b" world")
    assert (share / "a file").read_text() == "hello world"


def test_names_of_any_kind_are_listed_once_each(client: paramiko.SFTPClient, share: Path) -> None:
    odd = ["a b", "ä%s", "-rf", "quo'te\"", "new\nline", *(f"n{number}" for number in range(250))]
    for name in odd:
        (share / name).write_text("x")
    with client.open("odd ♥", "wx") as file:
        file.write(b"x")
    listed = client.listdir()
    assert len(listed) == len(set(listed)) == len(odd) + 5
    assert {*odd, "odd ♥"} <= set(listed)


def test_directories_links_and_attributes(client: paramiko.SFTPClient, share: Path) -> None:
    client.mkdir("d", 0o750)
    client.rename("a file", "d/b")
    client.symlink("b", "d/link")
    assert client.readlink("d/link") == "b"
    client.chmod("d/b", 0o4711)
    client.utime("d/b", (1_000_000, 2_000_000))
    client.truncate("d/b", 2)
    found = client.lstat("d/b")
    assert (found.st_size, stat.S_IMODE(found.st_mode or 0)) == (2, 0o711)  # a guest cannot make a setuid program
    assert (share / "d" / "b").stat().st_mode & 0o7777 == 0o711
    client.posix_rename("d/b", "up2")
    client.remove("d/link")
    client.rmdir("d")
    assert sorted(client.listdir()) == ["above", "out", "up", "up2"]


def test_rename_onto_a_file_needs_the_posix_one(client: paramiko.SFTPClient, share: Path) -> None:
    (share / "other").write_text("other")
    with pytest.raises(OSError, match="the new name exists already"):
        client.rename("a file", "other")
    client.posix_rename("a file", "other")
    assert (share / "other").read_text() == "hello"


TOUCHES: dict[str, Callable[[paramiko.SFTPClient, str], object]] = {
    "read": lambda client, path: client.open(path).read(),
    "write": lambda client, path: client.open(path, "r+").write(b"x"),
    "create": lambda client, path: client.open(path + "-new", "w"),
    "list": lambda client, path: client.listdir(path),
    "truncate": lambda client, path: client.truncate(path, 0),
    "mkdir": lambda client, path: client.mkdir(path + "-new"),
    "remove": lambda client, path: client.remove(path),
    "rename": lambda client, path: client.posix_rename(path, "stolen"),
}


@pytest.mark.parametrize("touch", TOUCHES)
@pytest.mark.parametrize("path", ["up/secret", "above/secret", "up/share/../secret"])
def test_no_link_leads_out_of_the_share(client: paramiko.SFTPClient, share: Path, touch: str, path: str) -> None:
    with pytest.raises(OSError):
        TOUCHES[touch](client, path)
    assert (share.parent / "secret").read_text() == "not for the guest"
    assert sorted(entry.name for entry in share.parent.iterdir()) == ["secret", "share"]


@pytest.mark.parametrize("path", ["../secret", "/../secret", "../../../../../../etc/passwd", "/etc/passwd"])
def test_no_path_leads_above_the_share(client: paramiko.SFTPClient, path: str) -> None:
    with pytest.raises(FileNotFoundError):
        client.open(path)
    with pytest.raises(FileNotFoundError):
        client.lstat(path)


def test_what_is_above_the_share_is_not_even_described(client: paramiko.SFTPClient, share: Path) -> None:
    assert client.lstat("..").st_mtime == int(share.stat().st_mtime)
    assert client.normalize("../..") == "/"


@pytest.mark.parametrize("touch", ["read", "write", "truncate"])
def test_link_at_the_end_of_a_path_is_not_followed(client: paramiko.SFTPClient, share: Path, touch: str) -> None:
    with pytest.raises(OSError):
        TOUCHES[touch](client, "out")
    client.chmod("out", 0o777)
    assert (share.parent / "secret").stat().st_mode & 0o777 != 0o777


@pytest.mark.parametrize("touch", [touch for touch in TOUCHES if touch not in ("read", "list")])
def test_read_only_share_refuses_every_change(reader: paramiko.SFTPClient, share: Path, touch: str) -> None:
    assert reader.open("a file").read() == b"hello"
    before = {entry.name: entry.lstat().st_mtime_ns for entry in share.iterdir()}
    with pytest.raises(PermissionError):
        TOUCHES[touch](reader, "a file")
    for change in (
        lambda: reader.chmod("a file", 0), lambda: reader.utime("a file", (1, 1)), lambda: reader.symlink("x", "y"),
        lambda: reader.rename("a file", "b"), lambda: reader.open("a file", "a"),
    ):  # fmt: skip
        with pytest.raises(PermissionError):
            change()
    assert {entry.name: entry.lstat().st_mtime_ns for entry in share.iterdir()} == before


def test_fifo_and_device_are_not_opened(client: paramiko.SFTPClient, share: Path) -> None:
    os.mkfifo(share / "fifo")
    with pytest.raises(PermissionError):
        client.open("fifo")


def test_more_open_files_than_allowed_are_refused_and_the_others_go_on(
    client: paramiko.SFTPClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp, "_MOST_HANDLES", 20)
    files = [client.open("a file") for _ in range(20)]
    with pytest.raises(OSError, match="Too many open files"):
        client.open("a file")
    files.pop().close()
    assert client.open("a file").read() == b"hello"


@pytest.mark.parametrize(
    "packet",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        struct.pack(">IB", 5, 3) + b"\0\0\0\1",
        struct.pack(">IBII", 9, 7, 1, 0xFFFFFFF0),
        struct.pack(">IB", 300, 6),
    ],
)
def test_what_is_no_sftp_ends_the_connection(share: Path, packet: bytes) -> None:
    with served(share) as sock:
        sock.sendall(packet)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b""


def test_request_that_is_not_known_is_said_to_be(share: Path) -> None:
    with served(share) as sock:
        sock.sendall(struct.pack(">IBI", 5, 99, 7))
        assert struct.unpack(">IBII", sock.recv(13)) == (17, 101, 7, 8)


def test_name_with_a_zero_byte_is_refused(share: Path) -> None:
    with served(share) as sock:
        name = b"a\0b"
        sock.sendall(struct.pack(">IBII", 9 + len(name), 7, 7, len(name)) + name)
        assert struct.unpack(">IBII", sock.recv(13)) == (17, 101, 7, 5)
