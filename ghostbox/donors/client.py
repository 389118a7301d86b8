# SPDX-License-Identifier: MIT
"""Speak the control API of one donor, from the host. Only this imports httpx, where a connection begins.

Failures are raised as:

    no program answers, or one that is no donor         NoAnswer
        the donor that is meant is not, or not paired   Untrusted
    the donor refuses                                   DonorError, with the donor's own message and hint
        no such lease                                   NotFound
        lease name taken                                LeaseExists
        more than it has free                           DonorTooSmall
"""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from ghostbox import __version__
from ghostbox.donors import failures, models, pinning, request_models, trust
from ghostbox.donors.address import CONTROL_PORT, Address, parse_address
from ghostbox.donors.models import Holder
from ghostbox.donors.trust import Channel
from ghostbox.errors import DonorError, GhostboxError, NoAnswer, NotFound, Untrusted
from ghostbox.system import forms
from ghostbox.system.closing import Closing

if TYPE_CHECKING:
    import httpx

__all__ = [
    "CONTROL_PORT",
    "Address",
    "DonorClient",
    "DonorStatus",
    "Lease",
    "NoAnswer",
    "Sighting",
    "host_name",
    "parse_address",
    "printable",
]

_DONOR_HEADER = "GhostBox-Donor"
_FOREIGN_API = "it does not speak the donors' API"
_PROBE_TIMEOUT_S = 1.0
_CLIENT_ID = re.compile(r"[0-9a-f]{16}")
_NONCE = re.compile(r"[0-9a-f]{64}")
_REQUESTS = "/v1/pairing-requests"
_KEY = re.compile(r"(?:[0-9a-f]{2}){16,64}")
_EXPORT = re.compile(models.LEASE_NAME)
_STATUS = TypeAdapter(models.DonorStatus)
_LEASE = TypeAdapter(models.LeaseFields)
_LEASES = TypeAdapter(list[models.LeaseFields])
_VERSION = TypeAdapter(models.VersionAnswer)
_PAIRING = TypeAdapter(models.PairingAnswer)
_ASKED = TypeAdapter(request_models.PairingAsked)
_STATE = TypeAdapter(request_models.PairingState)

T = TypeVar("T")


@dataclass(frozen=True)
class DonorStatus:
    """Holds a donor's status. ``address`` is where the donor was asked; ``leases`` is their number.

    Fields that an older donor does not send have defaults; its ``id`` and ``machine`` are empty. ``role`` and
    ``limits`` are those of this host, if it is paired with the donor.
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
    role: str | None = None
    limits: models.LimitFields | None = None

    @property
    def state(self) -> str:
        """Return ``up``, or ``draining`` with the donor's reasons: asked, ending, pressure."""
        reasons = f" ({', '.join(self.drain_causes)})" if self.drain_causes else ""
        return f"draining{reasons}" if self.draining else "up"


