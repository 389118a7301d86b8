# SPDX-License-Identifier: MIT
"""Talk to a memserver of this machine as its owner: over its Unix socket, which serves the same API with all rights."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from ghostbox.donors import models
from ghostbox.donors.client import DonorStatus, NoAnswer, status_of
from ghostbox.donors.models import ClientFields, ErrorBody, LeaseFields, NewTokenFields, RoleFields, TokenFields
from ghostbox.donors.request_models import PairingRequestFields
from ghostbox.errors import DonorError, GhostboxError, NotFound, NotRunning, UsageError
from ghostbox.memserver.lock import Running, owner_socket
from ghostbox.paths import Paths
from ghostbox.system import forms

_TIMEOUT_S = 60.0
_STATUS = TypeAdapter(models.DonorStatus)
_LEASES = TypeAdapter(list[LeaseFields])
_TOKEN = TypeAdapter(NewTokenFields)
_TOKENS = TypeAdapter(list[TokenFields])
_CLIENT = TypeAdapter(ClientFields)
_CLIENTS = TypeAdapter(list[ClientFields])
_REQUEST = TypeAdapter(PairingRequestFields)
_REQUESTS = TypeAdapter(list[PairingRequestFields])
_ROLE = TypeAdapter(RoleFields)
_ROLES = TypeAdapter(list[RoleFields])

Changes = Mapping[str, int | str | None]
"""Limits by their names in `LimitsRequest`: a number, None for no limit, or ``default``."""

T = TypeVar("T")


class _Connection(http.client.HTTPConnection):
    """Is an HTTP connection over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        self.sock.connect(str(self._path))


@dataclass(frozen=True)
class Owner:
    """Commands a running memserver over the socket at ``path``; ``address`` is that of its control API, for people.

    Its methods raise ``DonorError`` with the memserver's own message if it refuses, ``NotFound`` for what there is not,
    and ``NoAnswer`` if it does not answer, or cannot because its data plane is started again.
    """

    path: Path
    address: str

    def status(self) -> DonorStatus:
        """Return the donor's sizes and state."""
        return self._status("GET", "/v1/status")

    def drain(self) -> DonorStatus:
        """Ask for the memory back: no new leases are given."""
        return self._status("PUT", "/v1/drain")

    def keep(self) -> DonorStatus:
        """Take back what `drain` asked for."""
        return self._status("DELETE", "/v1/drain")

    def leases(self) -> list[LeaseFields]:
        """Return all leases."""
        return self._ask(_LEASES, "GET", "/v1/leases")

    def create_token(self, lifetime_s: float, max_memory_bytes: int | None, role: str) -> NewTokenFields:
        """Make a pairing token."""
        wanted = {"expires_s": lifetime_s, "max_memory_bytes": max_memory_bytes, "role": role}
        return self._ask(_TOKEN, "POST", "/v1/tokens", wanted)

    def tokens(self) -> list[TokenFields]:
        """Return all pairing tokens, without their secrets."""
        return self._ask(_TOKENS, "GET", "/v1/tokens")

    def revoke_token(self, number: str) -> None:
        """Make a token useless."""
        self._request("DELETE", f"/v1/tokens/{quote(number, safe='')}")

    def clients(self) -> list[ClientFields]:
        """Return all clients."""
        return self._ask(_CLIENTS, "GET", "/v1/clients")

    def suspend(self, client: str) -> ClientFields:
        """End a client's connections, and serve it nothing until `resume`."""
        return self._ask(_CLIENT, "PUT", f"/v1/clients/{client}/suspension")

    def resume(self, client: str) -> ClientFields:
        """Serve a client again that was suspended."""
        return self._ask(_CLIENT, "DELETE", f"/v1/clients/{client}/suspension")

    def revoke(self, client: str) -> ClientFields:
        """End a client's pairing and its leases, whose content is lost."""
        return self._ask(_CLIENT, "DELETE", f"/v1/clients/{client}")

    def requests(self) -> list[PairingRequestFields]:
        """Return the hosts that ask to be paired, and those that were denied."""
        return self._ask(_REQUESTS, "GET", "/v1/pairing-requests")

    def approve(self, request: str, max_memory_bytes: int | None, role: str) -> PairingRequestFields:
        """Pair with a host that asks."""
        given = {"max_memory_bytes": max_memory_bytes, "role": role}
        return self._ask(_REQUEST, "PUT", f"/v1/pairing-requests/{request}/approval", given)

    def deny(self, request: str) -> PairingRequestFields:
        """Refuse a host that asks to be paired."""
        return self._ask(_REQUEST, "DELETE", f"/v1/pairing-requests/{request}")

    def roles(self) -> list[RoleFields]:
        """Return all roles."""
        return self._ask(_ROLES, "GET", "/v1/roles")

    def set_role(self, name: str, changes: Changes) -> RoleFields:
        """Change limits of a role, or make it."""
        return self._ask(_ROLE, "PUT", f"/v1/roles/{quote(name, safe='')}", changes)

    def delete_role(self, name: str) -> None:
        """Remove a role that no host has."""
        self._request("DELETE", f"/v1/roles/{quote(name, safe='')}")

    def set_client(self, client: str, role: str | None, changes: Changes) -> ClientFields:
        """Give a client another role, or limits of its own."""
        return self._ask(_CLIENT, "PUT", f"/v1/clients/{client}/limits", {"role": role, **changes})

    def _status(self, method: str, route: str) -> DonorStatus:
        return status_of(self._ask(_STATUS, method, route), self.address)

    def _ask(self, form: TypeAdapter[T], method: str, route: str, body: object = None) -> T:
        try:
            return forms.read(form, self._request(method, route, body))
        except ValueError as err:
            raise DonorError(
                f"the memserver at {self.path} answers in another form: {err}",
                hint="it is of another version: end it and start it again, by this GhostBox",
            ) from err

    def _request(self, method: str, route: str, body: object = None) -> Any:
        connection = _Connection(self.path)
        try:
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, route, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as err:
            raise NoAnswer(
                f"the memserver does not answer at {self.path}", why=str(err), hint="see its log, or its terminal"
            ) from err
        finally:
            connection.close()
        document = json.loads(said) if said else None
        if 200 <= answer.status < 300:
            return document
        raise _refusal(document)


