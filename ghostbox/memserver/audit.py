# SPDX-License-Identifier: MIT
"""Write and read a donor's audit log: leases, refusals, limits that were hit, and when. Each line is a JSON object.

The log is beside the lease records, and only its owner may read it. One write(2) appends a line, so that a donor that
is killed at any instruction leaves whole lines (a reader skips a line that a full disk has cut off). A full file is
renamed, and the last few full files are kept. When the log cannot be written, requests go on: the donor reports this
once, and again after a line was written in between.

Nobody can push out what others did. There are three series of files, which a reader merges by time: what anybody who
reaches the donor can cause (`_BY_ANYBODY`, in ``audit-refusals.jsonl``), what happens to leases
(``audit-leases.jsonl``), and the rest. Of the first, a client (an IPv4 address, or an IPv6 network of 64 bits, which
one machine may use at will) gets one line in ten seconds for each kind; the others are counted, and the sums written.

A donor may be killed after it has recorded a lease and before it has written the line. When it starts, it compares its
records with the log, and writes what is missing (`audit_gaps`). Lines of an intent, before
each change, would be twice as many and would need the same comparison to tell what became of the last one; and the
comparison also mends what a full disk has swallowed.

Names come from outside and prove no identity: ``host`` and ``vm`` are the client's own statement, ``address`` is where
its connection comes from, ``owner`` if that is the owner's socket. A ``client`` has shown its credential.
"""

from __future__ import annotations

import errno
import heapq
import ipaddress
import json
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from ghostbox.donors.client import printable
from ghostbox.donors.models import Holder
from ghostbox.errors import GhostboxError, NotFound, hint_for
from ghostbox.paths import Paths, open_private
from ghostbox.units import format_bytes

_log = logging.getLogger(__name__)

FILE_BYTES = 1 << 20
"""The size of a full file."""
KEPT_FILES = 4
"""The number of full files that are kept beside the current file."""
_REPEAT_S = 10.0
_SUMMARY_S = 60.0
_REMEMBERED = 256
_NETWORK_BITS = 64
ASKED = "asked"
"""The reason of a drain that the donor's owner, or a client, asked for."""


class Event(StrEnum):
    """Names an event of the log."""

    STARTED = "started"
    ENDED = "ended"
    LEASE_MADE = "lease-made"
    LEASE_REFUSED = "lease-refused"
    LEASE_ENDED = "lease-ended"
    LEASE_LOST = "lease-lost"  # the data plane died, or this donor ended with leases held
    LIMIT_HIT = "limit-hit"
    REQUEST_REFUSED = "request-refused"
    DRAIN_BEGUN = "drain-begun"
    DRAIN_ENDED = "drain-ended"
    TOKEN_MADE = "token-made"  # noqa: S105 - the name of an event
    TOKEN_REVOKED = "token-revoked"  # noqa: S105 - the name of an event
    PAIRED = "paired"
    PAIRING_ASKED = "pairing-asked"
    PAIRING_APPROVED = "pairing-approved"
    PAIRING_DENIED = "pairing-denied"
    PAIRING_REFUSED = "pairing-refused"
    PAIRING_WITHDRAWN = "pairing-withdrawn"  # a request, by its host
    PAIRING_ENDED = "pairing-ended"  # by the host
    CLIENT_SUSPENDED = "client-suspended"
    CLIENT_RESUMED = "client-resumed"
    CLIENT_REVOKED = "client-revoked"
    CLIENT_SET = "client-set"  # its role, or limits of its own
    ROLE_SET = "role-set"
    ROLE_DELETED = "role-deleted"
    REFUSALS_COUNTED = "refusals-counted"


_BY_ANYBODY = (
    Event.LEASE_REFUSED,
    Event.LIMIT_HIT,
    Event.REQUEST_REFUSED,
    Event.PAIRING_ASKED,
    Event.PAIRING_REFUSED,
    Event.PAIRING_WITHDRAWN,
)
_ABOUT_ONE_LEASE = (Event.LEASE_MADE, Event.LEASE_ENDED, Event.LEASE_LOST)
_OF_LEASES = (*_ABOUT_ONE_LEASE, Event.DRAIN_BEGUN, Event.DRAIN_ENDED)
_OF_CLIENTS = (
    Event.PAIRED,
    Event.PAIRING_APPROVED,
    Event.PAIRING_ENDED,
    Event.CLIENT_SUSPENDED,
    Event.CLIENT_RESUMED,
    Event.CLIENT_REVOKED,
)
_LEASES, _REFUSALS = "leases", "refusals"


