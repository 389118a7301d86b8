# SPDX-License-Identifier: MIT
"""Define the requests and answers of the donors' HTTP API, ``/v1``; donors and hosts both use these models.

An answer may have more fields than are defined here, from a newer donor; the host ignores them. Fields with a default
are those that an older donor does not send. A donor refuses unknown fields in a request.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from ghostbox.system.documents import Part
from ghostbox.units import MIB, PAGE_BYTES

LEASE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$"
"""The form of a lease's name, which is part of a URL, an NBD export name and a line in a log."""

_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]+$"
_LARGEST_BYTES = 2**62
LEAST_BANDWIDTH = MIB
"""The least limit of bytes a second. Under a lower one, a host's pager would take the donor for one that hangs."""

ROLE_NAME = r"^[a-z][a-z0-9-]{0,31}$"
"""The form of a role's name."""

RoleName = Annotated[str, Field(pattern=ROLE_NAME)]
HolderText = Annotated[str, Field(min_length=1, max_length=253, pattern=_PRINTABLE)]


@dataclass(frozen=True)
class Holder(Part):
    """Names the user of a lease: the host, and the VM on it."""

    host: str
    vm: str

    def __str__(self) -> str:
        return f"{self.host}/{self.vm}"


class Answer(BaseModel):
    """Is the base of a donor's answers. All fields are sent, also those with a default."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class HolderRequest(BaseModel):
    """Names the host and VM that are to use a lease. The names are shown to people; they prove no identity."""

    model_config = ConfigDict(extra="forbid")

    host: HolderText = Field(description="Host name of the machine that runs the VM.")
    vm: HolderText = Field(description="Name of the VM on that host.")


class HolderFields(Answer):
    """Names the host and VM that use a lease. The names are shown to people; they prove no identity."""

    host: str = Field(description="Host name of the machine that runs the VM.")
    vm: str = Field(description="Name of the VM on that host.")


class LeaseRequest(BaseModel):
    """Is a host's request for a lease."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Name of the lease and of its NBD export.", pattern=LEASE_NAME)
    size_bytes: StrictInt = Field(
        description="Size of the export; whole pages of 4096 bytes.",
        ge=PAGE_BYTES,
        le=_LARGEST_BYTES,
        multiple_of=PAGE_BYTES,
    )
    holder: HolderRequest


class LeaseFields(Answer):
    """Describes a lease: a named, sized NBD export."""

    name: str = Field(description="Name of the lease.")
    export: str = Field(description="Name of the NBD export to connect to.")
    size_bytes: int = Field(description="Size of the export.")
    resident_bytes: int = Field(description="Memory that its content takes on the donor.")
    incarnation: str = Field(
        description="UUID of this memory. Another incarnation is other memory: what was written before is lost."
    )
    holder: HolderFields
    created_at: datetime = Field(description="When the lease was made, UTC.")
    connections: int = Field(description="Open NBD connections.")
    idle_s: float = Field(description="Seconds since the last NBD request.")
    tls_psk: str | None = Field(
        default=None,
        description="Key of the export, hexadecimal: its NBD connections need TLS with this pre-shared key, and the"
        " export's name as identity. Null: the export is served without TLS. Only the lease's holder is told.",
    )


class LimitFields(Answer):
    """Describes what a host may have in all its leases on a donor together; null: no limit."""

    memory_bytes: int | None = Field(
        default=None, description="Most memory: the sizes of leases when they are made, and the pages that hold data."
    )
    leases: int | None = Field(default=None, description="Most leases.")
    connections: int | None = Field(default=None, description="Most NBD connections that are open at a time.")
    bytes_per_s: int | None = Field(
        default=None, description="Most payload of NBD, both directions together, each second."
    )


