# SPDX-License-Identifier: MIT
"""The control API of one donor, from the host's side. The only importer of httpx.

What can go wrong, and as what it is raised:

    nobody answers, or something that is no donor       NoAnswer
    the donor refuses                                   DonorError, with the donor's own message and hint
        no such lease                                   NotFound
        lease name taken                                LeaseExists
        more than it has free                           DonorTooSmall
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from ghostbox.errors import DonorError, DonorTooSmall, GhostboxError, LeaseExists, NotFound, UsageError

CONTROL_PORT = 10810
_NBD_GREETING = b"NBDMAGIC"  # NBD specification, "fixed newstyle negotiation"
_DONOR_HEADER = "GhostBox-Donor"
_FOREIGN_API = "it does not speak the donors' API"
_PROBE_TIMEOUT_S = 1.0
_ADDRESS = re.compile(r"(?:\[(?P<six>[0-9A-Fa-f:.]+(?:%[\w.-]+)?)\]|(?P<host>[A-Za-z0-9._-]+))(?::(?P<port>\d{1,5}))?")


class NoAnswer(DonorError):
    """Nobody answers at a donor's address, or something that is no donor; whether a request was heard is unknown."""


@dataclass(frozen=True)
class Address:
    """Where a donor's control API is."""

    host: str
    port: int = CONTROL_PORT

    def __str__(self) -> str:
        return f"{self.url_host}:{self.port}"

    @property
    def url_host(self) -> str:
        """The host as people and httpx write it: IPv6 addresses in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def uri_host(self) -> str:
        """The host as an URI has it: a link-local address's interface behind ``%25`` (RFC 6874)."""
        return self.url_host.replace("%", "%25")


@dataclass(frozen=True)
class Holder:
    """Who uses a lease: the host, and the VM on it."""

    host: str
    vm: str

    def __str__(self) -> str:
        return f"{self.host}/{self.vm}"


@dataclass(frozen=True)
class DonorStatus:
    """A donor's account of itself. ``address`` is where it was asked; ``leases`` counts them.

    What an older donor does not tell has a default; ``id`` and ``machine`` are then empty.
    """

    address: str
    name: str
    version: str
    incarnation: str
    nbd_port: int
    size_bytes: int
    exported_bytes: int
    free_bytes: int
    resident_bytes: int
    leases: int
    draining: bool
    drain_causes: tuple[str, ...] = ()
    memory_pressure: float | None = None
    id: str = ""
    machine: str = ""

    @property
    def state(self) -> str:
        """``up``, or ``draining`` with the reasons that the donor gives: asked, ending, pressure."""
        reasons = f" ({', '.join(self.drain_causes)})" if self.drain_causes else ""
        return f"draining{reasons}" if self.draining else "up"


@dataclass(frozen=True)
class Lease:
    """A lease on the donor at ``donor_address``; another ``incarnation`` is other memory.

    ``donor_name`` and ``donor_id`` are who that was, ``donor_incarnation`` is its process that holds the memory, and
    ``donor_machine`` where it runs; a donor of an older version tells no id and no machine.
    """

    donor_address: str
    donor_name: str
    donor_id: str
    donor_incarnation: str
    donor_machine: str
    nbd_port: int
    name: str
    export: str
    size_bytes: int
    resident_bytes: int
    incarnation: str
    holder: Holder
    created_at: datetime
    connections: int
    idle_s: float


@dataclass(frozen=True)
class Sighting:
    """What the server at a donor's address says of a lease: its incarnation, None if it has no such lease.

    ``donor_id`` tells which server that is; empty if it does not say.
    """

    donor_id: str
    incarnation: str | None


def parse_address(text: str) -> Address:
    """Return the address that ``host``, ``host:port`` or ``[IPv6]:port`` names; the port defaults to 10810.

    Raises:
        UsageError: it is none of these.
    """
    match = _ADDRESS.fullmatch(text.strip())
    port = CONTROL_PORT if match is None or match["port"] is None else int(match["port"])
    if match is None or not 1 <= port <= 65535:
        hint = "write HOST, HOST:PORT or [IPV6]:PORT"
        if text.count(":") > 1 and "[" not in text:
            hint = f"write an IPv6 address in brackets: [{text}]"
        raise UsageError(f"'{text}' is not the address of a donor", hint=hint)
    return Address(match["six"] or match["host"], port)


def printable(text: str) -> str:
    """Return text from outside as a terminal may have it: with question marks for what it would obey (escapes)."""
    return "".join(each if each.isprintable() else "?" for each in text)


