# SPDX-License-Identifier: MIT
"""Tell whether a VM's QEMU runs: this is asked before anything that QEMU uses is removed.

libvirt's word is not enough. In another login environment another libvirt daemon answers, and a daemon that lost its
runtime directory knows nothing of what it started; both say that there is no such domain while QEMU runs. So the
process table and the lock on the VM's disk are examined. Where neither can be seen, nothing is released.
"""

from __future__ import annotations

import contextlib
import enum
from dataclasses import dataclass

from ghostbox.errors import DeadlineExceeded, GhostboxError, HypervisorError, ProgramError
from ghostbox.paths import VmPaths
from ghostbox.session.record import Made, Record
from ghostbox.system import hypervisor, process_table, processes
from ghostbox.system.hypervisor import DomainState, Hypervisor

_END_TIMEOUT_S = 15.0


class Life(enum.StrEnum):
    """Says what is known of a VM's QEMU: it runs, it is gone, or it cannot be seen from here."""

    ALIVE = "alive"
    GONE = "gone"
    UNSEEN = "unseen"


@dataclass(frozen=True)
class Sight:
    """Holds what was found out about a VM's QEMU: its process id where that was found, and a sentence."""

    life: Life
    text: str
    pid: int | None = None


@dataclass(frozen=True)
class Known:
    """Holds libvirt's answer about a VM; ``problem`` is set if there is no reliable answer."""

    state: DomainState
    problem: str | None = None


def connect(record: Record, *, start_daemon: bool = True) -> Hypervisor:
    """Connect to the libvirt daemon that started the VM, in whatever login environment this process runs."""
    return hypervisor.connect(record.libvirt_uri, start_daemon=start_daemon, environment=record.environment)


def ask(record: Record) -> Known:
    """Ask libvirt for the state of the VM's domain."""
    try:
        with connect(record) as connection:
            return Known(connection.state(record.domain, uuid=record.uuid))
    except GhostboxError as err:
        return Known(DomainState.ABSENT, f"{err.message}: {err.why}" if err.why else err.message)


def look(record: Record, files: VmPaths) -> Sight:
    """Look for the VM's QEMU among the processes, then for a lock on its disk."""
    qemu = hypervisor.find_qemu(record.uuid)
    if qemu is not None and processes.pid_alive(qemu.pid):
        return Sight(Life.ALIVE, f"its QEMU (pid {qemu.pid}) runs", qemu.pid)
    known = record.qemu
    if known is not None and process_table.is_alive(known):
        return Sight(Life.ALIVE, f"its QEMU (pid {known.pid}) runs", known.pid)
    written = hypervisor.disk_is_written(files.disk)
    if written:
        return Sight(Life.ALIVE, f"a process that cannot be seen from here has its disk {files.disk} open")
    return _not_found(record, written=written)


def _not_found(record: Record, *, written: bool | None) -> Sight:
    """Decide, when no QEMU was found, whether a running QEMU would have been seen."""
    known = record.qemu
    gone = Sight(Life.GONE, "its QEMU is gone")
    if _is_of_another_machine(record) and (known is None or known.boot_id != process_table.boot_id()):
        # The record may be a copy, and older than the VM that runs on the other machine.
        return Sight(Life.UNSEEN, "it was started on another machine, where it may run")
    if known is None and Made.DOMAIN not in record.made:
        return gone  # no QEMU was started: the domain is recorded before it is started
    if known is not None and known.boot_id != process_table.boot_id():
        return gone
    hidden = process_table.blind_spot(None if known is None else known.namespace)
    if hidden is None or written is False:
        return gone
    return Sight(Life.UNSEEN, f"whether its QEMU runs cannot be seen from here: {hidden}")


def _is_of_another_machine(record: Record) -> bool:
    return record.machine not in (None, process_table.machine_id())


def is_elsewhere(record: Record, files: VmPaths) -> bool:
    """Tell whether the VM may run on another machine, so that here are only a record and files of it."""
    return _is_of_another_machine(record) and look(record, files).life is Life.UNSEEN


def how_to_forget(record: Record) -> str:
    """Return advice for a VM that another machine started."""
    return (
        "end it there, if that machine still exists; where this directory is a copy,"
        f" ghostbox delete --forget {record.name} removes it alone: nothing is ended, no memory is released"
    )


def is_over(record: Record, files: VmPaths) -> bool:
    """Tell whether the VM's QEMU is certainly gone."""
    return look(record, files).life is Life.GONE


def end(record: Record, files: VmPaths) -> None:
    """End the VM's QEMU: through libvirt if libvirt knows the domain, otherwise by its process.

    Raises:
        HypervisorError: QEMU runs, or may run; nothing that it uses may be released.
    """
    refusal = _end_domain(record, files)
    if is_over(record, files) or (refusal is None and _wait_until_over(record, files)):
        return
    sight = look(record, files)
    why = refusal
    if sight.pid is not None:
        try:
            if hypervisor.end_qemu(sight.pid, record.uuid) and _wait_until_over(record, files):
                return
        except ProgramError as err:
            why = err.message
    raise still_lives(record, look(record, files), why)


def _end_domain(record: Record, files: VmPaths) -> str | None:
    """Destroy the domain through libvirt; return why that failed, or None."""
    try:
        with connect(record) as connection:
            info = connection.info(record.domain, uuid=record.uuid)
            if info is None or info.state_dir != str(files.state):
                return f"libvirt at {record.libvirt_uri} does not know it"
            connection.destroy(record.domain, uuid=record.uuid)
    except GhostboxError as err:
        return f"{err.message}: {err.why}" if err.why else err.message
    return None


def _wait_until_over(record: Record, files: VmPaths) -> bool:
    """Wait until a QEMU that was told to end is gone; return whether it is."""
    with contextlib.suppress(DeadlineExceeded):
        processes.wait_until(
            lambda: is_over(record, files), timeout_s=_END_TIMEOUT_S, what="the end of QEMU", interval_s=0.1
        )
        return True
    return False


def still_lives(record: Record, sight: Sight, why: str | None) -> HypervisorError:
    """Return the error for a VM whose QEMU may run, so that nothing of it may be removed."""
    hint = f"sudo kill {sight.pid} ends it; then run this again" if sight.pid is not None else None
    if sight.life is Life.UNSEEN:
        elsewhere = _is_of_another_machine(record)
        there = "run this as root, on the machine and in the container where the VM was started"
        hint = how_to_forget(record) if elsewhere else there
    return HypervisorError(
        f"VM '{record.name}' could not be ended: {sight.text}; its memory stays where it is", why=why, hint=hint
    )
