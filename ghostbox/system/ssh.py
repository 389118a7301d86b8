# SPDX-License-Identifier: MIT
"""Log in to the guest for GhostBox's own work; people use the system's ssh.

Only this module imports paramiko, which takes longer to load than most commands take: import it where a login begins.
GhostBox makes the guest's host key and puts it into the guest's seed, so every connection is checked against that key,
and no unknown key is ever accepted.
"""

from __future__ import annotations

import logging
import shlex
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import paramiko

from ghostbox.errors import DeadlineExceeded, GuestError
from ghostbox.system.closing import Closing

_CONSOLE_LINES = 12
_POLL_S = 0.01
_PAUSE_S = 0.2
# sshd adds a penalty of 5 s for each refused login, and from 15 s on it drops every connection of that address, the
# user's own too (PerSourcePenalties, since OpenSSH 9.8). Refusals that are more than 5 s apart never reach the limit.
_PAUSE_AFTER_REFUSAL_S = 6.0
_QUIET_CHANNEL = "ghostbox.system.ssh.paramiko"

Say = Callable[[str], None]
ConsoleTail = Callable[[], str]


def _no_progress(_text: str) -> None:
    pass


def _no_console() -> str:
    return ""


@dataclass(frozen=True)
class Result:
    """Holds the result of a command in the guest; the status for a signal is 128 and more, as in a shell."""

    status: int
    stdout: str
    stderr: str


class OpenCommand:
    """Is a running command in the guest: bytes to its standard input, bytes from its standard output."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def recv(self, n_bytes: int, /) -> bytes:
        """Return some bytes of the command's output; none at the end."""
        return self._channel.recv(n_bytes)

    def sendall(self, data: bytes, /) -> None:
        """Send all of ``data``."""
        self._channel.sendall(data)

    def ending(self) -> tuple[int, str]:
        """Wait until the command has ended; return its status (-1 if the connection ended) and its error output."""
        said = self._channel.recv_stderr(1 << 16) if self._channel.recv_stderr_ready() else b""
        return self._channel.recv_exit_status(), said.decode(errors="replace").strip()


