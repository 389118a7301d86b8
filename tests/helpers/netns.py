# SPDX-License-Identifier: MIT
"""Machines for tests: network namespaces, each with an address of its own, joined to this one by a cable (veth)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# TEST-NET-2 (RFC 5737): no real network uses it. Each cable has a /30.
_NETWORK = "198.51.100"
_LOCK = Path(tempfile.gettempdir()) / "ghostbox-tests-netns.lock"


@dataclass(frozen=True)
class Machine:
    """A namespace. ``address`` is its end of the cable, ``cable`` the name of ours."""

    namespace: str
    address: str
    cable: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words that run a command there."""
        return ("ip", "netns", "exec", self.namespace)

    def pull_cable(self) -> None:
        """Cut the link."""
        _ip("link", "set", self.cable, "down")

    def plug_cable(self) -> None:
        """Mend the link."""
        _ip("link", "set", self.cable, "up")


@contextlib.contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """Make namespaces and remove them at the end of the block, with all that listens in them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("cannot run here: network namespaces need root and the tool ip")
    with contextlib.ExitStack() as stack:
        with _LOCK.open("w") as lock:  # an address is free until its cable is there
            fcntl.flock(lock, fcntl.LOCK_EX)
            made = [_make(stack, number) for number in range(count)]
        yield made


def _make(stack: contextlib.ExitStack, number: int) -> Machine:
    # Two runs on one machine must not meet: names carry the process id, addresses are those that nobody has.
    tag = f"{os.getpid() % 10000:04d}{number}"
    base = _free_network(os.getpid() * 2 + number)
    machine = Machine(f"gbtest{tag}", f"{_NETWORK}.{base + 2}", f"gbv{tag}")
    _ip("netns", "add", machine.namespace)
    stack.callback(_ip, "netns", "del", machine.namespace)
    _ip("link", "add", machine.cable, "type", "veth", "peer", "name", "eth0", "netns", machine.namespace)
    stack.callback(_ip, "link", "del", machine.cable)
    _ip("addr", "add", f"{_NETWORK}.{base + 1}/30", "dev", machine.cable)
    _ip("link", "set", machine.cable, "up")
    inside = ("-n", machine.namespace)
    _ip(*inside, "addr", "add", f"{machine.address}/30", "dev", "eth0")
    for device in ("lo", "eth0"):
        _ip(*inside, "link", "set", device, "up")
    return machine


def _free_network(first: int) -> int:
    """Return the last number of a /30 that no cable here has."""
    shown = subprocess.run(["ip", "-o", "-4", "addr"], capture_output=True, text=True, check=True).stdout
    bases = [(first + step) % 63 * 4 for step in range(63)]
    return next(base for base in bases if f" {_NETWORK}.{base + 1}/" not in shown)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"