@dataclass(frozen=True)
class Entry:
    """Holds one line. ``repeated`` is the number of similar events since the last line that were not written.

    ``client`` is the id of the paired host, which it has proved; ``host`` and ``vm`` are what it says.
    """

    time: str
    event: str
    address: str | None = None
    host: str | None = None
    vm: str | None = None
    lease: str | None = None
    size_bytes: int | None = None
    code: str | None = None
    reason: str | None = None
    repeated: int = 0
    client: str | None = None

    def said(self) -> dict[str, Any]:
        """Return the fields that have a value: these are in a line of the log."""
        return {key: value for key, value in asdict(self).items() if value not in (None, 0)}

    def __str__(self) -> str:
        when = datetime.fromisoformat(self.time).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        size = "" if self.size_bytes is None else format_bytes(self.size_bytes)
        what = ", ".join(filter(None, (self.lease and f"lease {self.lease}", size)))
        holder = self.host and (f"{self.host}/{self.vm}" if self.vm else self.host)
        paired, origin = self.client and f"client {self.client}", self.address and f"from {self.address}"
        who = " ".join(filter(None, (holder, paired, origin)))
        why = ": ".join(filter(None, (self.code, self.reason)))
        counted = not self.repeated or self.event == Event.REFUSALS_COUNTED
        more = "" if counted else f"{self.repeated} more like this since the last line"
        # Hosts choose some of the text: a newline in it must not look like another entry.
        return f"{when}  {self.event:<17}  " + printable("; ".join(filter(None, (what, who, why, more))))


