# SPDX-License-Identifier: MIT
"""What goes over the wire in the donor's HTTP API, described for ``/openapi.json``."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from ghostbox.units import PAGE_BYTES

LEASE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$"
"""What a lease may be called: it is part of a URL, an NBD export name and a line in a log."""

_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]+$"
_LARGEST_BYTES = 2**62

HolderText = Annotated[str, Field(min_length=1, max_length=253, pattern=_PRINTABLE)]


class HolderFields(BaseModel):
    """Who uses a lease. Shown to people; not a proof of identity."""

    model_config = ConfigDict(extra="forbid")

    host: HolderText = Field(description="Host name of the machine that runs the VM.")
    vm: HolderText = Field(description="Name of the VM on that host.")


class LeaseRequest(BaseModel):
    """A lease that somebody asks for."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(description="Name of the lease and of its NBD export.", pattern=LEASE_NAME)
    size_bytes: StrictInt = Field(
        description="Size of the export; whole pages of 4096 bytes.",
        ge=PAGE_BYTES,
        le=_LARGEST_BYTES,
        multiple_of=PAGE_BYTES,
    )
    holder: HolderFields


class LeaseFields(BaseModel):
    """A lease: a named, sized NBD export."""

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


class DonorStatus(BaseModel):
    """Sizes and state of a donor."""

    name: str = Field(description="Name of the memserver.")
    id: str = Field(description="Who it is, over restarts; the header `GhostBox-Donor` of every answer has it, too.")
    machine: str = Field(
        description="On which machine it runs, as a digest: donors that say the same one fail together."
    )
    version: str = Field(description="GhostBox's version.")
    incarnation: str = Field(description="UUID of the data plane process that holds the memory.")
    nbd_port: int = Field(description="TCP port of the NBD server, on the same address as this API.")
    size_bytes: int = Field(description="What this donor lends in all.")
    exported_bytes: int = Field(description="Sum of the sizes of all leases.")
    free_bytes: int = Field(description="What can still be leased.")
    resident_bytes: int = Field(description="Memory that the leases' content takes now.")
    leases: int = Field(description="How many leases there are.")
    draining: bool = Field(
        description="True when the donor wants its memory back: it gives no new leases, and hosts move away."
    )
    drain_causes: list[str] = Field(
        description="Why it drains: `asked` (by its owner), `ending` (by a signal), `pressure` (it is short of memory)."
    )
    memory_pressure: float | None = Field(
        description="Percent of the last 10 s in which something here waited for memory; null if nobody looks."
    )


class ErrorDetail(BaseModel):
    """What failed, and what to do."""

    code: str = Field(description="A short stable word, such as `too-small`.")
    message: str = Field(description="For people: what failed, on what, why.")
    hint: str | None = Field(description="For people: what to do.")


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail
