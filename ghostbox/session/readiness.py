# SPDX-License-Identifier: MIT
"""Wait for a running guest: for its SSH server, a login, the end of cloud-init. Nothing here ends the VM."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ghostbox.errors import DeadlineExceeded, GhostboxError, GuestError, Interrupted, QemuCrashed
from ghostbox.paths import VmPaths
from ghostbox.plan.plan import Virt
from ghostbox.session import cleanup, events, first_boot, guest_files, liveness, logs, network
from ghostbox.session.boot_watchdog import hangs
from ghostbox.session.progress import Progress
from ghostbox.session.record import Book, Record
from ghostbox.system import processes

if TYPE_CHECKING:
    from ghostbox.system.ssh import GuestSsh

_CONSOLE_LINES = 12
_STATE_INTERVAL_S = 1.0
_REASON_S = 3.0


def wait_ready(book: Book, progress: Progress, *, timeout_s: float) -> None:
    """Wait for boot, ssh and cloud-init; boot and ssh share ``timeout_s``, cloud-init has ``timeout_s`` again.

    An emulated guest whose kernel hangs while it boots is reset, once, and has the whole time again.

    Raises:
        QemuCrashed: QEMU crashed while the guest booted, so that the VM has ended.
        GuestError: the guest ended, refused the login, or cloud-init failed.
        DeadlineExceeded: the time is over, and the VM runs on.
        Interrupted: Ctrl-C, and the VM runs on.
    """
    record = book.record
    alive = _Alive(record, book.files)
    with _explained(record, "boot"), progress.stage("boot") as stage:
        deadline = _wait_banner(book, stage.say, progress.note, alive, timeout_s=timeout_s)
    record = book.record  # `_wait_banner` has recorded the guest's address
    with guest(record, book.files) as ssh:
        with _explained(record, "ssh"), progress.stage("ssh") as stage:
            ssh.wait_ready(max(5.0, deadline - time.monotonic()), stage.say, alive=alive)
            stage.say("{}@{}:{}".format(record.user, *_endpoint(record)))
        with _explained(record, "cloud-init"), progress.stage("cloud-init") as stage:
            first_boot.wait_cloud_init(ssh, timeout_s, stage.say, alive=alive)
            stage.say("done")
    note_answer(book)


def note_answer(book: Book) -> None:
    """Record that the guest has taken a login, so that it is not asked again while the VM runs."""
    with suppress(OSError):  # without this file the guest is only asked again
        book.files.answered.write_text(book.record.started_at or "")


@contextmanager
def guest(record: Record, files: VmPaths) -> Iterator[GuestSsh]:
    """Connect to the guest with GhostBox's own key; the connection ends with the block."""
    from ghostbox.system.ssh import GuestSsh  # noqa: PLC0415 - slow to load

    connection = GuestSsh(
        *_endpoint(record),
        record.user,
        files.client_key,
        files.known_hosts,
        console=lambda: "\n".join(logs.tail(files.console_log, _CONSOLE_LINES)),
    )
    with connection:
        yield connection


def _endpoint(record: Record) -> tuple[str, int]:
    found = network.endpoint(record)
    if found is None:
        raise GuestError(
            f"the address of VM '{record.name}' on the network {record.network} is not known",
            why="neither libvirt nor the guest's console nor this host's ARP table has it",
            hint=f"ghostbox wait {record.name}, or look for it inside: ghostbox console {record.name}",
        )
    return found


def locate(book: Book) -> tuple[str, int] | None:
    """Return host and port of the guest's SSH server, or None; if they have changed, write ssh's files anew."""
    record = book.record
    before = network.endpoint(record)
    found = network.refresh(book)
    if found is not None and (found != before or not book.files.ssh_config.exists()):
        key = None if record.ssh_key is None else Path(record.ssh_key)
        guest_files.write_ssh_files(record.name, record.user, found, book.files, ssh_key=key)
    return found


class _Alive:
    """Tells whether the VM's QEMU runs; it looks at most once a second."""

    def __init__(self, record: Record, files: VmPaths) -> None:
        self._record = record
        self._files = files
        self._asked_at = 0.0
        self._alive = True

    def __call__(self) -> bool:
        if time.monotonic() - self._asked_at > _STATE_INTERVAL_S:
            self._alive = not liveness.is_over(self._record, self._files)
            self._asked_at = time.monotonic()
        return self._alive


