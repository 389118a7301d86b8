# SPDX-License-Identifier: MIT
"""A wire of a given rate: two network namespaces, a veth pair between them, and a token bucket (tbf) at both ends.

A namespace is kept by a process in it and has no name: the kernel removes it, and the wire, when that process is gone,
however it went. So nothing is left to sweep, and of the machine's own network nothing is seen or touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ghostbox import processes
from ghostbox.errors import GhostboxError

TOOLS = ("ip", "tc", "unshare", "nsenter")
KEEPER = ("unshare", "--net", "sleep", "infinity")
"""A process that keeps a new namespace."""

DEVICE = "wire"
"""The name of an interface at an end, in its namespace."""

_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class End:
    """One end of a wire. ``pid``: the process that keeps its namespace; TEST-NET-2 (RFC 5737) is all there is in it."""

    pid: int
    address: str

    @property
    def namespace(self) -> Path:
        """What setns(2) takes."""
        return Path(f"/proc/{self.pid}/ns/net")

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words that run a command there, in the same process."""
        return ("nsenter", f"--net={self.namespace}")


@dataclass(frozen=True)
class Wire:
    """``here`` is where the host's programs run, ``there`` the donor's."""

    here: End
    there: End

    @classmethod
    def of(cls, here_pid: int, there_pid: int) -> Wire:
        """Return the wire between two processes' namespaces."""
        return cls(End(here_pid, "198.51.100.1"), End(there_pid, "198.51.100.2"))

    def route(self, *, far: bool) -> dict[str, object]:
        """Return the words for a client that brings its own peer: it is at one end and its peer at the other."""
        own, peer = (self.there, self.here) if far else (self.here, self.there)
        return {"address": own.address, "peer_namespace": peer.namespace}

    def lay(self, rate: str) -> None:
        """Make it; ``rate`` is one of tc(8), such as ``1gbit``, and holds in each direction.

        Raises:
            ProgramError: the kernel refused.
        """
        peer = ["type", "veth", "peer", "name", DEVICE, "netns", str(self.there.pid)]
        _run([*self.here.prefix, "ip", "link", "add", DEVICE, *peer])
        for end in (self.here, self.there):
            _run([*end.prefix, "ip", "addr", "add", f"{end.address}/30", "dev", DEVICE])
            _run([*end.prefix, *_bucket(DEVICE, rate)])
            _run([*end.prefix, "ip", "link", "set", DEVICE, "up"])


def is_made(pid: int) -> bool:
    """Tell whether a process has a namespace that is not ours."""
    try:
        return End(pid, "").namespace.readlink() != Path("/proc/self/ns/net").readlink()
    except OSError:
        return False


def kernel_missing() -> str | None:
    """Say what of the kernel a wire cannot have here; None if it can be made. Needs root and `TOOLS`."""
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