class GuestSsh(Closing):
    """Is a connection to the guest, made when it is needed and kept until ``close``.

    Args:
        host: where the guest's port 22 is reached.
        port: on ``host``.
        user: the login name in the guest.
        key: private key file.
        known_hosts: file that pins the guest's key for ``[host]:port``; no other key is accepted.
        console: returns the end of the guest's console, for error messages.
    """

    def __init__(
        self, host: str, port: int, user: str, key: Path, known_hosts: Path, *, console: ConsoleTail = _no_console
    ) -> None:
        self._host, self._port, self._user = host, port, user
        self._key, self._known_hosts = key, known_hosts
        self._console = console
        self._client: paramiko.SSHClient | None = None

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def wait_ready(
        self, timeout_s: float, on_progress: Say = _no_progress, *, alive: Callable[[], bool] = lambda: True
    ) -> None:
        """Wait until the guest takes a login.

        Args:
            timeout_s: the longest time to wait.
            on_progress: receives why there is no login yet, whenever that changes.
            alive: tells whether the VM still runs.

        Raises:
            GuestError: there was no login within ``timeout_s``, the VM ended, or the guest has another host key.
        """
        deadline = time.monotonic() + timeout_s
        patience_s = 2.0
        reason = refused = ""
        while True:
            try:
                self._connect(min(patience_s, max(1.0, deadline - time.monotonic())))
            except _NotYet as err:
                if reason != str(err):
                    reason = str(err)
                    on_progress(reason)
                refused = _REFUSED if reason == _REFUSED else refused
                pause_s = _PAUSE_AFTER_REFUSAL_S if reason == _REFUSED else _PAUSE_S
            else:
                return
            if not alive():
                raise self._error("the VM ended while it booted", reason)
            if time.monotonic() > deadline:
                raise self._error(
                    f"the guest gave no SSH login at {self._address} within {timeout_s:.0f} s", refused or reason
                )
            # QEMU's user network accepts the connection long before the guest is up and retries ever more rarely, so a
            # new attempt reaches the guest sooner; but a busy guest may need long for one handshake.
            patience_s = min(patience_s * 1.25, 20.0)
            time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))

    def run(self, command: str, timeout_s: float, stdin: str = "") -> Result:
        """Run a shell command in the guest; its exit status is no error.

        Raises:
            GuestError: the connection failed.
            DeadlineExceeded: the command ran longer than ``timeout_s``.
        """
        try:
            if self._client is None:
                self._connect(min(timeout_s, 30.0))
            return self._run(command, timeout_s, stdin)
        except _NotYet as err:
            raise self._error(f"no SSH connection to the guest at {self._address}", str(err)) from err
        except (paramiko.SSHException, OSError, EOFError) as err:
            self.close()
            raise self._error(f"the SSH connection to the guest at {self._address} broke", str(err)) from err

    @contextmanager
    def opened(self, command: str, *, silence_s: float | None = None) -> Iterator[OpenCommand]:
        """Start a shell command in the guest, and yield its standard input and output until the end of the block.

        ``silence_s``: how long to wait for output at most; then `OpenCommand.recv` raises TimeoutError.

        Raises:
            GuestError: the connection failed.
        """
        try:
            if self._client is None:
                self._connect(30.0)
            assert self._client is not None
            transport = self._client.get_transport()
            if transport is None:
                raise EOFError("the guest closed the connection")
            transport.set_keepalive(15)
            channel = transport.open_session(timeout=30.0)
            channel.settimeout(silence_s)
            channel.exec_command(command)
        except _NotYet as err:
            raise self._error(f"no SSH connection to the guest at {self._address}", str(err)) from err
        except (paramiko.SSHException, OSError, EOFError) as err:
            raise self._error(f"the SSH connection to the guest at {self._address} broke", str(err)) from err
        with channel:
            yield OpenCommand(channel)

    def put_text(self, path: str, text: str, mode: int = 0o644, timeout_s: float = 30.0) -> None:
        """Write a file in the guest as the login user.

        Raises:
            GuestError: the file cannot be written.
        """
        quoted = shlex.quote(path)
        done = self.run(f"cat > {quoted} && chmod {mode:o} {quoted}", timeout_s, stdin=text)
        if done.status != 0:
            raise GuestError(f"cannot write {path} in the guest", why=done.stderr.strip() or None)

    @property
    def _address(self) -> str:
        return f"{self._host}:{self._port}"

    def _error(self, message: str, reason: str, hint: str | None = None) -> GuestError:
        tail = "\n".join(line.rstrip() for line in self._console().splitlines()[-_CONSOLE_LINES:])
        why = [reason] if reason else []
        if tail:
            why.append(f"the guest's console ends with:\n{tail}")
        return GuestError(message, why="\n".join(why) or None, hint=hint)

    def _connect(self, patience_s: float) -> None:
        """Log in.

        Raises:
            _NotYet: the login may work later.
            GuestError: the login cannot work.
        """
        self.close()
        client = self._pinned_client()
        try:
            client.connect(
                self._host,
                self._port,
                self._user,
                key_filename=str(self._key),
                look_for_keys=False,
                allow_agent=False,
                timeout=patience_s,
                banner_timeout=patience_s,
                auth_timeout=max(patience_s, 20.0),
            )
        except paramiko.BadHostKeyException as err:
            client.close()
            raise GuestError(
                f"{self._address} shows another SSH host key than GhostBox gave to the guest",
                why="another server answers there, or the guest's key was replaced",
            ) from err
        except Exception as err:
            client.close()
            raise _not_yet(err) from err
        except BaseException:
            client.close()
            raise
        self._client = client

    def _pinned_client(self) -> paramiko.SSHClient:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        client.set_log_channel(_QUIET_CHANNEL)
        logging.getLogger(_QUIET_CHANNEL).setLevel(logging.CRITICAL)  # a booting guest refuses many attempts
        try:
            client.load_host_keys(str(self._known_hosts))
        except OSError as err:
            raise GuestError(f"cannot read the pinned host key {self._known_hosts}: {err.strerror}") from err
        return client

    def _run(self, command: str, timeout_s: float, stdin: str) -> Result:
        assert self._client is not None
        transport = self._client.get_transport()
        if transport is None or not transport.is_active():
            raise EOFError("the guest closed the connection")
        deadline = time.monotonic() + timeout_s
        with transport.open_session(timeout=min(timeout_s, 30.0)) as channel:
            channel.settimeout(timeout_s)
            channel.exec_command(command)
            channel.sendall(stdin.encode())
            channel.shutdown_write()
            stdout, stderr = _collect(channel, deadline, command, timeout_s)
            return Result(channel.recv_exit_status(), stdout, stderr)


_REFUSED = "SSH answers, but refuses GhostBox's key"


class _NotYet(Exception):
    """Is raised if the guest cannot be reached now; its text is the reason."""


def _not_yet(err: Exception) -> Exception:
    """Return ``_NotYet`` for an error that a booting guest causes; other errors unchanged."""
    if isinstance(err, paramiko.AuthenticationException):
        return _NotYet(_REFUSED)
    if isinstance(err, paramiko.SSHException) and "not found in known_hosts" in str(err):
        return GuestError("the guest's SSH host key is not pinned", why=str(err))
    if isinstance(err, (paramiko.SSHException, EOFError, socket.timeout)):
        return _NotYet("nothing answers as SSH yet")
    if isinstance(err, OSError):
        return _NotYet(f"no connection: {err.strerror or err}")
    return err


def _collect(channel: paramiko.Channel, deadline: float, command: str, timeout_s: float) -> tuple[str, str]:
    """Read both streams to their ends, or until the command has ended and both are quiet."""
    stdout, stderr = bytearray(), bytearray()
    ended_at: float | None = None
    while True:
        busy = False
        while channel.recv_ready():
            stdout += channel.recv(1 << 16)
            busy = True
        while channel.recv_stderr_ready():
            stderr += channel.recv_stderr(1 << 16)
            busy = True
        now = time.monotonic()
        if channel.exit_status_ready() and not busy:
            ended_at = ended_at or now
            # A child in the background keeps the streams open.
            if channel.eof_received or now - ended_at > 1.0:
                return stdout.decode(errors="replace"), stderr.decode(errors="replace")
        if now > deadline:
            raise DeadlineExceeded(f"'{command[:60]}' in the guest did not end within {timeout_s:.0f} s")
        if not busy:
            time.sleep(_POLL_S)
