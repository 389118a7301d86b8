# SPDX-License-Identifier: MIT
"""Ask a memserver of this machine for its memory, and wait until all hosts have moved their pages away."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ghostbox.donors.client import DonorClient, DonorStatus, NoAnswer
from ghostbox.errors import DeadlineExceeded, GhostboxError, NotRunning
from ghostbox.memserver import lock, owner
from ghostbox.memserver.lock import Running
from ghostbox.memserver.owner import Owner
from ghostbox.paths import Paths
from ghostbox.system import processes
from ghostbox.units import format_bytes, format_duration

_POLL_S = 0.25


@dataclass(frozen=True)
class Found:
    """Is a memserver of this machine that runs; ``owner`` is the way to it, None for one of an earlier version."""

    running: Running
    owner: Owner | None


def find(name: str, paths: Paths) -> Found:
    """Return the memserver called ``name`` that runs on this machine.

    Raises:
        NotRunning: no such memserver runs; the hint names those that run.
    """
    found = lock.running(paths.memserver_state(name))
    if found is None:  # versions before 2026-11-29 had the lock in the runtime directory
        found = lock.running(paths.memserver_runtime(name))
    if found is not None:
        return Found(found, owner.of(found, name, paths))
    siblings = (*paths.memserver_state("*").parent.glob("*/lock"), *paths.memserver_runtime("*").parent.glob("*/lock"))
    others = sorted({each.parent.name for each in siblings if lock.running(each.parent) is not None})
    raise NotRunning(
        f"no memserver '{name}' runs on this machine",
        hint=f"--name {' or --name '.join(others)}" if others else "start one: ghostbox memserver",
    )


@contextlib.contextmanager
def _door(found: Found) -> Iterator[Owner | DonorClient]:
    """Yield what commands a memserver: its owner's socket, or the control API of one that has no such socket."""
    if found.owner is not None:
        yield found.owner
        return
    with DonorClient(found.running.control_address) as client:
        yield client


def start(found: Found) -> DonorStatus:
    """Tell a memserver to drain: it gives no new leases from now on, and hosts see that."""
    with _door(found) as door:
        return door.drain()


def undo(found: Found) -> DonorStatus:
    """Take back the drain that was asked for; the memserver may have another reason to drain."""
    with _door(found) as door:
        return door.keep()


def wait(found: Found, *, timeout_s: float | None, say: Callable[[str], None]) -> DonorStatus:
    """Wait until no lease is held any more, without limit or for ``timeout_s``; ``say`` receives what is still held.

    Raises:
        DeadlineExceeded: leases are held after ``timeout_s``; the memserver drains on.
        NotRunning: the memserver ended meanwhile.
        GhostboxError: the drain was taken back meanwhile.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        with _door(found) as door:
            status = _status(door, found.running)
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
                raise _too_late(door, timeout_s)
        time.sleep(_POLL_S if deadline is None else min(_POLL_S, max(0.0, deadline - time.monotonic())))


def _status(door: Owner | DonorClient, running: Running) -> DonorStatus | None:
    """Return the status, or None while the memserver runs but cannot answer (its data plane is started again)."""
    try:
        return door.status()
    except (NoAnswer, NotRunning) as err:
        if processes.pid_alive(running.pid):
            return None
        raise NotRunning(
            f"the memserver (pid {running.pid}) ended while it drained",
            hint="the memserver's log says how it ended; once it runs again, ghostbox donor leases shows the leases",
        ) from err


def _too_late(door: Owner | DonorClient, timeout_s: float) -> DeadlineExceeded:
    held = [
        f"{lease.name}: {format_bytes(lease.size_bytes)}, held by {lease.holder.host}/{lease.holder.vm}"
        for lease in door.leases()
    ]
    return DeadlineExceeded(
        f"{len(held)} leases are still held after {format_duration(timeout_s)}; the donor goes on draining",
        why="\n".join(held),
        hint="run it again to wait on; ghostbox status on the host says what keeps its memory here; --undo lends again",
    )
