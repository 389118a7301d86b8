# SPDX-License-Identifier: MIT
"""``donor add``, ``forget``, ``list``: the donors that this host knows; ``add``, ``drain``, ``keep``: those of a VM."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ghostbox import donors, known_donors, pager
from ghostbox.donor_client import DonorStatus
from ghostbox.errors import GhostboxError, Interrupted, NotFound, NotRunning, Refused
from ghostbox.known_donors import KnownDonor
from ghostbox.paths import Paths
from ghostbox.session import access, definition, pool, unreleased
from ghostbox.session.pool import Drain
from ghostbox.session.progress import Progress, Stage
from ghostbox.session.record import Book, LeaseRecord, VmState, locked, names
from ghostbox.session.unreleased import Unreleased
from ghostbox.units import format_bytes

_INTERVAL_S = 0.2
_LIST_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Drained:
    """What ``donor drain`` did: ``done`` means that the donor holds nothing of the VM any more."""

    vm: str
    donor: str
    bytes_to_move: int
    borrowed: tuple[LeaseRecord, ...]
    done: bool


@dataclass(frozen=True)
class Added:
    """What ``donor add`` did. ``vm`` and ``lease`` are None if no VM runs; ``new``: the donor was not known here."""

    donor: KnownDonor
    status: DonorStatus
    new: bool
    vm: str | None = None
    lease: LeaseRecord | None = None


@dataclass(frozen=True)
class Listed:
    """A donor in ``donor list``: what it said, whether it is ``known``, and what it may still hold of VMs of before."""

    address: str
    status: DonorStatus | None
    error: GhostboxError | None
    known: bool
    unreleased: tuple[Unreleased, ...] = ()


def add(
    vm: str | None,
    default_vm: str,
    address: str,
    size_bytes: int | None,
    paths: Paths,
    progress: Progress,
    *,
    more: bool = False,
) -> Added:
    """Note a donor, and have a VM that runs use its memory; extents move to it in the background.

    Args:
        vm: which VM, if the user names one.
        default_vm: which one else, if it runs.
        address: of the donor's control API, or the name of one that is known.
        size_bytes: how much; None takes what is missing, or as much as the other donors lend on average.
        paths: where VMs live.
        progress: is told the stages.
        more: borrow more from a donor that the VM uses already.

    Raises:
        NotFound, NotRunning: the VM that was named.
        DonorError, DonorTooSmall: the donor.
        Refused: the VM uses it already.
        GhostboxError: the pager cannot use it; the lease is given back.
    """
    if vm is not None:
        Book(paths.vm(vm)).need(vm, paths)  # before the donor is asked, which may take its time
    address = address_of(address, paths)
    [status] = donors.query([address])
    name = vm or (default_vm if _runs(default_vm, paths) else None)
    lease = None
    if name is not None:
        with _changed(name, paths) as book, progress.stage("donor") as stage:
            lease = pool.add(book, address, size_bytes, more=more)
            stage.say(f"{lease.donor} lends {format_bytes(lease.size_bytes)}")
            definition.add_donor(book, lease.donor)
    elif size_bytes is not None or more:
        raise NotRunning(
            f"no VM '{default_vm}' runs that could borrow from donor {address}",
            hint="name one that runs by --vm, or leave --size and --more out: the donor is noted",
        )
    _forget_moved(status, address, paths)
    donor, new = known_donors.note(paths, status, address)
    return Added(donor, status, new, name, lease)


def _forget_moved(status: DonorStatus, address: str, paths: Paths) -> None:
    """Forget earlier addresses of a donor at which it is not to be found any more: it was not cloned, it has moved."""
    if not status.id:
        return
    others = [each for each in known_donors.load(paths) if each.id == status.id]
    others = [each for each in others if not known_donors.same_address(each.address, address)]
    for item in donors.survey([each.address for each in others], timeout_s=_LIST_TIMEOUT_S):
        if item.status is None or item.status.id != status.id:
            known_donors.forget(paths, item.address)


def forget(word: str, paths: Paths) -> KnownDonor | None:
    """Forget a donor that is known, by its address or name. None: it is not known, but memory there is not released.

    Raises:
        NotFound: this host has nothing to do with it.
    """
    try:
        return known_donors.forget(paths, word)
    except NotFound:
        if owed_by(word, paths):
            return None
        raise


def owed_by(word: str, paths: Paths) -> tuple[Unreleased, ...]:
    """Return the leases that could not be released at a donor, by its address or name."""
    address = address_of(word, paths)
    return tuple(
        each
        for each in unreleased.load(paths.state)
        if word == each.lease.donor_name or known_donors.same_address(each.lease.donor, address)
    )


def check_unused(word: str, paths: Paths) -> None:
    """See that no VM that runs has memory on a donor that is to be written off.

    Raises:
        Refused: one has.
    """
    address = address_of(word, paths)
    for name in names(paths):
        record = Book(paths.vm(name)).load()
        if record is None or record.state is VmState.STOPPED:
            continue
        used = [
            lease
            for lease in record.leases
            if word == lease.donor_name or known_donors.same_address(lease.donor, address)
        ]
        if used:
            total = format_bytes(sum(lease.size_bytes for lease in used))
            raise Refused(
                f"VM '{name}' runs and has {total} on donor {word}: that memory is not written off",
                hint=f"ghostbox status {name} says how it does;"
                f" to move it elsewhere: ghostbox donor drain {used[0].donor} --vm {name}",
            )


def address_of(word: str, paths: Paths) -> str:
    """Return the address that a word means: of the known donor of that name, or an address as it stands.

    Raises:
        UsageError: several known donors have the name.
    """
    known = known_donors.load(paths)
    if not any(each.is_named(word) for each in known):
        return word
    [found] = known_donors.meant(known, word)
    return word if known_donors.same_address(word, found.address) else found.address


def listed(configured: Sequence[str], paths: Paths) -> list[Listed]:
    """Return the donors that this host knows or its configuration names, each once, and what those of before owe us.

    A donor of which only that is known is not asked: whoever looks must not wait for it.
    """
    known = known_donors.load(paths)
    wanted = [*(each.address for each in known)]
    wanted += [each for each in configured if not any(known_donors.same_address(each, other) for other in wanted)]
    owed = unreleased.load(paths.state)
    unreleased.try_in_background(paths)
    rows = []
    for item in donors.survey(wanted, timeout_s=_LIST_TIMEOUT_S):
        own = tuple(each for each in owed if known_donors.same_address(each.lease.donor, item.address))
        is_known = any(known_donors.same_address(item.address, each.address) for each in known)
        rows.append(Listed(item.address, item.status, item.error, is_known, own))
    told = {each.lease.name for row in rows for each in row.unreleased}
    rest = [each for each in owed if each.lease.name not in told]
    for address in dict.fromkeys(each.lease.donor for each in rest):
        own = tuple(each for each in rest if each.lease.donor == address)
        rows.append(Listed(address, None, None, False, own))
    return rows


def measured_by_vms(address: str, paths: Paths) -> list[str]:
    """Return what the VMs that run here find at a donor: of one that has lent all, nothing else can be measured."""
    lines = []
    for name in names(paths):
        book = Book(paths.vm(name))
        record = book.load()
        found = pager.status(book.files.pager_control) if record is not None else None
        if record is None or found is None:
            continue
        uris = {lease.nbd_uri for lease in record.leases if known_donors.same_address(lease.donor, address)}
        seen = [donor["latency"] for donor in found["donors"] if donor["uri"] in uris and donor["latency"].get("count")]
        if seen:
            p50, p99 = (max(float(each[key]) for each in seen) for key in ("p50_us", "p99_us"))
            lines.append(f"VM '{name}' reads from donor {address} within {p50:.0f} µs (p50), {p99:.0f} µs (p99)")
    return lines


def _runs(name: str, paths: Paths) -> bool:
    record = Book(paths.vm(name)).load()
    return record is not None and record.state in (VmState.RUNNING, VmState.STOPPING)


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