def host_name() -> str:
    """Return what this machine is called, for donors' owners; a name that no donor takes is replaced."""
    name = socket.gethostname().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return printable(name.strip())[:253] or "unnamed"


class DonorClient:
    """Talks to one donor; use it as a context manager. Not for several threads at once."""

    def __init__(self, address: str, *, timeout_s: float = 15.0, connect_timeout_s: float = 5.0) -> None:
        """Prepare to talk to ``address`` (``host[:port]``); nothing is sent yet.

        Raises:
            UsageError: ``address`` cannot be read.
        """
        self.address = parse_address(address)
        self._http = httpx.Client(
            base_url=f"http://{self.address}",
            timeout=httpx.Timeout(timeout_s, connect=connect_timeout_s),
            trust_env=False,  # a web proxy has no business between a host and its donors
        )
        self._seen: DonorStatus | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def status(self) -> DonorStatus:
        """Return the donor's sizes and state."""
        return self._status(self._request("GET", "/v1/status"))

    def drain(self) -> DonorStatus:
        """Ask the donor to give no new leases and to say that it drains, until ``keep``; returns its state then."""
        return self._status(self._request("PUT", "/v1/drain"))

    def keep(self) -> DonorStatus:
        """Take back what ``drain`` asked for; a donor may go on draining for other reasons."""
        return self._status(self._request("DELETE", "/v1/drain"))

    def leases(self) -> list[Lease]:
        """Return all leases of the donor, whoever holds them."""
        answer = self._request("GET", "/v1/leases")
        if not isinstance(answer, list):
            raise self._no_donor(_FOREIGN_API)
        return [self._lease(item) for item in answer]

    def lease(self, name: str) -> Lease:
        """Return one lease.

        Raises:
            NotFound: no such lease, or its memory was lost.
        """
        return self._lease(self._request("GET", _lease_path(name)))

    def look_for(self, name: str) -> Sighting:
        """Ask whoever answers at the address for a lease, and who that is: the one who lent it, or another."""
        answer = self._send("GET", _lease_path(name))
        donor_id = answer.headers.get(_DONOR_HEADER, "")
        try:
            return Sighting(donor_id, self._lease(self._document(answer)).incarnation)
        except NotFound:
            return Sighting(donor_id, None)

    def create_lease(self, name: str, size_bytes: int, holder: Holder) -> Lease:
        """Make a lease; its export reads as zeroes.

        Raises:
            LeaseExists: the name is taken.
            DonorTooSmall: less is free.
        """
        body = {"name": name, "size_bytes": size_bytes, "holder": {"host": holder.host, "vm": holder.vm}}
        self._donor()  # before anything is made that would have to be undone
        return self._lease(self._request("POST", "/v1/leases", json=body))

    def release_lease(self, name: str, *, force: bool = False) -> None:
        """End a lease; its content is gone.

        Raises:
            NotFound: no such lease.
            DonorError: connections are open and not ``force``.
        """
        self._request("DELETE", _lease_path(name), params={"force": "true" if force else "false"})

    def _status(self, document: Any) -> DonorStatus:
        fields = self._dict(document)
        try:
            known = _known(DonorStatus, fields)
            known["drain_causes"] = tuple(known.get("drain_causes", ()))
            known["name"] = printable(str(known["name"]))
            status = DonorStatus(address=str(self.address), **known)
        except (KeyError, TypeError) as err:
            raise self._no_donor(f"{_FOREIGN_API}: {err}") from err
        self._seen = status
        return status

    def _request(self, method: str, path: str, **options: Any) -> Any:
        return self._document(self._send(method, path, **options))

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return self._http.request(method, path, **options)
        except httpx.TransportError as err:
            raise self._unanswered(err) from err

    def _document(self, answer: httpx.Response) -> Any:
        if answer.status_code == 204:
            return None
        try:
            document = answer.json()
        except ValueError as err:
            raise self._no_donor(_describe_server(answer)) from err
        if answer.is_success:
            return document
        raise self._refusal(answer, document)

    def _refusal(self, answer: httpx.Response, document: Any) -> GhostboxError:
        """Return the error that the donor's answer stands for."""
        error = document.get("error") if isinstance(document, dict) else None
        if not isinstance(error, dict) or not {"code", "message"} <= error.keys():
            return self._no_donor(_describe_server(answer))
        code, hint = error["code"], error.get("hint")
        message = f"donor {self.address}: {error['message']}"
        if code == "exists":
            return LeaseExists(message, hint=hint)
        if code == "too-small":
            return DonorTooSmall(message, hint=hint)
        if code == "not-found":
            return NotFound(message, hint=hint or f"ghostbox donor leases {self.address}")
        if code == "unavailable":
            return NoAnswer(message, hint=hint)
        return DonorError(message, hint=hint)

    def _unanswered(self, err: httpx.TransportError) -> DonorError:
        """Return the error for a request that got no HTTP answer, with what can be found out about the reason."""
        if _greets_as_nbd(self.address):
            return NoAnswer(
                f"{self.address} is an NBD server, not a donor's control API",
                hint=f"give the control port, usually {CONTROL_PORT}: {self.address.url_host}:{CONTROL_PORT}",
            )
        if isinstance(err, httpx.ConnectTimeout):
            return self._unreachable("no answer in time: is the machine on, does a firewall drop the port?")
        if isinstance(err, httpx.TimeoutException):
            return NoAnswer(
                f"donor {self.address} took the connection and did not answer in time",
                hint="see whether the memserver there hangs: its log, or ghostbox memserver's terminal",
            )
        if isinstance(err, httpx.ConnectError):
            return self._unreachable(_system_reason(err))
        return self._no_donor("it does not speak HTTP")

    def _unreachable(self, why: str) -> NoAnswer:
        return NoAnswer(
            f"cannot reach donor {self.address}",
            why=why,
            hint="start one there: ghostbox memserver, with --bind on an address that this host reaches",
        )

    def _no_donor(self, why: str) -> NoAnswer:
        return NoAnswer(
            f"something answers at {self.address}, but it is not a GhostBox donor",
            why=why,
            hint=f"check the port: a donor's control API is usually at {CONTROL_PORT}",
        )

    def _dict(self, document: Any) -> dict[str, Any]:
        if not isinstance(document, dict):
            raise self._no_donor(_FOREIGN_API)
        return document

    def _lease(self, document: Any) -> Lease:
        fields = self._dict(document)
        try:
            donor = self._donor()
            more: dict[str, Any] = {
                "donor_address": str(self.address),
                "donor_name": donor.name,
                "donor_id": donor.id,
                "donor_incarnation": donor.incarnation,
                "donor_machine": donor.machine,
                "nbd_port": donor.nbd_port,
                "holder": Holder(**{key: printable(str(value)) for key, value in fields["holder"].items()}),
                "created_at": datetime.fromisoformat(fields["created_at"]),
            }
            return Lease(**_known(Lease, fields), **more)
        except (AttributeError, KeyError, TypeError, ValueError) as err:
            raise self._no_donor(f"{_FOREIGN_API}: {err}") from err

    def _donor(self) -> DonorStatus:
        return self.status() if self._seen is None else self._seen


