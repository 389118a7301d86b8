# SPDX-License-Identifier: MIT
"""The shim keeps QEMU's user network from this host and the donors. A small Python process is in QEMU's place."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox import paths
from helpers import netns
from helpers.pager import preloadable

# The process reads lines "tcp|udp ADDRESS PORT" and answers each with "ok" or the name of the error.
CLIENT = """
import errno, socket, sys
print("ready", flush=True)
for line in sys.stdin:
    kind, address, port = line.split()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    sock.settimeout(5)
    try:
        if kind == "tcp":
            sock.connect((address, int(port)))
        elif kind == "udp":
            sock.sendto(b"x", (address, int(port)))
        else:
            sock.sendmsg([b"x"], [], 0, (address, int(port)))
        print("ok", flush=True)
    except OSError as err:
        print(errno.errorcode.get(err.errno, str(err)), flush=True)
    sock.close()
"""

SERVER = """
import socket, sys
server = socket.create_server(("", 0))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""


class Client:
    """Run the process with the shim; with ``rules`` None the shim checks nothing."""

    def __init__(self, rules: Path | None, prefix: tuple[str, ...] = ()) -> None:
        env = {**os.environ, "LD_PRELOAD": str(preloadable(paths.find().shim_library))}
        if rules is not None:
            env["GHOSTBOX_NETWORK_RULES"] = str(rules)
        argv = [*prefix, sys.executable, "-c", CLIENT]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)
        assert self._answer() == "ready"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tries(self, address: str, port: int, kind: str = "tcp") -> str:
        """Return ``ok``, or the name of the error."""
        assert self.process.stdin is not None
        print(kind, address, port, file=self.process.stdin, flush=True)
        return self._answer()

    def end(self) -> str:
        """End the process; return what the shim logged."""
        return self.process.communicate(timeout=20)[1]


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "network-rules"
    file.write_text("* 10809\n* 10810\n")
    return file


@pytest.fixture
def client(rules: Path) -> Iterator[Client]:
    made = Client(rules)
    yield made
    made.end()


@pytest.fixture
def neighbour() -> Iterator[tuple[netns.Machine, int]]:
    """Yield another machine, and a port of it at which a process listens."""
    with netns.machines(1) as [machine]:
        argv = [*machine.prefix, sys.executable, "-c", SERVER]
        server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        yield machine, int(server.stdout.readline())
        server.communicate()


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "0.0.0.0", "::1", "::ffff:127.0.0.1", "::"])
def test_loopback_of_the_host_is_refused(client: Client, address: str) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        assert client.tries(address, server.getsockname()[1]) == "ECONNREFUSED"
        assert client.tries(address, server.getsockname()[1], "udp") == "ECONNREFUSED"
        assert client.tries(address, server.getsockname()[1], "sendmsg") == "ECONNREFUSED"
        assert "it is this host (vm.host_access opens it)" in client.end()


def test_without_rules_nothing_is_checked() -> None:
    client = Client(None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert client.tries("127.0.0.1", server.getsockname()[1]) == "ok"
    assert client.end() == ""


def test_every_own_address_of_the_host_is_refused_and_another_machine_is_reached(
    client: Client, neighbour: tuple[netns.Machine, int]
) -> None:
    machine, port = neighbour
    own = machine.address.rpartition(".")[0] + f".{int(machine.address.rpartition('.')[2]) - 1}"
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert client.tries(own, server.getsockname()[1]) == "ECONNREFUSED"
    assert client.tries(machine.address, port) == "ok"
    assert client.tries(machine.address, port, "udp") == "ok"


def test_donors_are_refused_at_the_ports_named_from_the_moment_they_are_named(
    client: Client, rules: Path, neighbour: tuple[netns.Machine, int]
) -> None:
    machine, port = neighbour
    assert client.tries(machine.address, port) == "ok"
    rules.write_text(f"* 10809\n{machine.address} {port}\n2001:db8::1 {port}\n")
    assert client.tries(machine.address, port) == "ECONNREFUSED"
    assert client.tries(f"::ffff:{machine.address}", port) == "ECONNREFUSED"
    assert client.tries(machine.address, 10809) == "ECONNREFUSED"
    rules.unlink()
    assert client.tries(machine.address, port) == "ECONNREFUSED"  # the rules that were read last are in force
    rules.write_text("* 10809\n")
    assert client.tries(machine.address, port) == "ok"
    assert f"the guest may not reach {machine.address} port {port}: a donor listens there" in client.end()


def test_rules_that_were_never_read_refuse_everything(tmp_path: Path, neighbour: tuple[netns.Machine, int]) -> None:
    machine, port = neighbour
    client = Client(tmp_path / "missing")
    assert client.tries(machine.address, port) == "ECONNREFUSED"
    assert "the rules of its network cannot be read" in client.end()


def test_multicast_which_the_hosts_own_listeners_hear_is_refused(client: Client) -> None:
    assert client.tries("224.0.0.251", 5353, "udp") == "ECONNREFUSED"
    assert client.tries("ff02::fb", 5353, "udp") == "ECONNREFUSED"


def test_name_server_of_the_host_is_reached_at_port_53_even_on_loopback(tmp_path: Path, rules: Path) -> None:
    """A mount namespace has another resolv.conf, such as systemd-resolved writes."""
    if os.geteuid() != 0:
        pytest.skip("cannot run here: a mount namespace needs root")
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("# stub\noptions edns0\nnameserver 127.0.0.53\nnameserver ::1%lo\n")
    bind = ("unshare", "--mount", "sh", "-c", f'mount --bind {resolv} /etc/resolv.conf && exec "$@"', "sh")
    client = Client(rules, bind)
    assert client.tries("127.0.0.53", 53, "udp") == "ok"
    assert client.tries("::1", 53, "udp") == "ok"
    assert client.tries("127.0.0.1", 53, "udp") == "ECONNREFUSED"
    assert client.tries("127.0.0.53", 54, "udp") == "ECONNREFUSED"
    client.end()
