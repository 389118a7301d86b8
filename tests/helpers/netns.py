# SPDX-License-Identifier: MIT
"""Make machines for tests: network namespaces with addresses of their own, joined to this one by a cable (veth)."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ghostbox.system import consent
from ghostbox.system.processes import wait_until

# This is TEST-NET-2 (RFC 5737), which no real network uses. Each cable has a /30.
_NETWORK = "198.51.100"
_ELSEWHERE = "203.0.113"  # TEST-NET-3
_BETWEEN = "192.0.2"  # TEST-NET-1, used only inside namespaces
INSECURE = {"GHOSTBOX_POOL_INSECURE": "true"}
"""The environment of a host that uses donors on these machines without pairing and encryption."""

# This process, a test, uses the donors of these machines in the same way.
consent.by(lambda address: address.startswith((f"{_NETWORK}.", f"{_ELSEWHERE}.", "[fe80:")))

_NUMBERS = itertools.cycle(range(100))
_LOCK = Path(tempfile.gettempdir()) / "ghostbox-tests-netns.lock"


@dataclass(frozen=True)
class Machine:
    """Is a namespace. ``address`` is its end of the cable, ``cable`` the interface at this machine's end."""

    namespace: str
    address: str
    cable: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """Return the words that run a command in the namespace."""
        return ("ip", "netns", "exec", self.namespace)

    def pull_cable(self) -> None:
        """Cut the link."""
        _ip("link", "set", self.cable, "down")

    def move(self) -> str:
        """Give the machine another address in place of its own, as DHCP may; return the new address."""
        gateway, _, last = self.address.rpartition(".")
        moved = f"{_ELSEWHERE}.{last}"
        _ip("-n", self.namespace, "addr", "flush", "dev", "eth0")
        _ip("-n", self.namespace, "addr", "add", f"{moved}/32", "dev", "eth0")
        _ip("-n", self.namespace, "route", "add", f"{gateway}.{int(last) - 1}", "dev", "eth0")
        _ip("route", "add", moved, "dev", self.cable)
        return moved

    def plug_cable(self) -> None:
        """Mend the link."""
        _ip("link", "set", self.cable, "up")

    def link_local(self) -> str:
        """Wait until both ends of the cable have a link-local address that packets may have; return the machine's.

        An address may not be used until the kernel has looked for another machine that has it (RFC 4862).
        """

        ends = ((self.cable,), ("eth0", "-n", self.namespace))
        wait_until(lambda: all(_link_local(*end) for end in ends), timeout_s=20, what="link-local addresses")
        return _link_local(*ends[1])


@contextlib.contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """Make namespaces and remove them at the end of the block, with all programs that listen in them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("cannot run here: network namespaces need root and the tool ip")
    with contextlib.ExitStack() as stack:
        with _LOCK.open("w") as lock:  # an address is free until its cable exists
            fcntl.flock(lock, fcntl.LOCK_EX)
            made = [_make(stack, next(_NUMBERS)) for _ in range(count)]
        yield made


def _make(stack: contextlib.ExitStack, number: int) -> Machine:
    # Two runs on one machine, and two fixtures of one run, must not collide: names carry the process id, and only
    # free addresses are taken.
    tag = f"{os.getpid() % 10000:04d}{number:02d}"
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
    """Return the last number of a /30 that no cable of this machine has."""
    shown = subprocess.run(["ip", "-o", "-4", "addr"], capture_output=True, text=True, check=True).stdout
    bases = [(first + step) % 63 * 4 for step in range(63)]
    return next(base for base in bases if f" {_NETWORK}.{base + 1}/" not in shown)


def _link_local(device: str, *where: str) -> str:
    """Return the address, or "" while it may not be used."""
    words = ["ip", *where, "-o", "-6", "addr", "show", "dev", device, "scope", "link", "-tentative"]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    return shown.split()[3].partition("/")[0] if shown else ""


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@dataclass(frozen=True)
class NarrowWay:
    """Is a machine behind routers: one of their links carries less than both ends believe, and reports nothing."""

    machine: Machine
    middle: str

    def set_mtu(self, mtu: int) -> None:
        """Let the link in the middle carry packets of this size; both ends send up to 9000 bytes."""
        for device in ("m1", "m2"):
            _ip("-n", self.middle, "link", "set", device, "mtu", str(mtu))


@contextlib.contextmanager
def narrow_way() -> Iterator[NarrowWay]:
    """Make a machine behind three routers; at first their links carry as much as they seem to.

    A veth drops packets that are larger than the MTU of its other end as they go out, where no IP layer sends ICMP. The
    routers on either side of the middle link hide this from the ends: TCP notices what its own device drops.
    """
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("cannot run here: network namespaces need root and the tool ip")
    tag = f"{os.getpid() % 10000:04d}{next(_NUMBERS):02d}"
    near, middle, far, end = (f"gb{name}{tag}" for name in ("near", "mid", "far", "end"))
    cable = f"gbn{tag}"
    with contextlib.ExitStack() as stack:
        with _LOCK.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            base = _free_network(os.getpid() * 2)
            for namespace in (near, middle, far, end):
                _ip("netns", "add", namespace)
                stack.callback(_ip, "netns", "del", namespace)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "n0", "netns", near)
            stack.callback(_ip, "link", "del", cable)
            _ip("addr", "add", f"{_NETWORK}.{base + 1}/30", "dev", cable)
        address, gateway = f"{_ELSEWHERE}.{base + 2}", f"{_ELSEWHERE}.{base + 1}"
        for left, right in (
            (f"n1@{near}", f"m1@{middle}"),
            (f"m2@{middle}", f"f1@{far}"),
            (f"f2@{far}", f"eth0@{end}"),
        ):
            (device, where), (other, there) = left.split("@"), right.split("@")
            _ip("-n", where, "link", "add", device, "type", "veth", "peer", "name", other, "netns", there)
        devices = {near: ("n0", "n1"), middle: ("m1", "m2"), far: ("f1", "f2"), end: ("eth0",)}
        for where, names in devices.items():
            for device in ("lo", *names):
                # GSO is off: packets that are to be cut later may pass a veth at any size.
                jumbo = () if device == "lo" else ("mtu", "9000", "gso_max_segs", "1")
                _ip("-n", where, "link", "set", device, *jumbo, "up")
        _ip("link", "set", cable, "mtu", "9000", "gso_max_segs", "1", "up")
        for where, device, theirs in (
            (near, "n0", f"{_NETWORK}.{base + 2}/30"),
            (near, "n1", f"{_BETWEEN}.1/30"),
            (middle, "m1", f"{_BETWEEN}.2/30"),
            (middle, "m2", f"{_BETWEEN}.5/30"),
            (far, "f1", f"{_BETWEEN}.6/30"),
            (far, "f2", f"{gateway}/30"),
            (end, "eth0", f"{address}/30"),
        ):
            _ip("-n", where, "addr", "add", theirs, "dev", device)
        back = f"{_NETWORK}.{base}/30"
        for where, to, via in ((near, address, 2), (middle, address, 6), (middle, back, 1), (far, back, 5)):
            _ip("-n", where, "route", "add", to, "via", f"{_BETWEEN}.{via}")
        for where in (near, middle, far):
            _ip("netns", "exec", where, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        _ip("-n", end, "route", "add", "default", "via", gateway)
        _ip("route", "add", f"{address}/32", "via", f"{_NETWORK}.{base + 2}")
        yield NarrowWay(Machine(end, address, cable), middle)
