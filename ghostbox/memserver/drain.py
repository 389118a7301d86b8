# SPDX-License-Identifier: MIT
"""Asking a memserver of this machine for its memory back, and waiting until all hosts have moved away."""

from __future__ import annotations

import time
from collections.abc import Callable

from ghostbox import processes
from ghostbox.donor_client import DonorClient, DonorStatus, NoAnswer
from ghostbox.errors import DeadlineExceeded, GhostboxError, NotRunning
from ghostbox.memserver import lock
from ghostbox.memserver.lock import Running
from ghostbox.paths import Paths
from ghostbox.units import format_bytes, format_duration

_POLL_S = 0.25


def find(name: str, paths: Paths) -> Running:
    """Return the memserver called ``name`` that runs on this machine.

    Raises:
        NotRunning: there is none; the hint names those that run.
    """
    found = _running(name, paths)
    if found is not None:
        return found
    siblings = (*paths.memserver_state("*").parent.glob("*/lock"), *paths.memserver_runtime("*").parent.glob("*/lock"))
    others = sorted({each.parent.name for each in siblings if lock.running(each.parent) is not None})
    raise NotRunning(
        f"no memserver '{name}' runs on this machine",
        hint=f"--name {' or --name '.join(others)}" if others else "start one: ghostbox memserver",
    )


def _running(name: str, paths: Paths) -> Running | None:
    """Look where the lock is, and where versions before 2026-11-29 had it."""
    return lock.running(paths.memserver_state(name)) or lock.running(paths.memserver_runtime(name))


def start(running: Running) -> DonorStatus:
    """Tell a memserver to drain; it gives no new leases from now on, and hosts see it."""
    with DonorClient(running.control_address) as client:
        return client.drain()


def undo(running: Running) -> DonorStatus:
    """Take that back; it may go on draining for another reason."""
    with DonorClient(running.control_address) as client:
        return client.keep()


def wait(running: Running, *, timeout_s: float | None, say: Callable[[str], None]) -> DonorStatus:
    """Wait until no lease is held any more, without limit or for ``timeout_s``; ``say`` is told what still is.

    Raises:
        DeadlineExceeded: leases are held after ``timeout_s``; it goes on draining.
        NotRunning: the memserver ended meanwhile.
        GhostboxError: somebody took the drain back.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        with DonorClient(running.control_address) as client:
            status = _status(client, running)
            if status is not None:
                if not status.draining:
                    raise GhostboxError(
                        f"memserver '{status.name}' lends again: the drain was taken back",
                        hint="ghostbox memserver drain asks once more",
                    )
                if not status.leases:
                    return status
                say(f"{status.leases} leases held, {format_bytes(status.resident_bytes)} still here")
            if timeout_s is not None and deadline is not None and time.monotonic() >= deadline:
                raise _too_late(client, timeout_s)
        time.sleep(_POLL_S if deadline is None else min(_POLL_S, max(0.0, deadline - time.monotonic())))


def _status(client: DonorClient, running: Running) -> DonorStatus | None:
    """Return the state, or None while the memserver lives but cannot answer (its data plane is started again)."""
    try:
        return client.status()
    except NoAnswer as err:
        if processes.pid_alive(running.pid):
            return None
        raise NotRunning(
            f"the memserver (pid {running.pid}) ended while it drained",
            hint="ghostbox donor leases shows what is held once it runs again; its log says how it ended",
        ) from err


def _too_late(client: DonorClient, timeout_s: float) -> DeadlineExceeded:
    held = [f"{lease.name}: {format_bytes(lease.size_bytes)}, held by {lease.holder}" for lease in client.leases()]
    return DeadlineExceeded(
        f"{len(held)} leases are still held after {format_duration(timeout_s)}; the donor goes on draining",
        why="\n".join(held),
        hint="run it again to wait on; ghostbox status on the host says what keeps its memory here; --undo lends again",
    )
