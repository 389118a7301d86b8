# SPDX-License-Identifier: MIT
"""Do the donor commands.

``add``, ``forget`` and ``list`` work on the donors that this host knows; ``add``, ``drain`` and ``keep`` on the donors
of a VM.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from ghostbox import donors, pager
from ghostbox.discovery import named
from ghostbox.donors import known as known_donors
from ghostbox.donors import pairings, token, trust
from ghostbox.donors.client import DonorStatus
from ghostbox.donors.known import KnownDonor, address_of
from ghostbox.donors.pairings import Pairing
from ghostbox.donors.trust import Means
from ghostbox.errors import GhostboxError, Interrupted, NotFound, NotRunning, Refused
from ghostbox.paths import Paths
from ghostbox.session import access, asking, definition, pairing, pool, unreleased
from ghostbox.session.asking import Dialogue
from ghostbox.session.pool import Drain
from ghostbox.session.progress import Progress, Stage
from ghostbox.session.record import Book, LeaseRecord, VmState, locked, names
from ghostbox.session.unreleased import Unreleased
from ghostbox.units import format_bytes

_INTERVAL_S = 0.2
_LIST_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Drained:
    """Holds what ``donor drain`` did: ``done`` means that the donor holds nothing of the VM any more."""

    vm: str
    donor: str
    bytes_to_move: int
    borrowed: tuple[LeaseRecord, ...]
    done: bool


@dataclass(frozen=True)
class Added:
    """Holds what ``donor add`` did.

    ``vm`` and ``lease`` are None if no VM runs. ``new``: this host did not know the donor before. ``channel``: how this
    host talks to the donor. ``paired``: the command has paired them.
    """

    donor: KnownDonor
    status: DonorStatus
    new: bool
    channel: Means | None
    paired: bool = False
    vm: str | None = None
    lease: LeaseRecord | None = None


@dataclass(frozen=True)
class Parted:
    """Holds what ``donor forget`` did: the donor's entry, its pairings, and notes on donors that were not told."""

    donor: KnownDonor | None
    pairings: tuple[Pairing, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listed:
    """Holds a row of ``donor list``.

    ``status`` is the donor's answer, ``error`` why there is none; ``known``: this host has noted the donor.
    ``unreleased`` are leases of former VMs that the donor may still hold. ``channel``: how this host talks to
    the donor, None if it may not.
    """

    address: str
    status: DonorStatus | None
    error: GhostboxError | None
    known: bool
    unreleased: tuple[Unreleased, ...] = ()
    channel: Means | None = None


def add(
    vm: str | None,
    default_vm: str,
    address: str,
    size_bytes: int | None,
    paths: Paths,
    progress: Progress,
    *,
    more: bool = False,
    dialogue: Dialogue | None = None,
) -> Added:
    """Note a donor, after pairing if that is wanted; a VM that runs uses its memory, in the background.

    Args:
        vm: the VM that the user names, if any.
        default_vm: the VM to use otherwise, if that runs.
        address: of the donor's control API, the name of a donor that is known or announces itself, or a token.
        size_bytes: how much to borrow; None borrows what is missing, or what the other donors lend on average.
        paths: where VMs live.
        progress: receives the stages.
        more: borrow more from a donor that the VM uses already.
        dialogue: how the user takes part in pairing without a token; None: not at all.

    Raises:
        NotFound, NotRunning: the VM that was named does not exist or does not run.
        NotFound, UsageError: no donor has the name, or several have (`named.address_of`).
        TokenRefused, NoAnswer: the donor does not take the token, or cannot be asked (see `pairing.pair`).
        PairingRefused, Untrusted, Refused, DeadlineExceeded, Interrupted: it is not paired (see `asking.pair`).
        DonorError, DonorTooSmall: the donor does not answer or has too little.
        Refused: the VM uses the donor already.
        GhostboxError: the pager cannot use the donor; the lease is given back.
    """
    if vm is not None:
        Book(paths.vm(vm)).need(vm, paths)  # first, since a donor may take long to answer
    paired = token.is_token(address)
    if paired:
        with progress.stage("pair") as stage:
            made = pairing.pair(token.parse(address), paths)
            address = made.addresses[0]
            stage.say(f"donor '{made.name}' at {address}")
    else:
        address = _place(address, paths, progress)
        pairing.recognize(address, paths)
        certificate = None if dialogue is None else asking.wanted(address, paths)
        if dialogue is not None and certificate is not None:
            address = asking.pair(address, certificate, paths, dialogue, progress).addresses[0]
            paired = True
    [status] = donors.query([address])
    was_known = any(known_donors.is_same(each, _entry(status, address)) for each in known_donors.load(paths))
    if paired:  # whatever fails from here on: the token is used up, and the donor must keep its name
        known_donors.note(paths, status, address)
    name = vm or (default_vm if _runs(default_vm, paths) else None)
    lease = None
    if name is not None:
        with _changed(name, paths) as book, progress.stage("donor") as stage:
            lease = pool.add(book, address, size_bytes, more=more)
            stage.say(f"{lease.donor} lends {format_bytes(lease.size_bytes)}")
            definition.add_donor(book, lease.donor, (status.name, address))
    elif size_bytes is not None or more:
        raise NotRunning(
            f"no VM '{default_vm}' runs that could borrow from donor {address}",
            hint="name one that runs by --vm, or leave --size and --more out: the donor is noted",
        )
    _forget_moved(status, address, paths)
    donor, _ = known_donors.note(paths, status, address)
    return Added(donor, status, not was_known, trust.means_of(address), paired, name, lease)


def _place(word: str, paths: Paths, progress: Progress) -> str:
    """Return the address of the donor that a word means: a known one, else one that announces itself under the name."""
    if any(each.is_named(word) for each in known_donors.load(paths)) or not named.is_name(word):
        return address_of(word, paths)
    paired = pairings.meant(paths, word)
    if len(paired) == 1:
        return paired[0].addresses[0]
    with progress.stage("scan") as stage:
        found = named.address_of(word, pairings.load(paths))
        stage.say(f"'{word}' is at {found}")
    return found


def _entry(status: DonorStatus, address: str) -> KnownDonor:
    return KnownDonor(address, status.id, status.name, status.machine)


def _forget_moved(status: DonorStatus, address: str, paths: Paths) -> None:
    """Forget the earlier addresses of a donor that has moved.

    An address where a donor with this id still answers is kept: that donor is the original of a clone.
    """
    if not status.id:
        return
    others = [each for each in known_donors.load(paths) if each.id == status.id]
    others = [each for each in others if not known_donors.same_address(each.address, address)]
    for item in donors.survey([each.address for each in others], timeout_s=_LIST_TIMEOUT_S):
        if item.status is None or item.status.id != status.id:
            known_donors.forget(paths, item.address)


def forget(word: str, paths: Paths) -> KnownDonor | None:
    """Forget a known donor, by its address or name; return None if only unreleased leases of it were known.

    Raises:
        NotFound: this host knows neither such a donor nor leases of it.
    """
    try:
        return known_donors.forget(paths, word)
    except NotFound:
        if owed_by(word, paths):
            return None
        raise


def part(word: str, paths: Paths, *, write_off: bool = False) -> Parted:
    """End this host's pairing with a donor, given its address or name, and forget the donor.

    Args:
        word: the donor's address or name.
        paths: where the lists are.
        write_off: the leases of former VMs there are given up, so that the pairing is not needed for them.

    Raises:
        NotFound: this host knows neither such a donor nor leases of it.
        Refused: the pairing is needed: a VM has memory there, or a former VM's lease is not released.
        DonorError: the donor does not end the pairing, since this host has leases there.
    """
    found = pairings.meant(paths, address_of(word, paths))
    if not found:
        return Parted(forget(word, paths))
    check_unused(word, paths)
    if owed_by(word, paths) and not write_off:
        raise Refused(
            f"donor {word} may still hold memory of a former VM, which takes the pairing to release",
            hint=f"ghostbox donor list shows it; to give it up: ghostbox donor forget {word} --write-off",
        )
    notes = tuple(pairing.unpair(found, paths))
    with suppress(NotFound):  # a donor may be paired and not be noted
        return Parted(forget(word, paths), found, notes)
    return Parted(None, found, notes)


def owed_by(word: str, paths: Paths) -> tuple[Unreleased, ...]:
    """Return the leases that could not be released at a donor, given its address or name."""
    address = address_of(word, paths)
    return tuple(
        each
        for each in unreleased.load(paths.state)
        if word == each.lease.donor_name or known_donors.same_address(each.lease.donor, address)
    )


def check_unused(word: str, paths: Paths) -> None:
    """Check that no VM that runs has memory on a donor that is to be written off.

    Raises:
        Refused: a VM has memory there.
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
                hint=f"ghostbox status {name} shows its health;"
                f" to move it elsewhere: ghostbox donor drain {used[0].donor} --vm {name}",
            )


def listed(configured: Sequence[str], paths: Paths) -> list[Listed]:
    """Return each donor that this host knows, that its configuration names, or that may hold unreleased leases.

    A donor of which only unreleased leases are known is not asked: it is probably off, and the command would wait for
    it.
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
        rows.append(Listed(item.address, item.status, item.error, is_known, own, trust.means_of(item.address)))
    told = {each.lease.name for row in rows for each in row.unreleased}
    rest = [each for each in owed if each.lease.name not in told]
    for address in dict.fromkeys(each.lease.donor for each in rest):
        own = tuple(each for each in rest if each.lease.donor == address)
        rows.append(Listed(address, None, None, False, own))
    return rows


def measured_by_vms(address: str, paths: Paths) -> list[str]:
    """Return, in sentences, the read latency that each VM of this host has measured at a donor."""
    lines = []
    for name in names(paths):
        book = Book(paths.vm(name))
        record = book.load()
        found = pager.status(book.files.pager_control) if record is not None else None
        if record is None or found is None:
            continue
        uris = {lease.nbd_uri for lease in record.leases if known_donors.same_address(lease.donor, address)}
        seen = [donor.latency for donor in found.donors if donor.uri in uris and donor.latency.count]
        if seen:
            p50, p99 = max(each.p50_us or 0.0 for each in seen), max(each.p99_us or 0.0 for each in seen)
            lines.append(f"VM '{name}' reads from donor {address} within {p50:.0f} µs (p50), {p99:.0f} µs (p99)")
    return lines


def _runs(name: str, paths: Paths) -> bool:
    record = Book(paths.vm(name)).load()
    return record is not None and record.state in (VmState.RUNNING, VmState.STOPPING)


def drain(
    name: str, address: str, paths: Paths, progress: Progress, *, to_host: bool = False, wait: bool = True
) -> Drained:
    """Move all that a donor holds for a VM to the other donors, while the VM runs, and give the donor's memory back.

    Args:
        name: of the VM.
        address: of the donor's control API, or ``this-host``.
        paths: where the VM lives.
        progress: receives how much is left.
        to_host: borrow from this host what the other donors lack.
        wait: return when the drain is over; otherwise the supervisor finishes it.

    Raises:
        NotFound, NotRunning: the VM does not exist or does not run, or has nothing from this donor.
        Refused: the donor's content does not fit elsewhere; nothing has changed.
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
        NotFound, NotRunning: the VM does not exist or does not run, or has nothing from this donor.
    """
    with _changed(name, paths) as book:
        pool.keep(book, address)


@contextmanager
def _changed(name: str, paths: Paths) -> Iterator[Book]:
    """Hold the lock of a VM that runs, and yield its record."""
    book, _ = access.need_running(name, paths, paused=True)
    with locked(book.files):
        book.need(name, paths)
        yield book


def _borrowed(begun: Drain) -> str:
    if not begun.added:
        return ""
    return ", " + ", ".join(f"{format_bytes(each.size_bytes)} more from {each.donor}" for each in begun.added)


def _wait(book: Book, begun: Drain, stage: Stage) -> None:
    """Wait until the donor is empty and its leases have ended; this command or the supervisor ends them."""
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
        left = sum(donor.used_slots for donor in ours) * (record.pager.extent_bytes if record.pager else 0)
        if ours and not any(donor.draining or donor.state == "removed" for donor in ours):
            raise Refused(f"the drain of {begun.address} was called off")
        stage.say(f"{format_bytes(left)} left of {format_bytes(begun.bytes_to_move)}")
        if all(pool.is_empty(donor) for donor in ours):
            with suppress(Refused), locked(book.files):
                book.load()
                pool.finish_drains(book)
        time.sleep(_INTERVAL_S)