class DonorStatus(Answer):
    """Describes the sizes and the state of a donor."""

    name: str = Field(description="Name of the memserver.")
    id: str = Field(
        "", description="Id of the memserver, kept over restarts; the header `GhostBox-Donor` of every answer has it."
    )
    machine: str = Field(
        "", description="Digest of the machine that it runs on: donors with the same digest fail together."
    )
    version: str = Field(description="GhostBox's version.")
    incarnation: str = Field(description="UUID of the data plane process that holds the memory.")
    nbd_port: int = Field(description="TCP port of the NBD server, on the same address as this API.")
    size_bytes: int = Field(description="Memory that this donor lends in all.")
    exported_bytes: int = Field(description="Sum of the sizes of all leases.")
    free_bytes: int = Field(description="Memory that can still be leased.")
    resident_bytes: int = Field(description="Memory that the leases' content takes now.")
    leases: int = Field(description="How many leases there are.")
    draining: bool = Field(
        description="True when the donor wants its memory back: it gives no new leases, and hosts move away."
    )
    drain_causes: list[str] = Field(
        [],
        description="Why the donor drains: `asked` (by its owner), `ending` (by a signal), `pressure` (no memory).",
    )
    memory_pressure: float | None = Field(
        None, description="Percent of the last 10 s in which a task waited for memory; null if it is not read."
    )
    role: str | None = Field(None, description="Role of the paired host that asks; null to the owner.")
    limits: LimitFields | None = Field(None, description="What the paired host that asks may have; null to the owner.")


class VersionAnswer(Answer):
    """Is all that a host learns which is not paired."""

    version: str = Field(description="GhostBox's version.")


class PairingRequest(BaseModel):
    """Is a host's request to be paired by a token. The same request again, after a lost answer, has the same result."""

    model_config = ConfigDict(extra="forbid")

    token_id: str = Field(description="Id of the token, hexadecimal.", pattern=r"^[0-9a-f]{16}$")
    secret: str = Field(description="The token's secret, hexadecimal.", pattern=r"^[0-9a-f]{32}$")
    credential_sha256: str = Field(
        description="SHA-256 of the credential that the host made for itself (256 random bits), hexadecimal.",
        pattern=r"^[0-9a-f]{64}$",
    )
    host: HolderText = Field(description="Host name of the machine, for people.")
    host_id: str = Field(description="Random id of the host, kept over pairings.", pattern=r"^[0-9a-f]{16}$")
    version: str = Field(description="GhostBox's version on the host.", max_length=64)


class PairingAnswer(Answer):
    """Describes a pairing that was made. The credential of later requests is ``CLIENT.CREDENTIAL``."""

    client: str = Field(description="Id of the host at this donor, hexadecimal.")
    donor: str = Field(description="Id of the memserver.")
    name: str = Field(description="Name of the memserver.")
    machine: str = Field(description="Digest of the machine that it runs on.")
    version: str = Field(description="GhostBox's version on the donor.")
    role: str = Field(description="Role that the donor's owner gave to the host.")
    max_memory_bytes: int | None = Field(description="Most memory that the host may lease; null: all that is free.")


_Memory = Annotated[StrictInt, Field(ge=PAGE_BYTES, le=_LARGEST_BYTES)]
_Number = Annotated[StrictInt, Field(ge=0, le=_LARGEST_BYTES)]
_Bandwidth = Annotated[StrictInt, Field(ge=LEAST_BANDWIDTH, le=_LARGEST_BYTES)]
_Default = Literal["default"]


class LimitsRequest(BaseModel):
    """Is the owner's request to change limits of a role. What is not in it stays."""

    model_config = ConfigDict(extra="forbid")

    memory_bytes: _Memory | _Default | None = Field(
        None, description="Most memory; null: no limit; `default`: as it is without this setting."
    )
    leases: _Number | _Default | None = Field(None, description="Most leases, in the same form.")
    connections: _Number | _Default | None = Field(None, description="Most NBD connections, in the same form.")
    bytes_per_s: _Bandwidth | _Default | None = Field(None, description="Most payload a second, in the same form.")


