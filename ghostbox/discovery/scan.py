# SPDX-License-Identifier: MIT
"""Find the donors that this host can reach: by multicast DNS on its interfaces, and at addresses that are given.

    interfaces ─► announcements ─┐
                 given addresses ─┴─► each address: round trip, certificate, status ─► one row for each donor ─► doubts

An announcement is only a claim. What is shown of a donor is what it showed at its address, as far as it showed
anything; `doubts` compares the two, and both with the donors that this host is paired with.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from ghostbox.discovery import browse, doubts, interfaces, probe
from ghostbox.discovery.browse import Heard
from ghostbox.discovery.found import Found
from ghostbox.discovery.interfaces import Interface
from ghostbox.donors import trust
from ghostbox.donors.address import Address, parse_address
from ghostbox.donors.client import DonorClient, DonorStatus
from ghostbox.donors.pairings import Pairing
from ghostbox.donors.trust import Means
from ghostbox.errors import GhostboxError, NotFound, Refused

_CONNECT_TIMEOUT_S = 2.0
_ANSWER_TIMEOUT_S = 3.0
_MAX_THREADS = 16
_MOST_FAULTS = 16


@dataclass(frozen=True)
class Looked:
    """Holds an interface, and why it was left out; ``skipped`` is empty if donors were asked for on it."""

    interface: Interface
    skipped: str


@dataclass(frozen=True)
class Fault:
    """Holds an announcement of the donors' service that cannot be used, and why. ``instance`` is printable."""

    instance: str
    why: str


@dataclass(frozen=True)
class Result:
    """Holds what a scan found."""

    interfaces: tuple[Looked, ...]
    donors: tuple[Found, ...]
    faults: tuple[Fault, ...]


@dataclass
class _Candidate:
    """Is a place to look at: an announcement, or an address that was given. ``seen`` is filled in by threads."""

    addresses: tuple[Address, ...]
    heard: Heard | None = None
    trips: dict[Address, float] = field(default_factory=dict)
    failure: str = ""


def choose(names: Sequence[str], found: Sequence[Interface]) -> list[Looked]:
    """Return each interface, and whether donors are asked for on it.

    Args:
        names: the interfaces that the user named, which are used whatever is behind them; none: all that lead outward.
        found: all interfaces of the machine.

    Raises:
        NotFound: there is no such interface.
        Refused: nothing can be asked over an interface that was named.
    """
    by_name = {each.name: each for each in found}
    for name in names:
        if name not in by_name:
            raise NotFound(f"this machine has no interface '{name}'", hint=f"it has: {', '.join(by_name)}")
        if why := interfaces.why_unusable(by_name[name]):
            raise Refused(f"nothing can be asked on interface {name}: {why}", hint="ip -brief address shows all")
    if names:
        return [Looked(each, "" if each.name in names else "another was named") for each in found]
    return [Looked(each, interfaces.why_skipped(each, found)) for each in found]


def scan(names: Sequence[str], given: Sequence[str], known: Sequence[Pairing], timeout_s: float) -> Result:
    """Look for donors.

    Args:
        names: interfaces to use; none: those that lead out of this machine.
        given: addresses that are tried besides (``host``, ``host:port``, an IPv6 address with or without brackets).
        known: the donors that this host is paired with.
        timeout_s: how long to wait for announcements.

    Raises:
        UsageError: an address cannot be read.
        NotFound: there is no such interface.
        GhostboxError: multicast DNS cannot be used on this machine.
    """
    addresses = [_address(each) for each in given]
    looked = choose(names, interfaces.find())
    used = [each.interface for each in looked if not each.skipped]
    heard = browse.listen(used, timeout_s) if used else []
    faults = [Fault(each.instance, _fault(each)) for each in heard if _fault(each)]
    candidates = [_Candidate(each.addresses, each) for each in heard if not _fault(each)]
    candidates += [_Candidate((each,)) for each in addresses]
    rows = doubts.judged(merged(_look_at_all(candidates, known)), known)
    return Result(tuple(looked), tuple(rows), tuple(faults[:_MOST_FAULTS]))