def _lease_path(name: str) -> str:
    return f"/v1/leases/{quote(name, safe='')}"


def _known(kind: type[DonorStatus] | type[Lease], fields: dict[str, Any]) -> dict[str, Any]:
    """Return those of an answer's fields that can be taken as they are; a newer donor may send more."""
    of_donor = {"donor_address", "donor_name", "donor_id", "donor_incarnation", "donor_machine", "nbd_port"}
    of_lease = {*of_donor, "holder", "created_at"}
    made_here = of_lease if kind is Lease else {"address"}
    return {key: value for key, value in fields.items() if key in kind.__dataclass_fields__.keys() - made_here}


def _describe_server(answer: httpx.Response) -> str:
    server = answer.headers.get("server")
    return f"an HTTP server{f' ({server})' if server else ''} that answers {answer.status_code}"


def _system_reason(err: httpx.ConnectError) -> str:
    """Return what the system said about a failed connection: "Connection refused", "Name or service not known"."""
    cause: BaseException | None = err
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return f"the name cannot be resolved: {cause.strerror}"
        if isinstance(cause, OSError) and cause.strerror:
            refused = isinstance(cause, ConnectionRefusedError)
            return "connection refused: nothing listens on that port" if refused else cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return str(err)


def _greets_as_nbd(address: Address) -> bool:
    """Tell whether an NBD server listens there: it speaks first."""
    try:
        with socket.create_connection((address.host, address.port), timeout=_PROBE_TIMEOUT_S) as sock:
            return sock.recv(len(_NBD_GREETING), socket.MSG_WAITALL) == _NBD_GREETING
    except OSError:
        return False