class ClientLimitsRequest(LimitsRequest):
    """Is the owner's request to give a client another role, or limits of its own; `default`: those of its role."""

    role: RoleName | None = Field(None, description="Its role from now on; null: as before.")


class RoleFields(Answer):
    """Describes a role: limits for all hosts that have it."""

    name: str = Field(description="Name of the role.")
    built_in: bool = Field(description="Whether it is there without having been made.")
    limits: LimitFields
    own: list[str] = Field(description="Names of the limits that the owner has set.")
    hosts: int = Field(description="How many hosts have it that are not revoked.")
    notes: list[str] = Field(
        default=[], description="For people: who holds more than a limit that was just set, and how."
    )


class TokenRequest(BaseModel):
    """Is the owner's request for a pairing token."""

    model_config = ConfigDict(extra="forbid")

    expires_s: float = Field(600.0, description="How long it can be used, in seconds.", gt=0, le=366 * 86400)
    max_memory_bytes: StrictInt | None = Field(
        None,
        description="Most memory that the host may lease; null: all that is free.",
        ge=PAGE_BYTES,
        le=_LARGEST_BYTES,
    )
    role: RoleName = Field("user", description="Role that the host gets.")


class TokenFields(Answer):
    """Describes a pairing token, without its secret."""

    id: str = Field(description="Id of the token, hexadecimal.")
    made_at: datetime = Field(description="When it was made, UTC.")
    expires_at: datetime = Field(description="Until when it can be used, UTC.")
    state: str = Field(description="`open`, `used` or `expired`.")
    max_memory_bytes: int | None = Field(description="Most memory that the host may lease; null: all that is free.")
    role: str = Field(description="Role that the host gets.")
    used_by: str | None = Field(description="Id of the client that it has made.")


class NewTokenFields(TokenFields):
    """Describes a pairing token that was just made; only this answer has the token itself."""

    token: str = Field(description="The line for `ghostbox donor add`, as good as a password until it is used.")


class UseFields(Answer):
    """Describes what a client uses now, and how often a limit stopped it since the data plane knows it."""

    resident_bytes: int = Field(description="Memory that the content of its leases takes.")
    connections: int = Field(description="Open NBD connections.")
    writes_refused: int = Field(description="Writes that got ENOSPC, over the limit of memory.")
    connections_refused: int = Field(description="Connections over their limit.")
    delays: int = Field(description="Times that a connection had to wait for the limit of bandwidth.")


class ClientFields(Answer):
    """Describes a host that is, or was, paired with the donor."""

    id: str = Field(description="Id of the client, hexadecimal.")
    host: str = Field(description="Host name, as the host said.")
    host_id: str = Field(description="Id that the host made for itself.")
    state: str = Field(description="`active`, `suspended` or `revoked`.")
    role: str = Field(description="Its role.")
    max_memory_bytes: int | None = Field(description="Most memory that it may lease; null: all that is free.")
    limits: LimitFields = Field(default_factory=LimitFields, description="All its limits.")
    own: list[str] = Field(default=[], description="Names of the limits that are this host's alone, not its role's.")
    leases: int = Field(description="How many leases it holds.")
    leased_bytes: int = Field(description="Sum of their sizes.")
    use: UseFields | None = Field(
        default=None,
        description="What it uses; null if it has used nothing since the data plane began, or that is not known.",
    )
    notes: list[str] = Field(
        default=[], description="For people: what it holds more of than a limit that was just set."
    )
    paired_at: datetime = Field(description="When it was paired, UTC.")
    seen_at: datetime = Field(description="When it was here last (to the minute), UTC.")
    address: str | None = Field(description="Where it came from then.")


class ErrorDetail(Answer):
    """Describes a failure, and what to do."""

    code: str = Field(description="A short stable word, such as `too-small`.")
    message: str = Field(description="For people: what failed, on what, why.")
    hint: str | None = Field(None, description="For people: what to do.")


class ErrorBody(Answer):
    """Is the body of every answer that is not a success."""

    error: ErrorDetail
