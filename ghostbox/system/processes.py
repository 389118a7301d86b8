# SPDX-License-Identifier: MIT
"""Start programs and talk to control sockets. This is the only module that imports ``subprocess``."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ghostbox.errors import DeadlineExceeded, ProgramError, hint_for
from ghostbox.paths import Paths, open_private
from ghostbox.system import pidfd

_log = logging.getLogger(__name__)


# Daemons and mke2fs are in these directories, which the PATH of a user who is not root may lack.
_SYSTEM_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def search_path() -> str:
    """Return where programs are looked for: PATH, then the system's own directories."""
    return os.pathsep.join([os.environ.get("PATH") or os.defpath, *_SYSTEM_DIRECTORIES])


def which(program: str) -> str | None:
    """Return the path of a program; None if it is not installed. A path with a directory is not searched for."""
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

    ``env`` is added to this process's environment; if not ``inherit_env``, it is the program's whole environment.

    Raises:
        ProgramError: the program is not found, or its exit status is not zero; ``why`` has the last lines of its
            stderr.
        DeadlineExceeded: the program ran longer than ``timeout_s`` and was killed.
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


@dataclass(frozen=True)
class Ended:
    """Holds how a program has ended: its exit status (for a signal its negative number) and what it has written."""

    status: int
    stdout: str
    stderr: str


def feed(argv: Sequence[str | Path], parts: Iterable[bytes] = (), *, timeout_s: float | None = None) -> Ended:
    """Run a program to its end, with ``parts`` on its stdin one after the other; no exit status is an error.

    A program that stops reading gets no more parts. Its output goes through files: a process that it leaves in the
    background may keep them open. If this process is interrupted, the program is ended.

    Raises:
        ProgramError: the program is not found.
        DeadlineExceeded: the program ran longer than ``timeout_s`` after the last part, and was killed.
    """
    words = [str(word) for word in argv]
    _log.debug("run: %s", " ".join(words))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        try:
            child = subprocess.Popen(
                words, executable=which(words[0]), stdin=subprocess.PIPE, stdout=out, stderr=errors
            )
        except FileNotFoundError as err:
            raise ProgramError(f"cannot run {words[0]}: not found", hint=f"install {Path(words[0]).name}") from err
        assert child.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                for part in parts:
                    child.stdin.write(part)
                child.stdin.flush()
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
            status = child.wait(timeout_s)
        except subprocess.TimeoutExpired as err:
            raise DeadlineExceeded(f"{words[0]} did not finish within {timeout_s:.0f} s") from err
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()  # what it has not read
        texts = []
        for stream in (out, errors):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    return Ended(status, *texts)


_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_PR_SET_PDEATHSIG = 1  # prctl(2)


def attach(argv: Sequence[str | Path], *, stderr: Path | None = None) -> int:
    """Run a program on this terminal and its streams; return its exit status (for a signal 128 and more, as in shells).

    Signals are passed on to the program, and if this process is killed, so is the program. ``stderr`` is a file for the
    program's error output.

    Raises:
        ProgramError: the program cannot be run.
    """
    words = [str(word) for word in argv]
    _log.debug("run: %s", " ".join(words))
    parent = os.getpid()
    libc = ctypes.CDLL(None, use_errno=True)

    def end_too() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    with contextlib.ExitStack() as stack:
        errors = None if stderr is None else stack.enter_context(stderr.open("wb"))
        # The child may run before Popen returns: a signal that comes before is blocked until it can be passed on.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
        stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, unblocked)
        try:
            child = subprocess.Popen(words, stderr=errors, preexec_fn=end_too)  # noqa: PLW1509 - no threads here
        except OSError as err:
            raise ProgramError(f"cannot run {words[0]}: {err.strerror}") from err
        with _passing_on(child):
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
            status = child.wait()
    return status if status >= 0 else 128 - status


@contextlib.contextmanager
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Send the signals of this process to a child (a terminal's Ctrl-C reaches both anyway)."""

    def pass_on(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def start_detached(
    argv: Sequence[str | Path], *, log_path: Path, env: Mapping[str, str] | None = None, inherit_env: bool = True
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, so that it outlives this command; its output goes to ``log_path``.

    Args:
        argv: the program and its arguments.
        log_path: receives the program's output and errors.
        env: further environment variables of the program; without ``inherit_env``, the only ones.
        inherit_env: whether the program has this process's environment, too.

    Raises:
        ProgramError: the program cannot be run.
    """
    words = [str(word) for word in argv]
    _log.debug("start: %s", " ".join(words))
    with open_private(log_path, append=True) as log:
        try:
            return subprocess.Popen(
                words,
                executable=which(words[0]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**(os.environ if inherit_env else {}), **(env or {})},
            )
        except OSError as err:
            raise ProgramError(f"cannot run {words[0]}: {err.strerror}", hint=hint_for(err)) from err


def own(*words: str | Path) -> list[str | Path]:
    """Return the argv that runs a command of this installation, whatever the current directory holds."""
    return [sys.executable, "-P", "-m", "ghostbox", *words]


def start_own(
    *words: str | Path, paths: Paths, log_path: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a GhostBox command that uses the same directories as this process; see `start_detached`."""
    return start_detached(own(*words), log_path=log_path, env={**(env or {}), **paths.environment})


def wait_until(condition: Callable[[], bool], *, timeout_s: float, what: str, interval_s: float = 0.02) -> None:
    """Poll ``condition`` until it is true.

    Raises:
        DeadlineExceeded: the condition was still false after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(interval_s)


def last_words(log: Path, *, lines: int, offset: int = 0) -> str | None:
    """Return the last lines of a program's log, of those after ``offset`` bytes; None if there are none."""
    try:
        with log.open("rb") as stream:
            stream.seek(offset)
            text = stream.read().decode(errors="replace")
    except OSError:
        return None
    return "\n".join(text.strip().splitlines()[-lines:]) or None


def find(program: str, *words: str) -> list[int]:
    """Return the ids of running processes whose command line has these words, and begins with ``program``.

    ``program`` may be the end of the first word, e.g. without its directory.
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


def terminate(pid: int, *, check: Callable[[], bool] | None = None, timeout_s: float = 10.0) -> None:
    """End a process: SIGTERM, then SIGKILL after ``timeout_s``. A process that is gone is no error.

    The process is held meanwhile (`pidfd`). ``check`` tells, once it is held, whether it is the intended process; a
    child of this process that was not waited for needs no check.

    Raises:
        ProgramError: the process does not end.
    """
    try:
        with pidfd.Process(pid) as process:
            if check is None or check():
                process.end(timeout_s=timeout_s)
    except ProcessLookupError:
        return


def control_request(socket_path: Path, cmd: str, *, timeout_s: float = 10.0, **args: Any) -> Any:
    """Send one command to the control socket of a C program and return its ``result``.

    Raises:
        ControlError: no program listens or answers (``code`` is ``"gone"``), or the program refuses (``code`` is its
            own).
    """
    line = json.dumps({"id": 1, "cmd": cmd, **args}) + "\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(str(socket_path))
            with contextlib.suppress(ConnectionError):  # a program that refuses the command says why, then closes
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
    """Is raised if a C program refuses a command (``code`` is its reason) or does not answer (``"gone"``)."""

    def __init__(self, message: str, *, code: str, why: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, why=why, hint=hint)
        self.code = code
