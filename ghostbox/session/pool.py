# SPDX-License-Identifier: MIT
"""Change the donors of a running VM: add one, drain one, borrow room for lost copies. Callers hold the VM's lock.

A lease is in the record before the donor is asked for it, and leaves the record after it has ended. The pager gets an
export after its lease was made, and has stopped using it before the lease ends. So `cleanup` finds every lease,
wherever a command is interrupted.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ghostbox import donors, pager
from ghostbox.donors import Assignment
from ghostbox.donors import known as known_donors
from ghostbox.donors.client import DonorStatus, Lease, host_name, parse_address
from ghostbox.donors.known import KnownDonor
from ghostbox.donors.models import Holder
from ghostbox.errors import DonorError, GhostboxError, NotFound, NotRunning, Refused, UsageError
from ghostbox.pager.model import PagerDonor, PagerStatus
from ghostbox.plan.placement import Held, Offer, distinct, donor_of
from ghostbox.plan.plan import shares_of
from ghostbox.session import cleanup, events, host_memory, lease_keys, network
from ghostbox.session.record import THIS_HOST, Book, LeaseRecord, Record, lease_name
from ghostbox.system.machine import machine_digest
from ghostbox.system.processes import ControlError
from ghostbox.units import format_bytes

_log = logging.getLogger(__name__)
USABLE = frozenset({"up", "slow"})
_ASK_TIMEOUT_S = 3.0
LEAVING = frozenset({"draining", "drained"})


@dataclass(frozen=True)
class Drain:
    """Holds a drain that has begun: the bytes to move, and the leases that were made for them."""

    address: str
    bytes_to_move: int
    added: tuple[LeaseRecord, ...]


def same_donor(one: str, other: str) -> bool:
    """Tell whether two spellings name one donor (``tower`` and ``tower:10810``)."""
    return canonical(one) == canonical(other)


def canonical(address: str) -> str:
    """Return an address as ``host:port``, the same for all its spellings; `THIS_HOST` is returned unchanged."""
    return address if address == THIS_HOST else str(parse_address(address)).lower()


def status(book: Book) -> PagerStatus:
    """Return the pager's status.

    Raises:
        NotRunning: the pager does not answer.
    """
    found = pager.status(book.files.pager_control)
    if found is None:
        name = book.record.name
        raise NotRunning(f"the pager of VM '{name}' does not answer", hint=f"ghostbox status {name}")
    return found


def leases_at(record: Record, donor: str) -> list[LeaseRecord]:
    """Return what the VM has borrowed from a donor, given its address, its name, or another address of it.

    Raises:
        NotFound: the VM has nothing from this donor.
        UsageError: several donors have this name.
    """
    lent = [lease for lease in record.leases if lease.nbd_uri is not None]
    found = [lease for lease in lent if _spelt_alike(lease.donor, donor)]
    found = found or _named(lent, donor) or _of_answering_donor(lent, donor)
    if not found:
        has = ", ".join(dict.fromkeys(lease.donor for lease in record.leases))
        raise NotFound(f"VM '{record.name}' has no memory from donor {donor}", hint=f"it has from: {has}")
    return found


def lent_by(record: Record, status: DonorStatus, address: str) -> list[LeaseRecord]:
    """Return the leases of the donor that answers at ``address``, under whatever address they were made."""
    return [lease for lease in record.leases if lease.nbd_uri is not None and _is_lender(lease, status, address)]


def _is_lender(lease: LeaseRecord, status: DonorStatus, address: str) -> bool:
    """Tell whether the donor that answers has made a lease and still has its memory."""
    if lease.donor == THIS_HOST:
        return False
    if lease.donor_id is None or lease.plane is None or not status.id:
        return _spelt_alike(lease.donor, address) or (lease.donor_id is not None and lease.donor_id == status.id)
    return (lease.donor_id, lease.plane) == (status.id, status.incarnation)


def _spelt_alike(one: str, other: str) -> bool:
    try:
        return same_donor(one, other)
    except UsageError:  # a name that cannot be an address
        return False


def _named(leases: Sequence[LeaseRecord], name: str) -> list[LeaseRecord]:
    """Return the leases of the donor that has a name.

    Raises:
        UsageError: several donors have the name.
    """
    found = [lease for lease in leases if lease.donor_name == name]
    addresses = list(dict.fromkeys(lease.donor for lease in found))
    if len(addresses) > 1:
        raise UsageError(
            f"'{name}' is the name of {len(addresses)} donors", hint=f"give the address of one: {', '.join(addresses)}"
        )
    return found


def _of_answering_donor(leases: Sequence[LeaseRecord], address: str) -> list[LeaseRecord]:
    """Return the leases of the donor that answers at an address which no lease has; none if none answers."""
    if address == THIS_HOST or not any(lease.plane for lease in leases):
        return []
    try:
        [status] = donors.query([address])
    except GhostboxError:
        return []
    return [lease for lease in leases if lease.plane and _is_lender(lease, status, address)]


def states(found: PagerStatus) -> dict[str, PagerDonor]:
    """Return the pager's donors by their URIs."""
    return {donor.uri: donor for donor in found.donors}


