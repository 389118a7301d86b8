# SPDX-License-Identifier: MIT
"""Run the system's ssh and scp for people, and tell failures of ssh itself from failures of the guest's command.

ssh ends with status 255 when it fails itself, and so may a command in the guest. So ssh writes a debug log to a file;
if the log has the guest's answer ("Exit status 255"), the command ended with 255. Before ssh is started, the guest's
SSH server must have sent its greeting once: QEMU accepts connections long before the guest does, and ssh would report a
reset.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ghostbox.errors import GhostboxError, GuestError, ProgramError
from ghostbox.paths import VmPaths
from ghostbox.session import readiness
from ghostbox.session.record import Book, Record
from ghostbox.system import processes

_SSH_FAILED = 255
# How long ssh waits for the guest's part of the handshake; a busy emulated guest needs many seconds.
_PATIENCE = ("-o", "ConnectTimeout=60")
_LOG_LINES = 3
_CHATTER = ("debug", "OpenSSH_", "Authenticated to ", "Transferred: ", "Bytes per second: ", "Pseudo-terminal will not")


def command(book: Book) -> str:
    """Return the ssh command that logs in to the VM without GhostBox."""
    return shlex.join(["ssh", "-F", str(book.files.ssh_config), _needed(book).name])


def shell(book: Book, words: Sequence[str]) -> int:
    """Log in, or run one command; return its exit status.

    A command of one word is a line for the guest's shell; of several words, each is passed as one argument.

    Raises:
        GuestError: the guest still boots, or ssh itself failed.
        ProgramError: ssh is not installed.
    """
    record = _needed(book)
    need_answer(book)
    argv = [_program("ssh", "openssh-client"), "-F", str(book.files.ssh_config), *_PATIENCE]
    if words:
        argv += ["-t"] if all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)) else []
    remote = list(words) if len(words) < 2 else [shlex.join(words)]
    with tempfile.NamedTemporaryFile(prefix="ghostbox-ssh-") as log:
        status = processes.attach([*argv, "-v", "-E", log.name, record.name, *(["--", *remote] if remote else [])])
        said = Path(log.name).read_text(errors="replace")
    if status == _SSH_FAILED and not _guest_answered(said):
        raise failed(record, said)
    readiness.note_answer(book)
    return status


def need_answer(book: Book) -> None:
    """Check that the guest's SSH server answers; once it has answered, it is not asked again while the VM runs.

    Raises:
        GuestError: the SSH server does not answer, since the guest still boots.
    """
    record = _needed(book)
    endpoint = readiness.locate(book)
    if _has_answered(record, book.files) or readiness.has_banner(endpoint):
        return
    raise GuestError(
        f"VM '{record.name}' still boots: its SSH server does not answer yet",
        why=readiness.last_console_line(book.files),
        hint=f"ghostbox wait {record.name}, or: ghostbox shell --wait {record.name}",
    )


def failed(record: Record, said: str) -> GhostboxError:
    """Return the error for a failure of ssh itself, from what ssh wrote."""
    name = record.name
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith(_CHATTER)]
    why = "\n".join(lines[-_LOG_LINES:]) or None
    advice = f"ghostbox status {name} shows its state, ghostbox logs {name} its console"
    if any("ermission denied" in line for line in lines):
        hint = f"cloud-init in the guest may not be done: ghostbox wait {name}; {advice}"
        return GuestError(f"VM '{name}' does not accept the login by SSH", why=why, hint=hint)
    if any("host key" in line.lower() for line in lines):
        return GuestError(f"VM '{name}' shows another SSH host key than GhostBox gave to it", why=why, hint=advice)
    if "Authenticated to " in said or "Authentication succeeded" in said:
        return GuestError(f"the SSH connection to VM '{name}' broke", why=why, hint=advice)
    hint = f"if it boots: ghostbox wait {name}; {advice}"
    return GuestError(f"VM '{name}' does not answer by SSH", why=why, hint=hint)


def scp(book: Book, words: Sequence[str], operands: Sequence[str]) -> tuple[int, str]:
    """Run scp with the VM's configuration on this terminal; return its exit status and its error output.

    Args:
        book: the VM's record.
        words: options of scp.
        operands: sources and target, in scp's syntax.

    Raises:
        GuestError: the guest still boots.
        ProgramError: scp is not installed.
    """
    need_answer(book)
    # -s: the SFTP protocol, in which names need no quotes; it is the default since OpenSSH 9.0.
    argv = [_program("scp", "openssh-client"), "-s", "-F", str(book.files.ssh_config), *_PATIENCE, *words, "--"]
    with tempfile.NamedTemporaryFile(prefix="ghostbox-scp-") as log:
        status = processes.attach([*argv, *operands], stderr=Path(log.name))
        said = Path(log.name).read_text(errors="replace")
    if status == 0:
        readiness.note_answer(book)
    return status, said


def _guest_answered(said: str) -> bool:
    """Tell whether ssh's debug log has the end of the guest's command: its status, or the signal that ended it."""
    return "debug1: Exit status 255" in said or "rtype exit-signal" in said


def _has_answered(record: Record, files: VmPaths) -> bool:
    try:
        return files.answered.read_text() == (record.started_at or "")
    except OSError:
        return False


def _needed(book: Book) -> Record:
    return book.record


def _program(name: str, package: str) -> str:
    found = processes.which(name)
    if found is None:
        raise ProgramError(f"{name} is not installed", hint=f"install {package}")
    return os.fspath(found)
