# SPDX-License-Identifier: MIT
"""Remember leases that could not be released because their donor did not answer, and try again in the background.

No command waits for such a donor, and none forgets the lease: the note outlives the VM. The hidden command ``ghostbox
settle-leases`` tries all of them once; commands that show VMs or donors start it, and so does a supervisor, every half
minute at most. ``donor forget --write-off`` strikes out memory of a donor that is gone for good.

The notes are in ``unreleased-leases.json`` in the state directory. Its lock orders the changes; the lock of
``unreleased-leases.trying`` lets one process try at a time.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter

from ghostbox.donors import known as known_donors
from ghostbox.donors.client import DonorClient, NoAnswer
from ghostbox.errors import GhostboxError, NotFound
from ghostbox.paths import Paths
from ghostbox.session.record import LeaseRecord, now_utc
from ghostbox.system import locks, processes
from ghostbox.system.documents import Part
from ghostbox.system.state_files import ListFile

_log = logging.getLogger(__name__)
COMMAND = "settle-leases"
RETRY_S = 30.0
_CONNECT_TIMEOUT_S = 2.0
"""A donor that is up accepts a connection at once; a longer wait would only be for a machine that is off."""
_ANSWER_TIMEOUT_S = 10.0
_MAX_THREADS = 8


@dataclass(frozen=True)
class Unreleased(Part):
    """Holds a lease that its donor may still hold: the VM that had it, since when, and why it is not released."""

    vm: str
    lease: LeaseRecord
    since: str
    why: str


_LISTED = TypeAdapter(tuple[Unreleased, ...])


def load(root: Path) -> tuple[Unreleased, ...]:
    """Return the leases that are noted in the state directory ``root``.

    Raises:
        GhostboxError: the file cannot be read or makes no sense.
    """
    return _file(root).load()


def note(root: Path, vm: str, lease: LeaseRecord, why: str) -> None:
    """Note a lease, before it leaves its VM's record."""
    entry = Unreleased(vm, lease, now_utc(), why)
    _file(root).change(lambda known: [*(each for each in known if each.lease.name != lease.name), entry])


def write_off(root: Path, gone: Sequence[Unreleased]) -> None:
    """Strike out leases that will never be released."""
    names = {each.lease.name for each in gone}
    _file(root).change(lambda known: [each for each in known if each.lease.name not in names])


def release(lease: LeaseRecord, addresses: Sequence[str] = ()) -> None:
    """End a lease at its donor; a lease that is gone is no error. The donor is also looked for at ``addresses``.

    Raises:
        NoAnswer: the donor that made the lease does not answer at any of the addresses.
        GhostboxError: the donor refuses.
    """
    unanswered: NoAnswer | None = None
    for address in dict.fromkeys((lease.donor, *addresses)):
        try:
            with DonorClient(address, timeout_s=_ANSWER_TIMEOUT_S, connect_timeout_s=_CONNECT_TIMEOUT_S) as client:
                _release_at(client, lease)
            return
        except NoAnswer as err:
            unanswered = unanswered or err
    assert unanswered is not None
    raise unanswered


def _release_at(client: DonorClient, lease: LeaseRecord) -> None:
    seen = client.look_for(lease.name)
    if lease.donor_id is not None and seen.donor_id != lease.donor_id:
        raise NoAnswer(
            f"another memserver answers at {client.address} (id {seen.donor_id or 'unknown'})",
            why=f"the lease was made by '{lease.donor_name}' (id {lease.donor_id})",
        )
    try:
        client.release_lease(lease.name, force=True)
    except NotFound:
        _log.debug("lease %s is gone already", lease.name)


def settle(paths: Paths) -> int:
    """Try once to release all noted leases; return how many are left. Only one process tries at a time."""
    with _exclusive(paths.state) as ours:
        known = load(paths.state)
        if not ours or not known:
            return len(known)
        elsewhere = {each.id: each.address for each in known_donors.load(paths) if each.id}
        with ThreadPoolExecutor(max_workers=_MAX_THREADS) as pool:
            results = list(pool.map(lambda each: _try_release(each, elsewhere.get(each.lease.donor_id or "")), known))
        done = {each.lease.name for each, why in zip(known, results, strict=True) if why is None}
        reasons = {each.lease.name: why for each, why in zip(known, results, strict=True) if why is not None}
        _file(paths.state).change(
            lambda now: [
                replace(each, why=reasons.get(each.lease.name, each.why)) for each in now if each.lease.name not in done
            ],
        )
    for name in done:
        _log.info("lease %s was released after all", name)
    return len(reasons)


def try_in_background(paths: Paths) -> bool:
    """Start a process that tries, unless nothing is noted or a process tried lately; return whether it was started.

    A failure to start it is only logged: the caller's own work does not depend on it.
    """
    try:
        return _file(paths.state).path.exists() and bool(load(paths.state)) and _start(paths)
    except (GhostboxError, OSError) as err:
        _log.debug("leases that are not released cannot be tried again: %s", err)
        return False


def _start(paths: Paths) -> bool:
    stamp = _stamp(paths.state)
    try:
        if time.time() - stamp.stat().st_mtime < RETRY_S:
            return False
    except FileNotFoundError:
        pass
    stamp.touch()
    processes.start_own(COMMAND, paths=paths, log_path=paths.state / "unreleased-leases.log")
    return True


def _try_release(entry: Unreleased, elsewhere: str | None) -> str | None:
    """Try to release one lease; return why it is not released, None if it is."""
    try:
        release(entry.lease, () if elsewhere is None else (elsewhere,))
    except GhostboxError as err:
        return f"{err.message}: {err.why}" if err.why else err.message
    return None


def _file(root: Path) -> ListFile[Unreleased]:
    mend = "the file lists leases that donors may hold: mend it, or ask the donors (ghostbox donor leases ADDRESS)"
    return ListFile(root / "unreleased-leases.json", "leases", _LISTED, mend)


def _stamp(root: Path) -> Path:
    return root / "unreleased-leases.trying"


@contextmanager
def _exclusive(root: Path) -> Iterator[bool]:
    """Take the lock that lets one process try; yield False if another process has it."""
    try:
        descriptor = locks.take(_stamp(root))
    except locks.Held:
        yield False
        return
    try:
        os.utime(descriptor)
        yield True
    finally:
        os.close(descriptor)
