# SPDX-License-Identifier: MIT
"""Model the answers of ``ghostbox-memserver`` on its control socket (docs/reference/memserver.md).

A memory server outlives the command that started it, so that the command that asks may be older or newer. Further
fields of a newer memory server are ignored, and fields that an older one does not send have defaults here.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ghostbox.system.answers import Program

PROGRAM = Program(
    "ghostbox-memserver",
    "use the GhostBox that started it, or start it again with this one when no lease is held: ghostbox memserver drain",
)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class Export(_Answer):
    """Describes an export: its size, the memory of its content, its connections, seconds since its last request.

    ``tls`` is true if the export has a key and needs TLS.
    """

    name: str
    size_bytes: int
    resident_bytes: int
    incarnation: str
    connections: int
    idle_s: float
    tls: bool = False


class ClientCounters(_Answer):
    """Holds how often a client was stopped by a limit, since the data plane knows it."""

    writes_refused: int
    connections_refused: int
    delays: int


class PlaneClient(_Answer):
    """Describes what a client of the exports uses."""

    client: str
    resident_bytes: int
    connections: int
    counters: ClientCounters


class Address(_Answer):
    """Is an address at which a memory server listens."""

    host: str
    port: int


class PlaneStatus(_Answer):
    """Is the answer to ``status``. ``also`` has the addresses at which it listens besides ``host`` and ``port``.

    ``locked`` is true if its memory is never swapped out. ``clients`` are those that have exports or limits.
    """

    pid: int
    host: str
    port: int
    size_bytes: int
    exported_bytes: int
    resident_bytes: int
    exports: tuple[Export, ...]
    connections: int = 0
    also: tuple[Address, ...] = ()
    locked: bool = False
    clients: tuple[PlaneClient, ...] = ()

    @property
    def tls(self) -> bool:
        """Tell whether it serves leases over TLS: whether it has exports, and each of them has a key."""
        return bool(self.exports) and all(each.tls for each in self.exports)

    @cached_property
    def by_name(self) -> Mapping[str, Export]:
        """Return the exports by their names."""
        return {each.name: each for each in self.exports}


def status(control: Path, *, timeout_s: float = 10.0) -> PlaneStatus:
    """Ask the memory server that listens on ``control`` for its status.

    Raises:
        ControlError: no program answers (``gone``), or the answer has another form (``misfit``).
    """
    return PROGRAM.ask(PlaneStatus, control, "status", timeout_s=timeout_s)
