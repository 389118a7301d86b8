# SPDX-License-Identifier: MIT
"""``donor add``, ``donor drain``, ``donor keep``: the donors of a VM that runs, changed by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ghostbox.errors import Interrupted, NotFound, Refused
from ghostbox.paths import Paths
from ghostbox.session import access, definition, pool
from ghostbox.session.pool import Drain
from ghostbox.session.progress import Progress, Stage
from ghostbox.session.record import Book, LeaseRecord, locked
from ghostbox.units import format_bytes

_INTERVAL_S = 0.2


@dataclass(frozen=True)
class Drained:
    """What ``donor drain`` did: ``done`` means that the donor holds nothing of the VM any more."""

    vm: str
    donor: str
    bytes_to_move: int
    borrowed: tuple[LeaseRecord, ...]
    done: bool


def add(name: str, address: str, size_bytes: int | None, paths: Paths, progress: Progress) -> LeaseRecord:
    """Have a VM that runs use the memory of one more donor; extents move to it in the background.

    Args:
        name: of the VM.
        address: of the donor's control API.
        size_bytes: how much; None takes what is missing, or as much as the other donors lend on average.
        paths: where the VM lives.
        progress: is told the stages.

    Raises:
        NotFound, NotRunning: the VM.
        DonorError, DonorTooSmall: the donor.
        GhostboxError: the pager cannot use it; the lease is given back.
    """
    with _changed(name, paths) as book, progress.stage("donor") as stage:
        lease = pool.add(book, address, size_bytes)
        stage.say(f"{address} lends {format_bytes(lease.size_bytes)}")
        definition.add_donor(book, address)
    return lease


def drain(
    name: str, address: str, paths: Paths, progress: Progress, *, to_host: bool = False, wait: bool = True
) -> Drained:
    """Move all that a donor holds for a VM to the others, live, and give its memory back.

    Args:
        name: of the VM.
        address: of the donor's control API, or ``this-host``.
        paths: where the VM lives.
        progress: is told how far it is.
        to_host: borrow what the others lack from this host.
        wait: return when it is over; else the supervisor ends it.

    Raises:
        NotFound, NotRunning: the VM, or it has nothing from this donor.
        Refused: it does not fit elsewhere; nothing has changed.
        Interrupted: Ctrl-C; the drain goes on.
    """
    with _changed(name, paths) as book, progress.stage("drain") as stage:
        begun = pool.drain(book, address, to_host=to_host)
        stage.say(f"{format_bytes(begun.bytes_to_move)} to move{_borrowed(begun)}")
    if wait:
        with progress.stage("move") as stage:
            try:
                _wait(book, begun, stage)
            except KeyboardInterrupt as err:
                raise Interrupted(
                    f"interrupted: the drain of {address} goes on by itself",
                    hint=f"ghostbox status {name}; to call it off: ghostbox donor keep {address} --vm {name}",
                ) from err
    return Drained(name, address, begun.bytes_to_move, begun.added, done=wait)


def keep(name: str, address: str, paths: Paths) -> None:
    """Call a drain off.

    Raises:
        NotFound, NotRunning: the VM, or it has nothing from this donor.
    """
    with _changed(name, paths) as book:
        pool.keep(book, address)


@contextmanager
def _changed(name: str, paths: Paths) -> Iterator[Book]:
    """A VM that runs, to be changed: its lock is held."""
    book, _ = access.need_running(name, paths, paused=True)
    with locked(book.files):
        book.need(name, paths)
        yield book


def _borrowed(begun: Drain) -> str:
    if not begun.added:
        return ""
    return ", " + ", ".join(f"{format_bytes(each.size_bytes)} more from {each.donor}" for each in begun.added)


def _wait(book: Book, begun: Drain, stage: Stage) -> None:
    """Wait until the donor is empty and its leases have ended, by us or by the supervisor."""
    while True:
        record = book.load()
        if record is None:
            raise NotFound("the VM was deleted meanwhile")
        try:
            leases = pool.leases_at(record, begun.address)
        except NotFound:
            stage.say(f"{begun.address} holds nothing of this VM any more")
            return
        by_uri = pool.states(pool.status(book))
        ours = [by_uri[lease.nbd_uri] for lease in leases if lease.nbd_uri in by_uri]
        left = sum(int(donor["used_slots"]) for donor in ours) * (record.pager.extent_bytes if record.pager else 0)
        if ours and not any(donor["draining"] or donor["state"] == "removed" for donor in ours):
            raise Refused(f"the drain of {begun.address} was called off")
        stage.say(f"{format_bytes(left)} left of {format_bytes(begun.bytes_to_move)}")
        if all(pool.is_empty(donor) for donor in ours):
            with suppress(Refused), locked(book.files):
                book.load()
                pool.finish_drains(book)
        time.sleep(_INTERVAL_S)