def is_empty(donor: PagerDonor) -> bool:
    """Tell whether a donor that is leaving, or has lost its memory, holds nothing of the VM any more."""
    leaving = donor.draining or donor.state == "lost"
    return donor.state == "removed" or (leaving and not donor.used_slots and not donor.backup)


def held(record: Record, found: PagerStatus, without: Collection[str] = ()) -> tuple[Held, ...]:
    """Return the leases of donors that answer, without the leases whose URIs are in ``without``."""
    usable = {donor.uri for donor in found.donors if donor.state in USABLE} - set(without)
    return tuple(held_by(lease) for lease in record.leases if lease.nbd_uri in usable)


def held_by(lease: LeaseRecord) -> Held:
    """Return the size of a lease, and the donor and machine it is on."""
    if lease.donor == THIS_HOST:
        return Held(THIS_HOST, lease.size_bytes, machine_digest())
    known = lease.donor_id is not None and lease.plane is not None
    donor = donors.donor_key(lease.donor_id or "", lease.plane or "") if known else ""
    address = canonical(lease.donor)
    return Held(address, lease.size_bytes, lease.machine or donors.machine_at(address), donor)


def attach(book: Book, address: str, size_bytes: int) -> LeaseRecord:
    """Borrow ``size_bytes`` more from a donor, or from `THIS_HOST`, and let the pager use the memory.

    Raises:
        DonorTooSmall, DonorError: the donor refuses.
        GhostboxError: the pager refuses; the lease is given back.
    """
    address = next((each.donor for each in book.record.leases if _spelt_alike(each.donor, address)), address)
    lease = LeaseRecord(address, lease_name(book.record.name), size_bytes)
    book.save(replace(book.record, leases=(*book.record.leases, lease)))
    try:
        lease = borrow(book, lease)
        put(book, lease)
        network.write_rules(book.record, book.files)
        assert lease.nbd_uri is not None
        pager.add_donor(book.files.pager_control, lease.nbd_uri)
    except BaseException as err:
        _give_back(book, lease)
        if isinstance(err, ControlError):
            hint = f"ghostbox recover --restart {book.record.name}" if err.code == "too-many" else None
            raise GhostboxError(f"the pager cannot use donor {address}", why=err.message, hint=hint) from err
        raise
    _record_donor(book, address)
    text = f"{address} lends {format_bytes(size_bytes)} more"
    events.append(book.files, "donor-added", text, donor=lease.nbd_uri)
    return lease


