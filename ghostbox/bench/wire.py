# SPDX-License-Identifier: MIT
"""Make a wire of a given rate: two network namespaces, a veth pair between them, a token bucket (tbf) at both ends.

A namespace has no name; a process in it keeps it: the kernel removes it, and the wire, when that process ends, for
whatever reason. So nothing is left to clean up, and the machine's own network is neither visible nor changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ghostbox.errors import GhostboxError
from ghostbox.system import processes

TOOLS = ("ip", "tc", "unshare", "nsenter")
KEEPER = ("unshare", "--net", "sleep", "infinity")
"""The command of a process that keeps a new namespace."""

DEVICE = "wire"
"""The name of the interface at each end, in the benchmark's namespaces."""

DEVICE_HERE = "ghostbox-wire"
"""The name of the interfaces if the near end is this machine's own namespace."""

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class End:
    """Is one end of a wire. ``pid``: the process that keeps its namespace, which has only TEST-NET-2 (RFC 5737)."""

    pid: int
    address: str

    @property
    def namespace(self) -> Path:
        """Return the namespace's file for setns(2)."""
        return Path(f"/proc/{self.pid}/ns/net")

    @property
    def prefix(self) -> tuple[str, ...]:
        """Return the words that run a command in the namespace, in the same process."""
        return ("nsenter", f"--net={self.namespace}")


@dataclass(frozen=True)
class Wire:
    """Describes a wire: ``here`` is the end of the host's programs, ``there`` the donor's."""

    here: End
    there: End
    device: str = DEVICE

    @classmethod
    def of(cls, here_pid: int, there_pid: int, device: str = DEVICE) -> Wire:
        """Return the wire between two processes' namespaces; both of its interfaces have the name ``device``."""
        return cls(End(here_pid, "198.51.100.1"), End(there_pid, "198.51.100.2"), device)

    def route(self, *, far: bool) -> dict[str, object]:
        """Return the words for a client that starts its own peer: the two are at different ends."""
        own, peer = (self.there, self.here) if far else (self.here, self.there)
        return {"address": own.address, "peer_namespace": peer.namespace}

    def lay(self, rate: str) -> None:
        """Make the wire; ``rate`` is one of tc(8)'s, such as ``1gbit``, and applies in each direction.

        Raises:
            ProgramError: the kernel refused.
        """
        peer = ["type", "veth", "peer", "name", self.device, "netns", str(self.there.pid)]
        _run([*self.here.prefix, "ip", "link", "add", self.device, *peer])
        for end in (self.here, self.there):
            _run([*end.prefix, "ip", "addr", "add", f"{end.address}/30", "dev", self.device])
            _run([*end.prefix, *_bucket(self.device, rate)])
            _run([*end.prefix, "ip", "link", "set", self.device, "up"])


def is_made(pid: int) -> bool:
    """Tell whether a process has a network namespace of its own."""
    try:
        return End(pid, "").namespace.readlink() != Path("/proc/self/ns/net").readlink()
    except OSError:
        return False


def kernel_missing() -> str | None:
    """Return what the kernel lacks for a wire; None if it can be made. This needs root and `TOOLS`."""
    needed = {
        "network namespaces": ["true"],
        "veth": ["ip", "link", "add", DEVICE, "type", "veth"],
        "tbf": _bucket("lo", "1gbit"),
    }
    for what, words in needed.items():
        try:
            _run(["unshare", "--net", *words])
        except GhostboxError as err:
            return f"a wire needs {what} of the kernel ({err.why or err.message})"
    return None


def _bucket(device: str, rate: str) -> list[str]:
    return ["tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", rate, "burst", "256k", "latency", "50ms"]


def _run(argv: Sequence[str]) -> None:
    processes.run(argv, timeout_s=_TIMEOUT_S)