def _wait_banner(
    book: Book,
    say: Callable[[str], None],
    note: Callable[[str], None],
    alive: _Alive,
    *,
    timeout_s: float,
) -> float:
    """Wait until the guest's SSH server sends its greeting: QEMU accepts connections long before the guest does.

    Returns:
        The end of the time for a login, in seconds of the monotonic clock.
    """
    record, files = book.record, book.files
    deadline = time.monotonic() + timeout_s
    may_reset = record.virt == Virt.TCG
    while not has_banner(locate(book)):
        last = logs.tail(files.console_log, 1)
        if last:
            say(last[0][:100])
        if not alive():
            raise _ended(record, files)
        if may_reset and hangs(files.console_log):
            may_reset = False
            _reset(record, files, note)
            deadline = time.monotonic() + timeout_s
        if time.monotonic() > deadline:
            raise _no_answer(book)
        time.sleep(0.2)
    say("the guest's SSH server answers")
    return deadline


def _reset(record: Record, files: VmPaths, note: Callable[[str], None]) -> None:
    text = "the guest's kernel hangs, as happens now and then without KVM: the VM is reset"
    note(text)
    events.append(files, "guest-reset", text)
    with liveness.connect(record) as connection:
        connection.reset(record.domain, uuid=record.uuid)


def _ended(record: Record, files: VmPaths) -> GuestError:
    """Return the error for a VM that is gone. QEMU's emulation crashes now and then, which libvirt notes in its log."""
    log = cleanup.qemu_log(record, files)
    with suppress(DeadlineExceeded):  # libvirt writes the line a moment after the end
        processes.wait_until(lambda: "reason=" in _last(log), timeout_s=_REASON_S, what="the reason of its end")
    why = _console(files)
    hint = f"start it again: ghostbox up {record.name}; what QEMU said: ghostbox logs {record.name} --source qemu"
    if "reason=crashed" in _last(log):
        return QemuCrashed("QEMU crashed while the guest booted", why=why, hint=hint)
    return GuestError("the VM ended while it booted", why=why, hint=hint)


def _last(log: Path) -> str:
    return next(iter(logs.tail(log, 1)), "")


def _no_answer(book: Book) -> GhostboxError:
    if network.endpoint(book.record) is None:
        return DeadlineExceeded(
            f"the guest has got no address on the network {book.record.network}",
            why=_console(book.files),
            hint="see that the network has a DHCP server",
        )
    return DeadlineExceeded("the guest's SSH server does not answer", why=_console(book.files))


def has_banner(endpoint: tuple[str, int] | None) -> bool:
    """Tell whether an SSH server at an address sends its greeting."""
    if endpoint is None:
        return False
    try:
        with socket.create_connection(endpoint, timeout=2.0) as sock:
            sock.settimeout(3.0)
            return sock.recv(4) == b"SSH-"
    except OSError:
        return False


def last_console_line(files: VmPaths) -> str:
    """Return a sentence with the last line of the guest's console."""
    last = logs.tail(files.console_log, 1)
    return f"the guest's console ends with: {last[0]}" if last else "the guest's console is empty"


def _console(files: VmPaths) -> str:
    lines = logs.tail(files.console_log, _CONSOLE_LINES)
    return "the guest's console ends with:\n" + "\n".join(lines) if lines else "the guest's console is empty"


@contextmanager
def _explained(record: Record, stage: str) -> Iterator[None]:
    """Add to any failure that the VM runs on, and advice."""
    try:
        yield
    except (KeyboardInterrupt, GhostboxError) as err:
        raise kept(record, stage, err) from err


def kept(record: Record, stage: str, err: BaseException) -> BaseException:
    """Return the error for a failure or an interrupt after which the VM runs on."""
    name = record.name
    advice = f"ghostbox logs {name}, ghostbox console {name}; then ghostbox wait {name} or ghostbox down {name}"
    if isinstance(err, KeyboardInterrupt):
        return Interrupted(f"interrupted while waiting for {stage}: VM '{name}' keeps running", hint=advice)
    if not isinstance(err, GhostboxError):
        return err
    late = isinstance(err, DeadlineExceeded) or " within " in err.message
    kind: type[GhostboxError] = DeadlineExceeded if late else GuestError
    if isinstance(err, QemuCrashed):
        kind = QemuCrashed
    return kind(f"VM '{name}', stage {stage}: {err.message}", why=err.why, hint=err.hint or advice)