def of(running: Running, name: str, paths: Paths) -> Owner | None:
    """Return the owner's way to the running memserver called ``name``; None if it has no socket for its owner."""
    path = owner_socket(paths.memserver_runtime(name))
    return Owner(path, running.control_address) if path.exists() else None


def needed(found: Owner | None, name: str, paths: Paths) -> Owner:
    """Return the owner's way to the memserver called ``name``.

    Raises:
        NotRunning: there is none.
    """
    if found is None:
        raise NotRunning(
            f"memserver '{name}' has no socket at {owner_socket(paths.memserver_runtime(name))}",
            why="it is of an earlier version, or was started with another GHOSTBOX_RUNTIME_DIR",
            hint="end it and start it again (a kill leaves its leases where they are), or set GHOSTBOX_RUNTIME_DIR",
        )
    return found


def meant(clients: Sequence[ClientFields], word: str) -> ClientFields:
    """Return the client that ``word`` means: an id, or the name of a host.

    Raises:
        NotFound: no client has this id or name.
        UsageError: several clients have this name.
    """
    found = [each for each in clients if word in (each.id, each.host)]
    if len(found) > 1:
        found = [each for each in found if each.state != "revoked"] or found
    if not found:
        names = ", ".join(sorted({each.host for each in clients}))
        raise NotFound(
            f"no host '{word}' is paired with this donor",
            hint=f"paired are: {names}" if names else "ghostbox memserver clients",
        )
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} clients are called '{word}'",
            hint="give the id of one: " + ", ".join(each.id for each in found),
        )
    return found[0]


def asking(requests: Sequence[PairingRequestFields], word: str) -> PairingRequestFields:
    """Return the request that ``word`` means: its id, or the name of the host that asks.

    Raises:
        NotFound: no host that asks has this name, and no request this id.
        UsageError: several hosts of this name ask.
    """
    pending = [each for each in requests if each.state == "pending"]
    found = [each for each in pending if word in (each.id, each.host)]
    if not found:
        names = ", ".join(sorted({each.host for each in pending}))
        raise NotFound(
            f"no host '{word}' asks to be paired with this donor",
            hint=f"these ask: {names}"
            if names
            else "ask first, on the host: ghostbox donor add, with this donor's name",
        )
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} hosts called '{word}' ask to be paired",
            hint="give the id of one: " + ", ".join(f"{each.id} ({each.code})" for each in found),
        )
    return found[0]


def _refusal(document: object) -> GhostboxError:
    try:
        error = ErrorBody.model_validate(document).error
    except ValidationError:
        return DonorError("the memserver's answer makes no sense", hint="it is of another version: start it again")
    kinds: dict[str, type[GhostboxError]] = {"not-found": NotFound, "unavailable": NoAnswer}
    return kinds.get(error.code, DonorError)(error.message, hint=error.hint)
