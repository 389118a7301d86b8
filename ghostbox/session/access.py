# SPDX-License-Identifier: MIT
"""Give access to a VM: a login for people, its serial console, and waiting until the VM is ready or stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

from ghostbox.errors import DeadlineExceeded, NotRunning, ProgramError
from ghostbox.paths import Paths
from ghostbox.session import disk, liveness, login, observe, readiness, supervisor
from ghostbox.session.progress import Progress
from ghostbox.session.record import Book, Record, VmState
from ghostbox.system import processes
from ghostbox.units import format_duration


def need_running(name: str, paths: Paths, *, paused: bool = False) -> tuple[Book, Record]:
    """Return the record of a VM that runs, or that is paused if ``paused`` allows that.

    Raises:
        NotFound: no VM has this name.
        NotRunning: the VM does not run.
    """
    book = Book(paths.vm(name))
    book.need(name, paths)
    seen = observe.heal_if_idle(book)
    state = seen.state
    record = book.need(name, paths)
    supervisor.ensure(book, paths)
    if state in (VmState.RUNNING, VmState.STOPPING, VmState.UNMANAGED) or (paused and state is VmState.PAUSED):
        return book, record
    hint = f"ghostbox up {name}"
    why = None
    if state is VmState.PAUSED:
        hint = f"virsh -c {record.libvirt_uri} resume {record.domain}"
        if record.paused:
            hint = f"the supervisor resumes the VM when its donor is back: ghostbox status {name}"
        problem = disk.problem(record, book.files)
        if problem is not None:
            why, hint = problem.text, problem.advice or hint
    if state is VmState.BROKEN:
        hint = f"ghostbox recover {name}"
    raise NotRunning(f"VM '{name}' is {state}", why=why, hint=hint)


def shell(name: str, paths: Paths, command: Sequence[str]) -> int:
    """Log in with the system's ssh, or run one command; return the exit status of the command.

    Raises:
        NotRunning, NotFound: see `need_running`.
        GuestError, ProgramError: see `login.shell`.
    """
    book, _ = need_running(name, paths)
    return login.shell(book, command)


def console(name: str, paths: Paths) -> NoReturn:
    """Replace this process with ``virsh console``.

    Raises:
        NotRunning, NotFound: see `need_running`.
        ProgramError: virsh is not installed.
    """
    _, record = need_running(name, paths)
    _replace_process(
        ["virsh", "-c", record.libvirt_uri, "console", record.domain, "--force"], "libvirt-clients", record.environment
    )


def wait_ready(name: str, paths: Paths, progress: Progress, *, timeout_s: float) -> None:
    """Wait until the guest takes an SSH login and cloud-init is done.

    Raises:
        NotRunning, NotFound: see `need_running`.
        GuestError, DeadlineExceeded: see `readiness.wait_ready`.
    """
    book, _ = need_running(name, paths)
    readiness.wait_ready(book, progress, timeout_s=timeout_s)


def wait_stopped(name: str, paths: Paths, *, timeout_s: float) -> None:
    """Wait until the VM does not run any more, then clean up what its run left.

    Raises:
        NotFound: no VM has this name.
        DeadlineExceeded: the VM still runs after ``timeout_s``.
    """
    book = Book(paths.vm(name))
    record = book.need(name, paths)
    deadline = time.monotonic() + timeout_s
    while not liveness.is_over(record, book.files):
        if time.monotonic() > deadline:
            why = liveness.look(record, book.files).text
            raise DeadlineExceeded(f"VM '{name}' still runs after {format_duration(timeout_s)}", why=why)
        time.sleep(0.2)
    observe.heal_if_idle(book)


def _replace_process(argv: Sequence[str], package: str, environment: Mapping[str, str] | None = None) -> NoReturn:
    """Replace this process with a program.

    ``environment`` are variables of the login that started the VM; they replace those of this process.
    """
    program = processes.which(argv[0])
    if program is None:
        raise ProgramError(f"{argv[0]} is not installed", hint=f"install {package}")
    # The program's path is whole, and no shell reads its words.
    os.execve(program, list(argv), {**os.environ, **(environment or {})})  # noqa: S606 - as said above
