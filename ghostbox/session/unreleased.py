# SPDX-License-Identifier: MIT
"""Leases that could not be released because their donor did not answer: noted, and tried again in the background.

No command waits for such a donor, and none forgets it: the note outlives the VM. ``ghostbox settle-leases``, hidden,
tries all of them once; commands that look at VMs or donors start it, and so does a supervisor, every half minute at
most. Memory that will never be released, because its donor is gone for good, is written off by ``donor forget
--write-off``.

    ``unreleased-leases.json`` in the state directory; its lock orders the changes, another one lets one process try.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ghostbox import known_donors, processes
from ghostbox.donor_client import DonorClient, NoAnswer
from ghostbox.errors import GhostboxError, NotFound, hint_for
from ghostbox.paths import Paths, make_directory
from ghostbox.session.record import LeaseRecord, now_utc

_log = logging.getLogger(__name__)
COMMAND = "settle-leases"
RETRY_S = 30.0
CONNECT_TIMEOUT_S = 2.0
"""A donor on the network answers a connection at once; who waits longer waits for one that is off."""
_ANSWER_TIMEOUT_S = 10.0
_MAX_THREADS = 8


@dataclass(frozen=True)
class Unreleased:
    """A lease that its donor still holds for us, for all we know: of which VM, since when, and why."""

    vm: str
    lease: LeaseRecord
    since: str
    why: str


def load(root: Path) -> tuple[Unreleased, ...]:
    """Return what is noted in the state directory ``root``.

    Raises:
        GhostboxError: the file cannot be read or makes no sense.
    """
    file = _file(root)
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["leases"]
        return tuple(Unreleased(**{**entry, "lease": LeaseRecord(**entry["lease"])}) for entry in entries)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise GhostboxError(
            f"cannot read {file}: {err}",
            hint="it lists leases that donors may still hold: mend it, or look there (ghostbox donor leases ADDRESS)",
        ) from err


def note(root: Path, vm: str, lease: LeaseRecord, why: str) -> None:
    """Note a lease, before it is struck out of its VM's record."""
    entry = Unreleased(vm, lease, now_utc(), why)
    _change(root, lambda known: [*(each for each in known if each.lease.name != lease.name), entry])


def write_off(root: Path, gone: Sequence[Unreleased]) -> None:
    """Strike out leases that will never be released."""
    names = {each.lease.name for each in gone}
    _change(root, lambda known: [each for each in known if each.lease.name not in names])


def release(lease: LeaseRecord, addresses: Sequence[str] = ()) -> None:
    """End a lease at its donor; one that is gone is no error. It is looked for at ``addresses``, too.

    Raises:
        NoAnswer: the donor that made it does not answer: nobody does, or another one.
        GhostboxError: it refuses.
    """
    unanswered: NoAnswer | None = None
    for address in dict.fromkeys((lease.donor, *addresses)):
        try:
            with DonorClient(address, timeout_s=_ANSWER_TIMEOUT_S, connect_timeout_s=CONNECT_TIMEOUT_S) as client:
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
    """Try to release all that is noted, once; return how many leases are left. One process does so at a time."""
    with _only_one(paths.state) as ours:
        known = load(paths.state)
        if not ours or not known:
            return len(known)
        elsewhere = {each.id: each.address for each in known_donors.load(paths) if each.id}
        with ThreadPoolExecutor(max_workers=_MAX_THREADS) as pool:
            results = list(pool.map(lambda each: _tried(each, elsewhere.get(each.lease.donor_id or "")), known))
        done = {each.lease.name for each, why in zip(known, results, strict=True) if why is None}
        reasons = {each.lease.name: why for each, why in zip(known, results, strict=True) if why is not None}
        _change(
            paths.state,
            lambda now: [
                replace(each, why=reasons.get(each.lease.name, each.why)) for each in now if each.lease.name not in done
            ],
        )
    for name in done:
        _log.info("lease %s was released after all", name)
    return len(reasons)


def try_in_background(paths: Paths) -> bool:
    """Have another process try, unless nothing is noted or somebody tried a moment ago; tell whether it was started.

    That it cannot be is no reason for a command to fail.
    """
    try:
        return _file(paths.state).exists() and bool(load(paths.state)) and _start(paths)
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
    processes.start_detached(
        [sys.executable, "-P", "-m", "ghostbox", COMMAND],
        log_path=paths.state / "unreleased-leases.log",
        env={
            "GHOSTBOX_STATE_DIR": str(paths.state),
            "GHOSTBOX_RUNTIME_DIR": str(paths.runtime),
            "GHOSTBOX_CACHE_DIR": str(paths.cache),
            "GHOSTBOX_NATIVE_DIR": str(paths.native),
        },
    )
    return True


def _tried(entry: Unreleased, elsewhere: str | None) -> str | None:
    """Try once; return why it is not released, None if it is."""
    try:
        release(entry.lease, () if elsewhere is None else (elsewhere,))
    except GhostboxError as err:
        return f"{err.message}: {err.why}" if err.why else err.message
    return None


def _file(root: Path) -> Path:
    return root / "unreleased-leases.json"


def _stamp(root: Path) -> Path:
    return root / "unreleased-leases.trying"


@contextmanager
def _only_one(root: Path) -> Iterator[bool]:
    """Hold the right to try; False if another process has it."""
    descriptor = os.open(_stamp(root), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.utime(descriptor)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _change(root: Path, changed: Callable[[Sequence[Unreleased]], Sequence[Unreleased]]) -> None:
    file = _file(root)
    try:
        make_directory(root)
        descriptor = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            draft = file.with_suffix(".new")
            with draft.open("w", encoding="utf-8") as stream:
                json.dump({"leases": [asdict(each) for each in changed(load(root))]}, stream, indent=2)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(file)
        finally:
            os.close(descriptor)
    except OSError as err:
        raise GhostboxError(
            f"cannot write {file}: {err.strerror}", hint=hint_for(err, "see that it can be written")
        ) from err
