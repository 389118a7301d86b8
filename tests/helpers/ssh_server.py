# SPDX-License-Identifier: MIT
"""Be an SSH server in a guest's place: it accepts one key, runs commands here and serves a directory's files.

It disconnects after six keys like sshd (MaxAuthTries), and breaks connections on request.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko

from ghostbox.paths import VmPaths
from ghostbox.plan import cloudinit
from ghostbox.session import Book, Record, VmState
from ghostbox.system import ssh_keys

FORBIDDEN = "forbidden"
"""Is a file that no user may open: file modes do not stop root, as whom tests may run."""

logging.getLogger("helpers.ssh_server").setLevel(logging.CRITICAL)
_MAX_TRIES = 6  # the default of MaxAuthTries, sshd_config(5)


class GuestServer:
    """Serves until `close`; ``tries`` are the keys that were offered, ``home`` is the user's directory."""

    def __init__(self, home: Path, host_key: Path, user_key: str) -> None:
        self.home = home
        self.break_after_login = False
        self.tries: list[str] = []
        self._host_key = paramiko.Ed25519Key.from_private_key_file(str(host_key))
        self._user_key = user_key.split()[1]
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.set_log_channel("helpers.ssh_server")
            transport.add_server_key(self._host_key)
            transport.set_subsystem_handler("sftp", _Sftp, _Files)
            with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                transport.start_server(event=threading.Event(), server=_Session(self, transport))

    def allows(self, key: paramiko.PKey) -> bool:
        """Tell whether this is the key of the user who may log in."""
        self.tries.append(key.get_base64())
        return key.get_base64() == self._user_key


class _Session(paramiko.ServerInterface):
    def __init__(self, server: GuestServer, transport: paramiko.Transport) -> None:
        self.server, self.transport = server, transport
        self._left = _MAX_TRIES

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        if self.server.allows(key):
            return paramiko.AUTH_SUCCESSFUL  # type: ignore[attr-defined, no-any-return]
        self._left -= 1
        if self._left <= 0:
            self.transport.close()
        return paramiko.AUTH_FAILED  # type: ignore[attr-defined, no-any-return]

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.OPEN_SUCCEEDED  # type: ignore[attr-defined, no-any-return]

    def check_channel_env_request(self, *_: Any) -> bool:
        return True

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        if self.server.break_after_login:
            self.transport.close()
            return False
        threading.Thread(target=_run, args=(channel, command, self.server.home), daemon=True).start()
        return True


def _run(channel: paramiko.Channel, command: bytes, home: Path) -> None:
    done = subprocess.run(["/bin/sh", "-c", command], cwd=home, capture_output=True, check=False)
    channel.sendall(done.stdout)
    channel.sendall_stderr(done.stderr)
    channel.send_exit_status(done.returncode)
    channel.close()


class _Sftp(paramiko.SFTPServer):
    def start_subsystem(self, name: str, transport: paramiko.Transport, channel: paramiko.Channel) -> None:
        super().start_subsystem(name, transport, channel)
        channel.send_exit_status(0)


class _Handle(paramiko.SFTPHandle):
    def stat(self) -> Any:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))  # type: ignore[attr-defined]

    def chattr(self, attr: paramiko.SFTPAttributes) -> int:
        return paramiko.SFTP_OK  # type: ignore[attr-defined, no-any-return]


class _Files(paramiko.SFTPServerInterface):
    """Serves the home directory by SFTP, with unchecked paths."""

    def __init__(self, session: _Session, *_: Any, **__: Any) -> None:
        self._home = session.server.home

    def canonicalize(self, path: str) -> str:
        return os.path.normpath(self._home / path)

    def list_folder(self, path: str) -> Any:
        try:
            return [self._attributes(entry) for entry in Path(path).iterdir()]
        except OSError as err:
            return paramiko.SFTPServer.convert_errno(err.errno or 0)

    def _attributes(self, path: Path) -> paramiko.SFTPAttributes:
        return paramiko.SFTPAttributes.from_stat(path.stat(), path.name)

    def stat(self, path: str) -> Any:
        try:
            return self._attributes(self._home / path)
        except OSError as err:
            return paramiko.SFTPServer.convert_errno(err.errno or 0)

    lstat = stat

    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> Any:
        if Path(path).name == FORBIDDEN:
            return paramiko.SFTP_PERMISSION_DENIED  # type: ignore[attr-defined]
        try:
            descriptor = os.open(self._home / path, flags, 0o666)
        except OSError as err:
            return paramiko.SFTPServer.convert_errno(err.errno or 0)
        handle = _Handle(flags)
        stream = os.fdopen(descriptor, "wb" if flags & os.O_WRONLY else "rb" if not flags & os.O_RDWR else "r+b")
        handle.readfile = handle.writefile = stream  # type: ignore[attr-defined]
        return handle

    def mkdir(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        try:
            (self._home / path).mkdir()
        except OSError as err:
            return paramiko.SFTPServer.convert_errno(err.errno or 0)
        return paramiko.SFTP_OK  # type: ignore[attr-defined, no-any-return]

    def chattr(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        return paramiko.SFTP_OK  # type: ignore[attr-defined, no-any-return]


@contextlib.contextmanager
def guest_server(home: Path, host_key: Path, user_key: str) -> Iterator[GuestServer]:
    """Serve until the end of the block."""
    server = GuestServer(home, host_key, user_key)
    try:
        yield server
    finally:
        server.close()


def started_vm(state: Path, runtime: Path, port: int, name: str = "work") -> Book:
    """Write the record of a running VM whose port 22 is at ``port``, with keys and configuration like `up`."""
    files = VmPaths(state, runtime)
    for directory in (state, runtime):
        directory.mkdir(parents=True, exist_ok=True)
    for key in (files.host_key, files.client_key):
        if not key.exists():
            ssh_keys.write_key(ssh_keys.generate_key("test"), key)
    host_key = ssh_keys.read_key(files.host_key).public
    files.known_hosts.write_text(cloudinit.render_known_hosts("127.0.0.1", port, host_key))
    keys = [files.client_key]
    text = cloudinit.render_ssh_config(name, "127.0.0.1", port, "ana", files.known_hosts, keys)
    files.ssh_config.write_bytes(os.fsencode(text))
    book = Book(files)
    fields: dict[str, Any] = dict.fromkeys(
        ("cpus", "memory_bytes", "remote_memory_bytes", "cache_bytes", "disk_bytes"), 1
    )
    book.save(
        Record(
            name, VmState.RUNNING, "0d7aee3c-1f7d-4f4c-9d3e-0c7b3a1d2f55", "52:54:00:00:00:01", port,
            created_at="2026-11-29T00:00:00+00:00", started_at="2026-11-29T00:00:01+00:00", domain=f"ghostbox-{name}",
            libvirt_uri="test:///default", image="debian", user="ana", virt="tcg", **fields,
        )
    )  # fmt: skip
    return book
