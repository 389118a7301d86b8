# SPDX-License-Identifier: MIT
"""Make a network of machines for tests: namespaces on one bridge, which is in a namespace, too.

Nothing of it reaches this machine's own interfaces, so its machines may ask all with multicast. It has no Internet.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from ghostbox.system.processes import wait_until

_NETWORK = "192.0.2"  # TEST-NET-1 (RFC 5737): each network is its own world, so all may have it
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class LanMachine:
    """Is a machine of the network: its interface is ``eth0``; ``port`` is the bridge's end of its cable."""

    namespace: str
    address: str
    switch: str
    port: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """Return the words that run a command on the machine."""
        return ("ip", "netns", "exec", self.namespace)

    def ip(self, *words: str) -> str:
        """Run ``ip`` on the machine and return what it prints."""
        return run("ip", "-n", self.namespace, *words)

    def link_local(self) -> str:
        """Return the link-local address of eth0, without a zone, once it has one."""

        def found() -> str:
            shown = self.ip("-o", "-6", "addr", "show", "dev", "eth0", "scope", "link", "-tentative").split()
            return shown[3].partition("/")[0] if shown else ""

        wait_until(lambda: bool(found()), timeout_s=20, what="a link-local address")
        return found()

    def drop_multicast(self) -> None:
        """Let the switch keep multicast from the machine, as Wi-Fi access points and firewalls do."""
        run("ip", "netns", "exec", self.switch, "bridge", "link", "set", "dev", self.port, "mcast_flood", "off")


@contextlib.contextmanager
def lan(count: int) -> Iterator[list[LanMachine]]:
    """Make a network of ``count`` machines; it is removed at the end of the block."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("bridge") is None:
        pytest.skip("cannot run here: network namespaces need root and the tools ip and bridge")
    tag = f"{os.getpid()}-{next(_NUMBERS)}"
    switch = f"gblan{tag}"
    with contextlib.ExitStack() as stack:
        _make_namespace(stack, switch)
        run("ip", "-n", switch, "link", "add", "br0", "up", "type", "bridge", "mcast_snooping", "0")
        yield [_join(stack, switch, f"gblan{tag}-{number}", number) for number in range(count)]


def _join(stack: contextlib.ExitStack, switch: str, namespace: str, number: int) -> LanMachine:
    _make_namespace(stack, namespace)
    machine = LanMachine(namespace, f"{_NETWORK}.{number + 10}", switch, f"p{number}")
    # Nobody else can have its addresses: it may use them at once, and need not look whether they are taken (RFC 4862).
    run(*machine.prefix, "sh", "-c", "echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad")
    run("ip", "-n", switch, "link", "add", machine.port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
    run("ip", "-n", switch, "link", "set", machine.port, "master", "br0", "up")
    machine.ip("addr", "add", f"{machine.address}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        machine.ip("link", "set", device, "up")
    return machine


def _make_namespace(stack: contextlib.ExitStack, name: str) -> None:
    run("ip", "netns", "add", name)
    stack.callback(run, "ip", "netns", "del", name)


def run(*words: str) -> str:
    """Run a command that must succeed, and return what it prints."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
    return done.stdout
