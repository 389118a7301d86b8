# SPDX-License-Identifier: MIT
"""The one place that starts programs and talks to control sockets (``subprocess`` is imported nowhere else)."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ghostbox.errors import DeadlineExceeded, ProgramError, exhausted

_log = logging.getLogger(__name__)


# Daemons and mke2fs lie there, and the PATH of a user who is not root may end before it.
_SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def search_path() -> str:
    """Return where programs are looked for: PATH, and where the system's own lie."""
    return os.pathsep.join([os.environ.get("PATH") or os.defpath, *_SYSTEM_DIRECTORIES])


def which(program: str) -> str | None:
    """Return the path of a program; None if it is not installed. One with a directory is taken as it is."""
    return shutil.which(program, path=search_path())


def run(
    argv: Sequence[str | Path],
    *,
    timeout_s: float | None = None,
    input_text: str | None = None,
    env: Mapping[str, str] | None = None,
    inherit_env: bool = True,
    cwd: Path | None = None,
) -> str:
    """Run a program to its end and return its stdout.

    ``env`` is added to our own environment, or is all of the program's where ``inherit_env`` is false.

    Raises:
        ProgramError: not found, or a non-zero exit; the last lines of its stderr are the ``why``.
        DeadlineExceeded: it ran longer than ``timeout_s`` and was killed.
    """
    words = [str(word) for word in argv]
    _log.debug("run: %s", " ".join(words))
    try:
        done = subprocess.run(
            words,
            executable=which(words[0]),
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            input=input_text,
            env={**(os.environ if inherit_env else {}), **(env or {})},
            cwd=cwd,
        )
    except FileNotFoundError as err:
        raise ProgramError(f"cannot run {words[0]}: not found", hint=f"install {Path(words[0]).name}") from err
    except subprocess.TimeoutExpired as err:
        raise DeadlineExceeded(f"{words[0]} did not finish within {timeout_s:.0f} s") from err
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise ProgramError(f"{words[0]} failed with status {done.returncode}", why="\n".join(lines[-5:]) or None)
    return done.stdout


_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PR_SET_PDEATHSIG = 1  # prctl(2)


def attach(argv: Sequence[str | Path], *, stderr: Path | None = None) -> int:
    """Run a program on our own terminal and streams; return its exit status, 128 and more for a signal, as shells do.

    Signals that we get are passed on, and if we are killed, so is it. ``stderr``: a file for what it complains of.

    Raises:
        ProgramError: it cannot be run.
    """
    words = [str(word) for word in argv]
    _log.debug("run: %s", " ".join(words))
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)

    def end_with_us() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    with contextlib.ExitStack() as stack:
        errors = None if stderr is None else stack.enter_context(stderr.open("wb"))
        # The child may be at work before Popen returns: a signal that comes by then waits until it can be passed on.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, unblocked)
        try:
            child = subprocess.Popen(words, stderr=errors, preexec_fn=end_with_us)  # noqa: PLW1509 - no threads here
        except OSError as err:
            raise ProgramError(f"cannot run {words[0]}: {err.strerror}") from err
        with _passing_on(child):
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            status = child.wait()
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Send the signals that we get to a child (a terminal's Ctrl-C reaches both anyway)."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_detached(
    argv: Sequence[str | Path], *, log_path: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that it outlives this command; its output goes to ``log_path``."""
    words = [str(word) for word in argv]
    _log.debug("start: %s", " ".join(words))
    with log_path.open("ab") as log:
        try:
            return subprocess.Popen(
                words,
                executable=which(words[0]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=None if env is None else {**os.environ, **env},
            )
        except OSError as err:
            hint = None if (known := exhausted(err)) is None else known.hint
            raise ProgramError(f"cannot run {words[0]}: {err.strerror}", hint=hint) from err


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str, interval_s: float = 0.02) -> None:
    """Poll ``condition`` until it is true.

    Raises:
        DeadlineExceeded: it stayed false for ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(interval_s)


def last_words(log: Path, *, lines: int, offset: int = 0) -> str | None:
    """Return the last lines that a program logged, of those after ``offset`` bytes; None if there are none."""
    try:
        with log.open("rb") as stream:
            stream.seek(offset)
            text = stream.read().decode(errors="replace")
    except OSError:
        return None
    return "\n".join(text.strip().splitlines()[-lines:]) or None


def find(program: str, *words: str) -> list[int]:
    """Return the ids of processes that live and have these words on their command line, the first of them ``program``.

    ``program`` is the end of the first word, so that it may be given without its directory.
    """
    wanted = {word.encode() for word in words}
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            line = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if line[0].endswith(program.encode()) and wanted <= set(line) and pid_alive(int(entry.name)):
            found.append(int(entry.name))
    return found


def pid_alive(pid: int) -> bool:
    """Tell whether a process of that id exists and is not a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def is_unlocked(file: Path) -> bool:
    """Tell whether no process holds the lock of a file; a file that is not there is locked by nobody."""
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


def terminate(pid: int, *, timeout_s: float = 10.0) -> None:
    """End a process: SIGTERM, then SIGKILL after ``timeout_s``. A process that is gone is no error."""
    for sig, wait_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 5.0)):
        try:
            os.kill(pid, sig)
            wait_until(lambda: not pid_alive(pid), timeout_s=wait_s, what=f"end of process {pid}")
        except ProcessLookupError:
            return
        except DeadlineExceeded:
            continue
        else:
            return
    raise ProgramError(f"process {pid} does not end")


def control_request(socket_path: Path, cmd: str, *, timeout_s: float = 10.0, **args: Any) -> Any:
    """Send one command to the control socket of a C program and return its ``result``.

    Raises:
        ProgramError: nobody listens, no answer, or the program refused; ``code`` is its error code (or ``"gone"``).
    """
    line = json.dumps({"id": 1, "cmd": cmd, **args}) + "\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(str(socket_path))
            sock.sendall(line.encode())
            with sock.makefile("rb") as stream:
                answer = stream.readline()
        reply = json.loads(answer)
    except (OSError, ValueError) as err:
        raise ControlError(f"no answer from {socket_path}: {err}", code="gone") from err
    if not reply.get("ok"):
        error = reply.get("error", {})
        raise ControlError(error.get("message", "unknown error"), code=error.get("code", "unknown"))
    return reply["result"]


class ControlError(ProgramError):
    """A C program refused a command (``code`` is its word for why) or is not there (``code == "gone"``)."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code