@dataclass(frozen=True)
class Lease:
    """Describes a lease on the donor at ``donor_address``; another ``incarnation`` is other memory.

    ``donor_name`` and ``donor_id`` are the donor that made the lease, ``donor_incarnation`` is its process that holds
    the memory, ``donor_machine`` the machine that runs it; a donor of an older version sends no id and no machine.
    ``tls_psk`` is the key of its export, hexadecimal; None if the export is served without TLS, and in lists.
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
    tls_psk: str | None = field(default=None, repr=False, metadata={"secret": True})


@dataclass(frozen=True)
class Sighting:
    """Holds what the server at a donor's address says of a lease: its incarnation, None if it has no such lease.

    ``donor_id`` identifies that server; it is empty if the server sends none.
    """

    donor_id: str
    incarnation: str | None


def printable(text: str) -> str:
    """Return text from outside with question marks in place of characters that a terminal would obey (escapes)."""
    return "".join(each if each.isprintable() else "?" for each in text)


def status_of(said: models.DonorStatus, address: str) -> DonorStatus:
    """Return what a donor at ``address`` says of itself; its texts hold no control characters."""
    role = None if said.role is None else printable(said.role)
    fields = {**said.model_dump(), "name": printable(said.name), "role": role, "limits": said.limits}
    return DonorStatus(address=address, **{**fields, "drain_causes": tuple(said.drain_causes)})


def host_name() -> str:
    """Return this machine's name, for donors' owners; characters that no donor accepts are replaced."""
    name = socket.gethostname().encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return printable(name.strip())[:253] or "unnamed"


class DonorClient(Closing):
    """Talks to one donor; use it as a context manager. Only one thread may use it."""

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 15.0,
        connect_timeout_s: float = 5.0,
        channel: Channel | None = None,
    ) -> None:
        """Prepare to talk to ``address`` (``host[:port]``); nothing is sent yet.

        Args:
            address: of the control API.
            timeout_s: how long an answer may take.
            connect_timeout_s: how long a connection may take.
            channel: how to talk to the donor; None takes what `trust.channel_to` says.

        Raises:
            UsageError: ``address`` cannot be read.
            Untrusted: this host may not talk to the donor: they are not paired.
        """
        self.address = parse_address(address)
        self.channel = trust.channel_to(self.address) if channel is None else channel
        self._timeout_s, self._connect_timeout_s = timeout_s, connect_timeout_s
        self._http = self._connection("https" if self.channel.is_tls else "http")
        self._seen: DonorStatus | None = None

    def _connection(self, scheme: str) -> httpx.Client:
        import httpx  # noqa: PLC0415 - slow to load

        secret = self.channel.authorization if scheme == "https" else ""
        return httpx.Client(
            base_url=f"{scheme}://{self.address}",
            headers={"Authorization": secret} if secret else {},
            timeout=httpx.Timeout(self._timeout_s, connect=self._connect_timeout_s),
            trust_env=False,  # no web proxy between a host and its donors
            verify=pinning.pinned(self.channel.fingerprint),
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def status(self) -> DonorStatus:
        """Return the donor's sizes and state."""
        return self._status(self._request("GET", "/v1/status"))

    def drain(self) -> DonorStatus:
        """Ask the donor to drain, until ``keep``: it gives no new leases. Return its status then."""
        return self._status(self._request("PUT", "/v1/drain"))

    def keep(self) -> DonorStatus:
        """Take back what ``drain`` asked for; the donor may have other reasons to drain."""
        return self._status(self._request("DELETE", "/v1/drain"))

    def leases(self) -> list[Lease]:
        """Return all leases of the donor, of all hosts."""
        answer = self._request("GET", "/v1/leases")
        return [replace(self._lease_of(said), tls_psk=None) for said in self._read(_LEASES, answer)]

    def lease(self, name: str) -> Lease:
        """Return one lease.

        Raises:
            NotFound: no such lease, or its memory was lost.
        """
        return self._lease(self._request("GET", _lease_path(name)))

    def look_for(self, name: str) -> Sighting:
        """Ask the donor at the address for a lease, and for its id, which tells whether it is the lender."""
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
            DonorTooSmall: the donor has less free memory.
        """
        # The request is not validated here: the donor does that, and its message is shown.
        fields = models.HolderRequest.model_construct(host=holder.host, vm=holder.vm)
        body = models.LeaseRequest.model_construct(name=name, size_bytes=size_bytes, holder=fields)
        self._donor()  # first: a failure here must leave nothing to undo
        made = self._lease(self._request("POST", "/v1/leases", json=body.model_dump()))
        if (made.name, made.export) != (name, name):
            raise self._unread({}, f"{_FOREIGN_API}: it answers with lease {printable(made.name)}")
        if self.channel.is_tls and made.tls_psk is None:
            raise Untrusted(
                f"donor {self.address} gives no key for lease {name}: its memory would be used without TLS",
                hint=f"install one version of GhostBox on both machines; this host has {__version__}",
            )
        return made

    def release_lease(self, name: str, *, force: bool = False) -> None:
        """End a lease; its content is lost.

        Raises:
            NotFound: no such lease.
            DonorError: connections are open and not ``force``.
        """
        self._request("DELETE", _lease_path(name), params={"force": "true" if force else "false"})

    def version(self) -> str:
        """Return the donor's version, which it tells also those who are not paired with it."""
        return printable(self._read(_VERSION, self._request("GET", "/v1/version")).version)

    def pair(self, request: models.PairingRequest) -> models.PairingAnswer:
        """Ask the donor to be paired by a token.

        Raises:
            Untrusted: another server than the token's donor is at the address; the token was not sent.
            DonorError: the donor refuses the token.
        """
        try:
            answer = self._read(_PAIRING, self._request("POST", "/v1/pairings", json=request.model_dump()))
        except NotFound as err:
            raise self._unread({}, "it knows no pairings") from err
        return self._pairing(answer)

    def ask(self, wanted: request_models.PairingAsk) -> request_models.PairingAsked:
        """Ask the donor to be paired without a token: the host's commitment goes, the donor's nonce comes.

        Raises:
            Untrusted: the donor shows another certificate now.
            PairingRefused: too many hosts ask.
        """
        try:
            answer = self._read(_ASKED, self._request("POST", _REQUESTS, json=wanted.model_dump()))
        except (NotFound, Untrusted) as err:
            if isinstance(err, Untrusted) and err.code != "not-paired":
                raise
            raise self._unread({}, "it pairs by tokens alone") from err
        if not (_CLIENT_ID.fullmatch(answer.id) and _NONCE.fullmatch(answer.nonce)):
            raise self._unread({}, "what it has drawn for this host's request has another form")
        return answer

    def open(self, number: str, nonce: str) -> request_models.PairingState:
        """Open the host's commitment.

        Raises:
            Untrusted: the donor shows another certificate now.
            PairingRefused: the donor does not know the request, does not take the nonce, or the request has expired.
        """
        opening = request_models.PairingOpening(id=number, nonce=nonce)
        return self._state_of(self._request("PUT", f"{_REQUESTS}/self", json=opening.model_dump()))

    def request_state(self) -> request_models.PairingState:
        """Return how the request stands that the channel shows (`trust.to_ask`).

        Raises:
            Untrusted: the donor shows another certificate now, or its owner has revoked the pairing already.
            PairingRefused: the donor does not know the request, or it has expired.
        """
        return self._state_of(self._request("GET", f"{_REQUESTS}/self"))

    def withdraw(self) -> None:
        """Take back the request that the channel shows (`trust.to_ask`); a pairing that it has become ends.

        Raises:
            Untrusted: the donor shows another certificate now, or is of a version that takes nothing back.
            PairingRefused: the donor does not know the request, or it has expired, or was approved this moment.
        """
        self._request("DELETE", f"{_REQUESTS}/self")

    def _state_of(self, document: Any) -> request_models.PairingState:
        said = self._read(_STATE, document)
        if said.state not in ("pending", "approved", "denied") or (said.state == "approved") != (
            said.pairing is not None
        ):
            raise self._unread({}, "it says nothing known of this host's request")
        return said if said.pairing is None else said.model_copy(update={"pairing": self._pairing(said.pairing)})

    def _pairing(self, answer: models.PairingAnswer) -> models.PairingAnswer:
        """Check what becomes part of a header, and make printable what people see."""
        if not _CLIENT_ID.fullmatch(answer.client):
            raise self._unread({}, "the id that it gives to this host is none")
        return answer.model_copy(update={"name": printable(answer.name), "role": printable(answer.role)})

    def end_pairing(self) -> None:
        """End this host's pairing with the donor.

        Raises:
            DonorError: the host still has leases there.
        """
        self._request("DELETE", "/v1/pairings/self")

    def _status(self, document: Any) -> DonorStatus:
        self._seen = status_of(self._read(_STATUS, document), str(self.address))
        return self._seen

    def _request(self, method: str, path: str, **options: Any) -> Any:
        return self._document(self._send(method, path, **options))

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        import httpx  # noqa: PLC0415 - slow to load

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
            raise failures.no_donor(self.address, _describe_server(answer)) from err
        if answer.is_success:
            return document
        raise self._refusal(answer, document)

    def _refusal(self, answer: httpx.Response, document: Any) -> GhostboxError:
        """Return the error for an answer that is not a success."""
        try:
            error = models.ErrorBody.model_validate(document).error
        except ValidationError:
            return failures.no_donor(self.address, _describe_server(answer))
        said = error.model_copy(update={"message": printable(error.message), "hint": error.hint})
        return failures.refusal(self.address, said, host_name())

    def _unanswered(self, err: httpx.TransportError) -> DonorError:
        """Return the error for a request without an HTTP answer, with the reason as far as it can be found."""
        import httpx  # noqa: PLC0415 - slow to load

        if failures.cause(err, pinning.ForeignCertificate) is not None:
            return failures.other_certificate(self.address, self.channel)
        is_cut_off = not isinstance(err, (httpx.TimeoutException, httpx.ConnectError))
        if is_cut_off and not self.channel.is_tls and self._speaks_tls():  # first: this takes no time
            return failures.wants_tls(self.address)
        if failures.greets_as_nbd(self.address):
            return failures.nbd_server(self.address)
        if isinstance(err, httpx.ConnectTimeout):
            why = "no answer in time: the machine may be off, or a firewall may drop the port"
            return failures.unreachable(self.address, why)
        if isinstance(err, httpx.TimeoutException):
            return failures.silent(self.address)
        if isinstance(err, httpx.ConnectError):
            return self._unconnected(err)
        return failures.no_donor(self.address, "it does not speak HTTP")

    def _speaks_tls(self) -> bool:
        return pinning.fingerprint_at(self.address, _PROBE_TIMEOUT_S) is not None

    def _unconnected(self, err: httpx.ConnectError) -> DonorError:
        broken = failures.cause(err, ssl.SSLError)
        if broken is None:
            return failures.unreachable(self.address, failures.system_reason(err))
        version = self._plain_version()
        if version is not None:
            return failures.plain_there(self.address, version)
        return failures.tls_failed(self.address, broken)

    def _plain_version(self) -> str | None:
        """Return the version of the donor that answers without TLS; None if none does. No secret is sent."""
        import httpx  # noqa: PLC0415 - slow to load

        try:
            with self._connection("http") as plain:
                return self._read(_STATUS, plain.get("/v1/status").json()).version
        except (httpx.HTTPError, GhostboxError, ValueError):
            return None

    def _read(self, form: TypeAdapter[T], document: Any) -> T:
        """Return an answer, validated and typed."""
        try:
            return forms.read(form, document)
        except ValueError as err:
            raise self._unread(document, f"{_FOREIGN_API}: {err}") from err

    def _unread(self, document: Any, why: str) -> NoAnswer:
        """Return the error for an answer of an unknown form: the versions, if they differ, are the reason."""
        import httpx  # noqa: PLC0415 - slow to load

        version = document.get("version") if isinstance(document, dict) else None
        if not isinstance(version, str):
            try:
                version = models.VersionAnswer.model_validate(self._http.get("/v1/version").json()).version
            except (httpx.HTTPError, ValueError):
                version = None
        if version is not None and version != __version__:
            return failures.skewed(self.address, printable(version))
        return failures.no_donor(self.address, why)

    def _lease(self, document: Any) -> Lease:
        return self._lease_of(self._read(_LEASE, document))

    def _lease_of(self, said: models.LeaseFields) -> Lease:
        donor = self._donor()
        if not _EXPORT.fullmatch(said.export) or not (said.tls_psk is None or _KEY.fullmatch(said.tls_psk)):
            # Both become part of a URI or a line of a file.
            raise self._unread({"version": donor.version}, f"{_FOREIGN_API}: the export of lease {said.name}")
        return Lease(
            donor_address=str(self.address),
            donor_name=donor.name,
            donor_id=donor.id,
            donor_incarnation=donor.incarnation,
            donor_machine=donor.machine,
            nbd_port=donor.nbd_port,
            name=said.name,
            export=said.export,
            size_bytes=said.size_bytes,
            resident_bytes=said.resident_bytes,
            incarnation=said.incarnation,
            holder=Holder(printable(said.holder.host), printable(said.holder.vm)),
            created_at=said.created_at,
            connections=said.connections,
            idle_s=said.idle_s,
            tls_psk=said.tls_psk,
        )

    def _donor(self) -> DonorStatus:
        return self.status() if self._seen is None else self._seen


def _lease_path(name: str) -> str:
    return f"/v1/leases/{quote(name, safe='')}"


def _describe_server(answer: httpx.Response) -> str:
    server = answer.headers.get("server")
    return f"an HTTP server{f' ({server})' if server else ''} that answers {answer.status_code}"
