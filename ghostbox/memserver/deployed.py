# SPDX-License-Identifier: MIT
"""Start, show and stop the memserver of a deployed donor, on the donor itself (`ghostbox.deploy` is the host's part).

Starting it again replaces the control plane alone: the data plane holds the leases and goes on, and the new control
plane adopts it.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from ghostbox import __version__
from ghostbox.donors.client import DonorStatus
from ghostbox.errors import DeadlineExceeded, GhostboxError, NotRunning, ProgramError, Refused
from ghostbox.memserver import drain, lock
from ghostbox.memserver.identity import donor_id
from ghostbox.memserver.owner import Owner
from ghostbox.paths import Paths, make_directory
from ghostbox.system import pidfd, processes, services
from ghostbox.system.services import Kind, Scope, Service
from ghostbox.units import format_bytes

_START_S = 300.0  # an emulated machine, or one that swaps, takes minutes to import what it needs
_STOP_S = 60.0
_RESTARTS = 3
_LOG_LINES = 4


@dataclass(frozen=True)
class Shown:
    """Describes a deployed memserver. ``holders`` are the hosts and VMs that hold leases, each with its size."""

    name: str
    running: bool
    version: str = __version__
    id: str = ""
    address: str = ""
    leases: int = 0
    holders: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def start(name: str, options: Sequence[str], paths: Paths, *, scope: Scope | None) -> Shown:
    """Start the memserver by systemd, or without ``scope`` in the background; one that runs hands its leases over.

    Raises:
        ProgramError: it does not start; ``why`` has the end of its log.
        GhostboxError: its service or its directory cannot be written.
    """
    before = lock.running(paths.memserver_state(name))
    words = ["--name", name, *options]
    if scope is None:
        notes: tuple[str, ...] = (
            "it runs in the background, and does not start with the machine: there is no systemd there",
        )
        _start_in_background(name, words, paths)
    else:
        service = Service(Kind.DONOR, scope)
        notes = services.install(service, words, paths, keep_leases=True).notes
        _wait_for_service(service, name, paths, before.pid if before else 0)
    return _shown(name, paths, notes)


def _start_in_background(name: str, words: Sequence[str], paths: Paths) -> None:
    state = paths.memserver_state(name)
    make_directory(state, 0o700)
    log = state / "control-plane.log"
    _end(name, paths, signal.SIGKILL)
    offset = log.stat().st_size if log.exists() else 0
    child = processes.start_own("memserver", *words, paths=paths, log_path=log)
    try:
        processes.wait_until(
            lambda: child.poll() is not None or _serves(name, paths, child.pid), timeout_s=_START_S, what="its start"
        )
    except DeadlineExceeded as err:
        raise _not_started(name, processes.last_words(log, lines=_LOG_LINES, offset=offset), str(log)) from err
    if child.returncode is not None:
        raise _not_started(name, processes.last_words(log, lines=_LOG_LINES, offset=offset), str(log))


def _wait_for_service(service: Service, name: str, paths: Paths, before: int) -> None:
    most = services.restarts(service) + _RESTARTS

    def fails() -> bool:
        return services.has_failed(service) or services.restarts(service) >= most

    def settled() -> bool:
        running = lock.running(paths.memserver_state(name))
        is_new = running is not None and running.pid != before and _serves(name, paths, running.pid)
        return is_new or fails()

    try:
        processes.wait_until(settled, timeout_s=_START_S, what="its start", interval_s=0.2)
    except DeadlineExceeded as err:
        raise _not_started(name, services.last_words(service, _LOG_LINES), service.journal) from err
    if fails():
        raise _not_started(name, services.last_words(service, _LOG_LINES), service.journal)


def _not_started(name: str, why: str | None, log: str) -> ProgramError:
    return ProgramError(f"memserver '{name}' does not start", why=why, hint=f"its log there: {log}")


def _serves(name: str, paths: Paths, pid: int) -> bool:
    found = lock.running(paths.memserver_state(name))
    if found is None or found.pid != pid:
        return False
    try:
        return _owner(name, paths).status().name == name
    except GhostboxError:
        return False


def _owner(name: str, paths: Paths) -> Owner:
    found = drain.find(name, paths).owner
    if found is None:
        raise NotRunning(f"memserver '{name}' has no socket for its owner")
    return found


def show(name: str, paths: Paths) -> Shown:
    """Return how the memserver does; one that does not run is no error."""
    try:
        return _shown(name, paths, ())
    except NotRunning:
        state = paths.memserver_state(name)
        return Shown(name, running=False, id=donor_id(state) if (state / "identity.json").exists() else "")


def _shown(name: str, paths: Paths, notes: tuple[str, ...]) -> Shown:
    owner = _owner(name, paths)
    status: DonorStatus = owner.status()
    held = [f"{each.holder.host}/{each.holder.vm}: {format_bytes(each.size_bytes)}" for each in owner.leases()]
    return Shown(name, True, status.version, status.id, owner.address, len(held), tuple(held), notes)


def stop(name: str, paths: Paths, *, scope: Scope | None) -> Shown:
    """Stop the memserver and remove its service; one that does not run is no error.

    Raises:
        Refused: hosts hold leases; nothing was changed.
        DeadlineExceeded: it does not end.
    """
    found = show(name, paths)
    if found.running:
        owner = _owner(name, paths)
        owner.drain()  # so that no lease is made between the look and the end
        found = show(name, paths)
        if found.leases:
            owner.keep()
            raise Refused(
                f"hosts hold {found.leases} leases of memserver '{name}'",
                why="\n".join(found.holders),
                hint=f"end their VMs, or move the memory away, on those hosts: ghostbox donor drain {name}",
            )
    if scope is not None:
        services.uninstall(Service(Kind.DONOR, scope))
    _end(name, paths, signal.SIGTERM)
    return found


def _end(name: str, paths: Paths, number: signal.Signals) -> None:
    """End a control plane that runs, and wait for its end. By SIGKILL its data plane goes on, with the leases."""
    running = lock.running(paths.memserver_state(name))
    if running is None:
        return

    def is_it() -> bool:
        return lock.running(paths.memserver_state(name)) == running

    try:
        with pidfd.Process(running.pid) as process:
            if is_it() and process.send(number) and not process.ended(_STOP_S):
                raise DeadlineExceeded(f"memserver '{name}' (pid {running.pid}) does not end within {_STOP_S:.0f} s")
    except ProcessLookupError:
        return


def scope_of(word: str) -> Scope | None:
    """Return the scope that a word names; None for ``background``."""
    return None if word == "background" else Scope(word)