def _address(text: str) -> Address:
    bare = text.count(":") > 1 and "[" not in text
    return parse_address(f"[{text}]" if bare else text)


def _fault(heard: Heard) -> str:
    """Return why an announcement cannot be used, or nothing."""
    if heard.said is None:
        return f"it is no announcement of a donor: {heard.fault}"
    if heard.addresses:
        return ""
    if heard.elsewhere:
        return f"its address {heard.elsewhere[0]} is in no network of the interfaces that were asked"
    return "it has no address"


def _look_at_all(candidates: Sequence[_Candidate], known: Sequence[Pairing]) -> list[Found]:
    with ThreadPoolExecutor(_MAX_THREADS) as pool:
        for _ in pool.map(_measure, *zip(*[(c, a) for c in candidates for a in c.addresses], strict=True)):
            pass
        return list(pool.map(lambda each: _look_at(each, known), candidates))


def _measure(candidate: _Candidate, address: Address) -> None:
    said = candidate.heard.said if candidate.heard else None
    tls = bool(said.fingerprint) if said else trust.means_of(str(address)) in (Means.TLS, None)
    try:
        candidate.trips[address] = probe.round_trip_us(address, _CONNECT_TIMEOUT_S, tls=tls)
    except OSError as err:
        candidate.failure = (err.strerror or str(err) or "no answer in time").lower()


def _look_at(candidate: _Candidate, known: Sequence[Pairing]) -> Found:
    said = candidate.heard.said if candidate.heard else None
    instance = candidate.heard.instance if candidate.heard else ""
    best = min(candidate.trips, key=lambda each: candidate.trips[each], default=None)
    row = Found(
        name=said.name if said else "",
        id=said.id if said else "",
        address=str(best or candidate.addresses[0]),
        also=tuple(str(each) for each in candidate.addresses if each in candidate.trips and each != best),
        announced=said,
        instance=instance,
        version=said.version if said else "",
    )
    if best is None:
        return replace(row, unreached=candidate.failure)
    row = replace(row, round_trip_us=round(candidate.trips[best], 1))
    if (said is None or not said.fingerprint) and trust.means_of(row.address) is not Means.TLS:
        row = _with_status(row, _status(row.address))
        if row.status is not None or said is not None:
            return row
    shown = probe.shown_by(best, _ANSWER_TIMEOUT_S)
    if shown is None:
        return row
    row = replace(row, fingerprint=shown.fingerprint, version=shown.version or row.version, refusal=None)
    pairing = next((each for each in known if each.fingerprint == shown.fingerprint), None)
    return row if pairing is None else _with_status(replace(row, paired=True), _status(row.address, pairing))


def _status(address: str, pairing: Pairing | None = None) -> DonorStatus | GhostboxError:
    """Ask a donor for its status, over TLS if it is paired."""
    channel = None if pairing is None else trust.to_paired(pairing)
    times = (_ANSWER_TIMEOUT_S, _CONNECT_TIMEOUT_S)
    try:
        with DonorClient(address, timeout_s=times[0], connect_timeout_s=times[1], channel=channel) as client:
            return client.status()
    except GhostboxError as err:
        return err


def _with_status(row: Found, status: DonorStatus | GhostboxError) -> Found:
    if isinstance(status, GhostboxError):
        return replace(row, refusal=status)
    return replace(row, name=status.name, id=status.id, version=status.version, status=status)


def merged(rows: Sequence[Found]) -> list[Found]:
    """Return the rows with one for each donor: a donor that was found at several addresses is one."""
    found: list[Found] = []
    for row in rows:
        index = next((at for at, each in enumerate(found) if each.is_same(row)), None)
        if index is None:
            found.append(row)
        else:
            found[index] = found[index].joined(row)
    return found