class AuditLog:
    """Writes the log; any thread may use it.

    Args:
        path: the current file; the other series' files, and full files with a number, are beside it.
        file_bytes: the size of a full file.
    """

    def __init__(self, path: Path, *, file_bytes: int = FILE_BYTES) -> None:
        self._path = path
        self._file_bytes = file_bytes
        self._lock = threading.Lock()
        self._silent = False
        self._last: OrderedDict[tuple[str | None, ...], tuple[float, int]] = OrderedDict()
        self._forgotten: dict[str, int] = {}
        self._summarised_at = time.monotonic()

    def note(
        self,
        event: Event,
        *,
        address: str | None = None,
        holder: Holder | None = None,
        client: str | None = None,
        lease: str | None = None,
        size_bytes: int | None = None,
        code: str | None = None,
        reason: str | None = None,
    ) -> None:
        """Write a line. Of refusals and limits that one address causes again and again, write one in ten seconds."""
        host, vm = (None, None) if holder is None else (holder.host, holder.vm or None)
        with self._lock:
            self._summarise(everything=event is Event.ENDED)
            # What the data plane has counted has no address: it is the client's.
            repeated = self._repeated(event, origin(address) if address is not None else client or "", code)
            if repeated is not None:
                self._write(Entry(_now(), event, address, host, vm, lease, size_bytes, code, reason, repeated, client))

    def last_words(self) -> LastWords:
        """Return what the log says last of each lease, of each client, and of the drain that was asked for.

        A log that cannot be read is reported, and counts as one that begins now.
        """
        leases: dict[str, Entry] = {}
        clients: dict[str, Entry] = {}
        drain: Entry | None = None
        try:
            begin = self._begin()
            for entry in read(self._path):
                if entry.event in _ABOUT_ONE_LEASE and entry.lease is not None:
                    leases[entry.lease] = entry
                elif entry.event in _OF_CLIENTS and entry.client is not None:
                    clients[entry.client] = entry
                elif entry.event in (Event.DRAIN_BEGUN, Event.DRAIN_ENDED) and entry.reason == ASKED:
                    drain = entry
        except OSError as err:
            _log.error("the audit log %s cannot be read: %s", self._path, err.strerror)
            begin = _now()
        return LastWords(begin, leases, clients, drain)

    def _begin(self) -> str:
        """Return the time from which on the log has all lines about leases, as far as they were written."""
        leases = _beside(self._path, _LEASES)
        whole = not _numbered(leases, KEPT_FILES).exists()  # no file was removed so far
        oldest = next(read(self._path) if whole else _entries(leases), None)
        return _now() if oldest is None else oldest.time

    def _write(self, entry: Entry) -> None:
        try:
            self._append(_series(self._path, Event(entry.event)), entry)
            self._silent = False
        except OSError as err:
            if not self._silent:
                _log.error("the audit log %s cannot be written: %s", self._path, err.strerror)
            self._silent = True

    def _repeated(self, event: Event, cause: str, code: str | None) -> int | None:
        """Return the number of similar events that were left out, or None if this event is to be left out, too."""
        if event not in _BY_ANYBODY:
            return 0
        what = (event, cause, code)
        now = time.monotonic()
        written_at, left_out = self._last.pop(what, (-_REPEAT_S, 0))
        if now - written_at < _REPEAT_S:
            self._last[what] = (written_at, left_out + 1)
            return None
        self._last[what] = (now, 0)
        while len(self._last) > _REMEMBERED:
            (_, client, _), (_, unsaid) = self._last.popitem(last=False)
            self._count(client, unsaid)
        return left_out

    def _count(self, client: str | None, n_events: int) -> None:
        """Keep a number for the next summary. Of more clients than are remembered, the sum alone is kept."""
        if n_events:
            known = client in self._forgotten or len(self._forgotten) < _REMEMBERED
            name = str(client) if known else "others"
            self._forgotten[name] = self._forgotten.get(name, 0) + n_events

    def _summarise(self, *, everything: bool) -> None:
        """Write how many events were left out and not told of by a later line; once a minute, or at the end."""
        now = time.monotonic()
        if not everything and now - self._summarised_at < _SUMMARY_S:
            return
        self._summarised_at = now
        for what, (written_at, left_out) in list(self._last.items()):
            if everything or now - written_at >= _REPEAT_S:
                self._count(what[1], left_out)
                self._last[what] = (written_at, 0)
        if self._forgotten:
            n_events, n_clients = sum(self._forgotten.values()), len(self._forgotten)
            who = next(iter(self._forgotten)) if n_clients == 1 else f"{n_clients} clients"
            reason = f"{n_events} more refusals and limits, caused by {who}, have no lines of their own"
            self._forgotten.clear()
            self._write(Entry(_now(), Event.REFUSALS_COUNTED, reason=reason, repeated=n_events))

    def _append(self, path: Path, entry: Entry) -> None:
        line = json.dumps(entry.said()).encode() + b"\n"
        size_bytes = path.stat().st_size if path.exists() else 0
        if size_bytes and size_bytes + len(line) > self._file_bytes:
            _rotate(path)
        with open_private(path, append=True) as file:
            text = (b"\n" if _is_cut_off(path) else b"") + line
            if os.write(file.fileno(), text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@dataclass(frozen=True)
class LastWords:
    """Holds the last entry about each lease, by its name, about each client, and about the drain that was asked for.

    ``begin`` is the time of the oldest entry: what was before may have been in files that are gone.
    """

    begin: str
    leases: Mapping[str, Entry]
    clients: Mapping[str, Entry]
    drain: Entry | None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def origin(address: str | None) -> str:
    """Return what one client cannot change at will of the address (``host:port``) that its connection comes from.

    That is an IPv4 address, or the /64 network of an IPv6 address.
    """
    host = (address or "").rpartition(":")[0].strip("[]")
    try:
        found = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(found, ipaddress.IPv4Address) or found.ipv4_mapped is not None:
        return str(found if isinstance(found, ipaddress.IPv4Address) else found.ipv4_mapped)
    return str(ipaddress.ip_network((found, _NETWORK_BITS), strict=False))


def _series(path: Path, event: Event) -> Path:
    """Return the current file for an event."""
    if event in _OF_LEASES:
        return _beside(path, _LEASES)
    return _beside(path, _REFUSALS) if event in (*_BY_ANYBODY, Event.REFUSALS_COUNTED) else path


def _all_series(path: Path) -> tuple[Path, ...]:
    return (path, _beside(path, _LEASES), _beside(path, _REFUSALS))


def _beside(path: Path, series: str) -> Path:
    return path.with_name(f"{path.stem}-{series}{path.suffix}")


def _rotate(path: Path) -> None:
    """Rename the files, the oldest first: after a kill in between, only the oldest file may be missing."""
    for number in range(KEPT_FILES - 1, 0, -1):
        if (full := _numbered(path, number)).exists():
            full.replace(_numbered(path, number + 1))
    path.replace(_numbered(path, 1))


def path(state: Path) -> Path:
    """Return the path of the log of the memserver with this state directory."""
    return state / "audit.jsonl"


def read(path: Path) -> Iterator[Entry]:
    """Yield all entries of the log, the oldest first; a line that is no entry (one that was cut off) is skipped.

    Raises:
        OSError: a file of the log cannot be read.
    """
    return heapq.merge(*map(_entries, _all_series(path)), key=lambda entry: datetime.fromisoformat(entry.time))


def _entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of one series."""
    for file in (*(_numbered(path, number) for number in range(KEPT_FILES, 0, -1)), path):
        if file.exists():
            for line in file.read_bytes().splitlines():
                if (entry := _parsed(line)) is not None:
                    yield entry


def find(name: str, paths: Paths, since: datetime | None) -> list[Entry]:
    """Return the entries of the memserver called ``name``, from ``since`` on.

    Raises:
        NotFound: the memserver has no log; the hint names memservers that have one.
        GhostboxError: the log cannot be read.
    """
    file = path(paths.memserver_state(name))
    try:
        if not any(each.exists() for each in _all_series(file)):
            logs = (
                each for one in _all_series(file) for each in paths.memserver_state("*").parent.glob(f"*/{one.name}")
            )
            others = sorted({each.parent.name for each in logs})
            raise NotFound(
                f"memserver '{name}' has no audit log on this machine",
                hint=f"--name {' or --name '.join(others)}"
                if others
                else "a memserver makes the log on its machine when it starts",
            )
        return [entry for entry in read(file) if since is None or datetime.fromisoformat(entry.time) >= since]
    except OSError as err:
        raise GhostboxError(
            f"cannot read the audit log {file}: {err.strerror}",
            hint=hint_for(err, "only its owner and root may read it"),
        ) from err


def _parsed(line: bytes) -> Entry | None:
    known = {field.name for field in fields(Entry)}
    try:
        said: dict[str, Any] = json.loads(line)
        entry = Entry(**{key: value for key, value in said.items() if key in known})
        return entry if datetime.fromisoformat(entry.time).tzinfo else None
    except (ValueError, TypeError, AttributeError):
        return None


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _is_cut_off(path: Path) -> bool:
    """Tell whether the file's last line lacks its end."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