def add(book: Book, address: str, size_bytes: int | None, *, more: bool = False) -> LeaseRecord:
    """Add a donor: borrow ``size_bytes``, or what is missing, or as much as the other donors lend on average.

    Args:
        book: the VM's record.
        address: of the donor's control API.
        size_bytes: how much to borrow; None chooses.
        more: borrow more from a donor that the VM uses already.

    Raises:
        Refused: the VM uses the donor already, under this or another address, and not ``more``.
        DonorError: the donor does not answer, is draining or has no free memory.
        GhostboxError: see `attach`.
    """
    record = book.record
    [offer] = donors.query([address])
    found = status(book)
    used = _check_unused(record, offer, address, found, more=more)
    address = used or address
    _note_drained(book, address, offer, drained=False)
    if size_bytes is not None:
        return attach(book, address, size_bytes)
    if offer.draining or not offer.free_bytes:
        why = "it is draining" if offer.draining else "all of it is lent"
        raise DonorError(f"donor {address} has no memory free", why=why, hint="ghostbox donor list " + address)
    lent = held(record, found)
    total = sum(each.size_bytes for each in lent)
    extent, pool = _pool(record)
    wanted = total // max(len({donor_of(each) for each in lent}), 1)
    wanted = max(wanted, record.pager.replicas * pool - total if record.pager else 0, extent)
    return attach(book, address, min(wanted, offer.free_bytes, pool) // extent * extent)


def _check_unused(record: Record, offer: DonorStatus, address: str, found: PagerStatus, *, more: bool) -> str | None:
    """Return the address under which the VM uses a donor already, to borrow more; None if the VM does not use it.

    Raises:
        Refused: the VM uses the donor and not ``more``, or is draining it.
    """
    by_uri = states(found)
    used = [lease for lease in lent_by(record, offer, address) if lease.nbd_uri in by_uri]
    used = [lease for lease in used if by_uri[str(lease.nbd_uri)].state not in ("removed", "lost")]
    if not used:
        return None
    name = used[0].donor
    known_as = "" if _spelt_alike(name, address) else f", as {name}"
    total = format_bytes(sum(lease.size_bytes for lease in used))
    if any(by_uri[str(lease.nbd_uri)].state in LEAVING for lease in used):
        raise Refused(
            f"VM '{record.name}' is moving away from donor {address}{known_as}",
            hint=f"to use it after all: ghostbox donor keep {name} --vm {record.name}",
        )
    if not more:
        raise Refused(
            f"VM '{record.name}' uses donor {address} already{known_as}: it lends {total}",
            hint=f"to borrow more from it: ghostbox donor add {name} --vm {record.name} --more",
        )
    return name


def drain(book: Book, address: str, *, to_host: bool = False, asked: bool = False) -> Drain:
    """Begin to move all that a donor holds to the others; borrow there, or from this host, what room is missing.

    ``asked``: the donor has asked for the drain, and may take that back.

    Raises:
        NotFound: the VM has nothing from this donor.
        Refused: the content does not fit elsewhere; nothing has changed.
        GhostboxError: a lease cannot be made, or the pager refuses.
    """
    leases = leases_at(book.record, address)
    address = leases[0].donor
    added = make_room(book, leases, address, to_host=to_host)
    begun: list[str] = []
    n_bytes = 0
    _note_asked(book, address, asked=asked)
    if not asked:
        _note_drained(book, address, leases[0], drained=True)
    try:
        for lease in leases:
            assert lease.nbd_uri is not None
            n_bytes += pager.drain_donor(book.files.pager_control, lease.nbd_uri)
            begun.append(lease.nbd_uri)
    except ControlError as err:
        for uri in begun:
            pager.keep_donor(book.files.pager_control, uri)
        _note_asked(book, address, asked=False)
        _note_drained(book, address, leases[0], drained=False)
        _take_back(book, added)
        raise _does_not_fit(book, address, err.message, to_host=to_host) from err
    text = f"{format_bytes(n_bytes)} move from {address} to the others"
    events.append(book.files, "drain-begun", text, donor=leases[0].nbd_uri)
    return Drain(address, n_bytes, added)


def keep(book: Book, address: str) -> None:
    """Call a drain off: extents that have moved stay where they are, and the VM uses the donor again.

    Raises:
        NotFound: the VM has nothing from this donor.
    """
    leases = leases_at(book.record, address)
    address = leases[0].donor
    for lease in leases:
        assert lease.nbd_uri is not None
        pager.keep_donor(book.files.pager_control, lease.nbd_uri)
    _note_asked(book, address, asked=False)
    _note_drained(book, address, leases[0], drained=False)
    events.append(book.files, "drain-ended", f"{address} is kept", donor=address)


def make_room(
    book: Book, leaving: Sequence[LeaseRecord] = (), address: str | None = None, *, to_host: bool = False
) -> tuple[LeaseRecord, ...]:
    """Borrow what the pool lacks without the leases in ``leaving`` and the donors that are gone; return the new leases.

    Raises:
        Refused: the donors together have too little; nothing has changed.
    """
    record = book.record
    assert record.pager is not None
    have = held(record, status(book), {lease.nbd_uri or "" for lease in leaving})
    where = [address] if address is not None else []
    own = [Offer(THIS_HOST, host_memory.free_bytes(), machine_digest())]
    offered = own if to_host else offers(record, without=where)
    try:
        shares = shares_of(record.pager, offered, have)
    except Refused as err:
        if address is None:
            raise
        raise _does_not_fit(book, address, f"{err.message}: {err.why}" if err.why else err.message, to_host) from err
    made: list[LeaseRecord] = []
    try:
        for share in shares:
            donor = THIS_HOST if to_host else share.address
            made.append(attach(book, donor, share.size_bytes))
    except BaseException:
        _take_back(book, made)
        raise
    return tuple(made)


def offers(record: Record, *, without: Collection[str] = ()) -> list[Offer]:
    """Ask the donors that the VM may borrow from for their free memory; a donor that does not answer has none.

    Donors that the user drained are left out, and so are the donors in ``without``, under any of their addresses.
    """
    left_out = {THIS_HOST, *map(canonical, without)}
    names = {canonical(address): None for address in (*record.donors, *(lease.donor for lease in record.leases))}
    left = [lease for lease in record.leases if lease.donor != THIS_HOST and canonical(lease.donor) in left_out]
    found = donors.survey([address for address in names if address not in left_out], timeout_s=_ASK_TIMEOUT_S)
    offered = [
        donors.offer_of(item.address, item.status)
        for item in found
        if item.status is None
        or not (
            is_drained(record, item.status, item.address)
            or any(_is_lender(lease, item.status, item.address) for lease in left)
        )
    ]
    return distinct(offered)


def is_drained(record: Record, status: DonorStatus, address: str) -> bool:
    """Tell whether the user has drained the donor that answers at an address, so that nothing is borrowed there."""
    seen = KnownDonor(address, status.id, status.name, status.machine)
    return any(known_donors.is_same(each, seen) for each in record.drained)


def finish_drains(book: Book) -> None:
    """Let the pager remove donors that leave, or lost their memory, and hold nothing any more; end their leases.

    The lease of a donor that does not answer stays in the record; `down` tries to end it again.
    """
    leases = {lease.nbd_uri: lease for lease in book.record.leases}
    for uri, donor in states(status(book)).items():
        if not is_empty(donor):
            continue
        lease = leases.get(uri)
        if donor.state != "removed":
            try:
                pager.remove_donor(book.files.pager_control, uri)
            except ControlError as err:
                _log.debug("%s is not removed yet: %s", uri, err.message)
                continue
            text = f"{uri if lease is None else lease.donor} holds nothing of this VM any more"
            events.append(book.files, "donor-removed", text, donor=uri)
        if lease is not None:
            _note_asked(book, lease.donor, asked=False)
            _give_back(book, lease, level=logging.DEBUG)


def end_lost_leases(book: Book) -> None:
    """End the leases of donors that came back without their content: the VM has no use for that memory."""
    by_uri = states(status(book))
    for lease in book.record.leases:
        donor = by_uri.get(lease.nbd_uri or "")
        if donor is not None and donor.state == "lost" and not donor.backup:
            _give_back(book, lease, level=logging.DEBUG)


def _pool(record: Record) -> tuple[int, int]:
    """Return the bytes of an extent and of the pool."""
    if record.pager is None:
        raise Refused(
            f"VM '{record.name}' was started by an older version", hint=f"ghostbox down {record.name}, then up"
        )
    return record.pager.extent_bytes, record.pager.pool_bytes


def borrow(book: Book, lease: LeaseRecord) -> LeaseRecord:
    """Make a lease that is in the record; return its record with what the donor has answered.

    Raises:
        DonorTooSmall, DonorError: the donor refuses.
        Refused, ProgramError: this host cannot lend the memory (see `host_memory.start`).
    """
    if lease.donor == THIS_HOST:
        return replace(lease, nbd_uri=host_memory.start(book.files, lease))
    holder = Holder(host_name(), book.record.name)
    [made] = donors.acquire([Assignment(lease.donor, lease.name, lease.size_bytes, holder)])
    lease_keys.add(book.files, [made])
    return as_made(lease, made, book.files.lease_keys)


def as_made(lease: LeaseRecord, made: Lease, keys: Path | None = None) -> LeaseRecord:
    """Return the record of a lease with what the donor's answer adds; ``keys`` is the file that has its key, if any."""
    return replace(
        lease,
        nbd_uri=donors.nbd_uri(lease.donor, made, keys),
        donor_name=made.donor_name,
        donor_id=made.donor_id or None,
        incarnation=made.incarnation,
        plane=made.donor_incarnation,
        machine=made.donor_machine or None,
    )


def put(book: Book, lease: LeaseRecord) -> None:
    """Replace a lease in the record."""
    leases = tuple(lease if each.name == lease.name else each for each in book.record.leases)
    book.save(replace(book.record, leases=leases))


def _record_donor(book: Book, address: str) -> None:
    if address != THIS_HOST and not any(same_donor(address, each) for each in book.record.donors):
        book.save(replace(book.record, donors=(*book.record.donors, address)))


def use_again(book: Book, addresses: Sequence[str]) -> None:
    """Allow borrowing again from those donors that the user names now and had drained before."""
    if book.found is None or not book.record.drained:
        return
    found = [(item.address, item.status) for item in donors.survey(addresses) if item.status is not None]
    named = [KnownDonor(address, status.id, status.name, status.machine) for address, status in found]
    kept = tuple(each for each in book.record.drained if not any(known_donors.is_same(each, donor) for donor in named))
    if kept != book.record.drained:
        book.save(replace(book.record, drained=kept))


def _note_drained(book: Book, address: str, donor: LeaseRecord | DonorStatus, *, drained: bool) -> None:
    """Record whether the user has drained a donor, so that nothing is borrowed there until the user names it."""
    if address == THIS_HOST:
        return
    if isinstance(donor, LeaseRecord):
        seen = KnownDonor(canonical(address), donor.donor_id or "", donor.donor_name or "", donor.machine or "")
    else:
        seen = KnownDonor(canonical(address), donor.id, donor.name, donor.machine)
    others = tuple(each for each in book.record.drained if not known_donors.is_same(each, seen))
    book.save(replace(book.record, drained=(*others, seen) if drained else others))


def _note_asked(book: Book, address: str, *, asked: bool) -> None:
    """Record whether the donor has asked for a drain, which the next supervisor must know, too."""
    others = tuple(each for each in book.record.asked_to if not same_donor(each, address))
    book.save(replace(book.record, asked_to=(*others, address) if asked else others))


def _give_back(book: Book, lease: LeaseRecord, *, level: int = logging.WARNING) -> None:
    try:
        cleanup.release(book, lease.name)
    except GhostboxError as err:
        _log.log(level, "%s", err.message)


def _take_back(book: Book, leases: Sequence[LeaseRecord]) -> None:
    """Undo `attach` by a drain: nothing is on the new memory yet, or little."""
    for lease in leases:
        assert lease.nbd_uri is not None
        try:
            pager.drain_donor(book.files.pager_control, lease.nbd_uri)
        except ControlError as err:
            _log.warning("%s is kept: %s", lease.nbd_uri, err.message)


def _does_not_fit(book: Book, address: str, why: str, to_host: bool) -> Refused:
    name = book.record.name
    hint = f"add one first: ghostbox donor add ADDRESS --vm {name}"
    if not to_host:
        hint += f"; or move it to this host: ghostbox donor drain {address} --vm {name} --to-host"
    if book.record.drained:
        left = book.record.drained[0].address
        hint = f"ghostbox donor add {left} --vm {name} uses that drained donor again; or {hint}"
    return Refused(f"what donor {address} holds does not fit on the others", why=why, hint=hint)
