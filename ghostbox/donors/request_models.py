# SPDX-License-Identifier: MIT
"""Define the requests and answers by which a host asks to be paired without a token; see `models` for the rules."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from ghostbox.donors.models import Answer, HolderText, PairingAnswer, RoleName
from ghostbox.units import PAGE_BYTES

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
RequestId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class PairingAsk(BaseModel):
    """Is a host's first word. The same words again, after a lost answer, have the same answer."""

    model_config = ConfigDict(extra="forbid")

    commitment: Digest = Field(description="SHA-256 that binds the host to its nonce (docs/reference/pairing.md).")
    credential_sha256: Digest = Field(
        description="SHA-256 of the credential that the host made for itself (256 random bits), hexadecimal."
    )
    host: HolderText = Field(description="Host name of the machine, for people.")
    host_id: RequestId = Field(description="Random id of the host, kept over pairings.")
    version: str = Field(description="GhostBox's version on the host.", max_length=64)


class PairingAsked(Answer):
    """Is the donor's answer to `PairingAsk`."""

    id: str = Field(description="Id of the request, hexadecimal.")
    nonce: str = Field(description="What the donor has drawn: 256 random bits, hexadecimal.")


class PairingOpening(BaseModel):
    """Opens the host's commitment."""

    model_config = ConfigDict(extra="forbid")

    id: RequestId = Field(description="Id of the request.")
    nonce: Digest = Field(description="What the host has drawn: 256 random bits, hexadecimal.")


class PairingState(Answer):
    """Tells a host how its request stands."""

    state: str = Field(description="`pending`, `approved` or `denied`.")
    pairing: PairingAnswer | None = Field(description="The pairing, if it is approved.")


class PairingApproval(BaseModel):
    """Is the owner's consent, and what the host may do."""

    model_config = ConfigDict(extra="forbid")

    max_memory_bytes: StrictInt | None = Field(
        None, description="Most memory that the host may lease; null: all that is free.", ge=PAGE_BYTES
    )
    role: RoleName = Field("user", description="Role that the host gets.")


class PairingRequestFields(Answer):
    """Describes a host that asks to be paired, for the donor's owner."""

    id: str = Field(description="Id of the request, hexadecimal.")
    host: str = Field(description="Host name, as the host said.")
    host_id: str = Field(description="Id that the host made for itself.")
    state: str = Field(description="`pending`, `approved` or `denied`.")
    code: str = Field(description="The words that the host's screen shows, too, if nobody is between.")
    address: str | None = Field(description="Where it came from.")
    asked_at: datetime = Field(description="When it asked, UTC.")
    expires_at: datetime = Field(description="Until when it can be approved, UTC.")
    client: str | None = Field(description="Id of the client that it has become.")
