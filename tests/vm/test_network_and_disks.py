# SPDX-License-Identifier: MIT
"""A guest has more than memory: a network that is closed to this host, further disks, shared folders."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ghostbox.system import processes
from ghostbox.units import MIB
from helpers import netns
from helpers.donor import RunningDonor, running_donor
from helpers.lab import lab
from helpers.machine import Machine
from helpers.ports import free_port

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

VM = "gbt-net"
COPY = "gbt-copy"
SHARED = "sha'red %d"
# TEST-NET-3 (RFC 5737). Mode open makes no firewall: libvirt's firewall is not tested here.
ROUTER, PEER = "203.0.113.1", "203.0.113.6"
LIBVIRT_NETWORK = f"""
<network>
  <name>gbt-net</name>
  <bridge name="gbtnet0" stp="off" delay="0"/>
  <forward mode="open"/>
  <dns><host ip="{PEER}"><hostname>peer</hostname></host></dns>
  <ip address="{ROUTER}" netmask="255.255.255.248">
    <dhcp><range start="203.0.113.2" end="203.0.113.5"/></dhcp>
  </ip>
</network>
"""
LISTENER = """
import socket, sys
server = socket.create_server(("", int(sys.argv[1])))
print(server.getsockname()[1], flush=True)
sys.stdin.read()
"""
# A DNS question for an IPv4 address (RFC 1035); the address is the answer's last four bytes.
LOOKUP = """
import socket, sys
server, name = sys.argv[1:]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.settimeout(10)
name = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
sock.sendto(b"\\0\\1\\1\\0\\0\\1" + bytes(6) + name + b"\\0\\0\\1\\0\\1", (server, 53))
print(socket.inet_ntoa(sock.recv(512)[-4:]))
"""


@pytest.fixture(scope="module")
def neighbour() -> Iterator[netns.Machine]:
    with netns.machines(1) as [machine]:
        yield machine


@pytest.fixture(scope="module")
def donor(neighbour: netns.Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDonor]:
    with running_donor(
        tmp_path_factory.mktemp("donor"), size="448M", name="gbt-net", bind=neighbour.address, insecure="",
        prefix=neighbour.prefix,
    ) as made:  # fmt: skip
        yield made


@pytest.fixture(scope="module")
def machine(donor: RunningDonor) -> Iterator[Machine]:
    with lab(GHOSTBOX_POOL_INSECURE="true") as host:
        for name in (SHARED, "books"):
            (host.root / name).mkdir(mode=0o755)
        os.chown(host.root / SHARED, pwd.getpwnam("nobody").pw_uid, -1)
        (host.root / SHARED / "from the host").write_text("hello\n")
        (host.root / "books" / "one").write_text("read me\n")
        options: list[str | Path] = ["--memory", "512M", "--remote-memory", "128M", "--cache", "32M", "--cpus", "2"]
        options += ["--disk", "6G", "--add-disk", "256M", "--donor", donor.address, "--timeout", "4m"]
        options += ["--share", SHARED, "--share", "books:ro"]
        before = host.belongings([donor])
        done = host.cli("up", VM, *options, "--json", check=True)
        yield Machine(VM, host, [donor], before, free_port(), done, options)
        host.cli("delete", VM, "-y", "--force")


def reaches(machine: Machine, address: str, port: int) -> bool:
    """Tell whether the guest gets a connection."""
    command = f"timeout 10 bash -c 'exec 3<>/dev/tcp/{address}/{port}' 2>/dev/null && echo yes || echo no"
    return machine.guest(command).strip() == "yes"


@contextlib.contextmanager
def listening(there: netns.Machine, port: int = 0) -> Iterator[int]:
    """Listen on another machine; yield the port."""
    argv = [*there.prefix, sys.executable, "-c", LISTENER, str(port)]
    server = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    yield int(server.stdout.readline())
    server.communicate()


def test_guest_reaches_neither_this_host_nor_a_donor_but_other_machines(
    machine: Machine, neighbour: netns.Machine
) -> None:
    address, control = machine.donors[0].address.split(":")
    own = f"{address.rpartition('.')[0]}.{int(address.rpartition('.')[2]) - 1}"
    with socket.create_server(("", 0)) as server, listening(neighbour) as there:
        here = server.getsockname()[1]
        assert not [closed for closed in ("10.0.2.2", "127.0.0.1", own) if reaches(machine, closed, here)]
        assert not reaches(machine, address, int(control))
        assert not reaches(machine, address, machine.donors[0].nbd_port)
        assert reaches(machine, address, there)
    log = machine.cli("logs", "--source", "qemu").stdout
    assert f"the guest may not reach 127.0.0.1 port {here}: it is this host (vm.host_access opens it)" in log
    assert f"the guest may not reach {address} port {control}: a donor listens there" in log


def test_further_disk_is_formatted_and_mounted_and_anyone_may_write_to_it(machine: Machine) -> None:
    assert machine.guest("findmnt -no FSTYPE,LABEL /mnt/disk2").split() == ["ext4", "gb-disk2"]
    machine.guest("echo kept > /mnt/disk2/file && sync")
    found = json.loads(machine.cli("info", "--json").stdout)
    assert found["disks"] == [256 * MIB]
    assert Path(found["files"]["disk2"]).stat().st_blocks * 512 < 64 * MIB
    assert "disk2" in machine.cli("info").stdout


def test_shared_folder_is_seen_both_ways_and_its_files_are_its_owners(machine: Machine) -> None:
    where = "'/mnt/sha'\"'\"'red %d'"
    assert machine.guest(f"cat {where}/from*") == "hello\n"
    machine.guest(f"cd {where} && echo back > 'from the guest' && mkdir d && head -c 3M /dev/urandom > d/data && sync")
    shared = machine.host.root / SHARED
    assert (shared / "from the guest").read_text() == "back\n"
    assert (shared / "d" / "data").stat().st_uid == pwd.getpwnam("nobody").pw_uid
    digest = subprocess.run(["sha256sum", shared / "d" / "data"], capture_output=True, text=True, check=True).stdout
    assert machine.guest(f"sha256sum < {where}/d/data").split()[0] == digest.split()[0]
    (shared / "later").write_text("x")
    machine.guest(f"for i in $(seq 50); do test -e {where}/later && exit; sleep 0.2; done; exit 1")


def test_folder_that_is_shared_read_only_is(machine: Machine) -> None:
    assert machine.guest("cat /mnt/books/one") == "read me\n"
    assert "Read-only file system" in machine.guest("sudo sh -c 'echo no > /mnt/books/one' 2>&1 || true")
    assert (machine.host.root / "books" / "one").read_text() == "read me\n"


def test_folder_whose_server_is_killed_is_back_in_a_moment(machine: Machine) -> None:
    [pid] = processes.find("", "share-files", VM, "0")
    processes.terminate(pid)
    machine.guest("for i in $(seq 300); do test -e /mnt/sha*/later && exit; sleep 0.2; done; exit 1")


def test_folder_that_is_not_there_is_refused(machine: Machine) -> None:
    done = machine.host.cli("up", "gbt-net2", *machine.options, "--share", "missing")
    assert f"error: {machine.host.root}/missing cannot be shared: it does not exist" in done.stderr
    assert done.returncode == 5


@pytest.fixture(scope="module")
def copy(machine: Machine, neighbour: netns.Machine) -> Iterator[Machine]:
    """Yield a VM that was exported to a file and imported under another name.

    It is on a network of libvirt, and its second disk has grown.
    """
    host = machine.host
    machine.cli("down")
    host.cli("export", VM, "vm.ghostbox", check=True)
    made = host.cli("import", "vm.ghostbox", "--name", COPY, check=True)
    assert "left out, since these keys belong to the other host: vm.shares, pool.donors" in made.stderr
    (host.root / "network.xml").write_text(LIBVIRT_NETWORK)
    virsh("net-create", host.root / "network.xml")
    try:
        ip("link", "add", "gbtnetpeer", "type", "veth", "peer", "name", "eth1", "netns", neighbour.namespace)
        ip("link", "set", "gbtnetpeer", "master", "gbtnet0", "up")
        ip("-n", neighbour.namespace, "addr", "add", f"{PEER}/29", "dev", "eth1")
        ip("-n", neighbour.namespace, "link", "set", "eth1", "up")
        options = ["--network", "libvirt:gbt-net", "--add-disk", "320M", "--donor", machine.donors[0].address]
        done = host.cli("up", COPY, *options, "--timeout", "4m", "--json", check=True)
        yield Machine(COPY, host, machine.donors, machine.before, 0, done, [*options])
        host.cli("delete", COPY, "-y", "--force")
    finally:
        virsh("net-destroy", "gbt-net")


def virsh(*words: str | Path) -> None:
    subprocess.run(["virsh", "-q", "-c", "qemu:///system", *map(str, words)], check=True, capture_output=True)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def test_imported_vm_boots_with_what_was_on_its_disks_the_second_one_grown(copy: Machine) -> None:
    assert copy.guest("hostname; cat /mnt/disk2/file").split() == [COPY, "kept"]
    assert int(copy.guest("df --output=size -BM /mnt/disk2 | tail -n 1").strip().rstrip("M")) > 270


def test_guest_on_a_network_of_libvirt_is_found_at_its_own_address(copy: Machine) -> None:
    assert "note: on the network libvirt:gbt-net the guest reaches this host, as any machine" in copy.up.stderr
    found = json.loads(copy.cli("info", "--json").stdout)
    assert found["address"] in [f"203.0.113.{last}" for last in range(2, 6)]
    assert found["address"] in copy.guest("hostname -I").split()
    done = subprocess.run(
        [*json.loads(copy.up.stdout)["ssh_command"].split(), "hostname"], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == COPY, done.stderr


def test_machines_on_a_network_of_libvirt_know_each_other_by_name(copy: Machine, neighbour: netns.Machine) -> None:
    address = json.loads(copy.cli("info", "--json").stdout)["address"]
    assert copy.guest("getent hosts peer").split()[0] == PEER
    with listening(neighbour) as port:
        assert reaches(copy, "peer", port)
    with listening(neighbour, 10810) as port:
        assert not reaches(copy, "peer", port), "a donor's port, which libvirt's filter closes"
    lookup = [*neighbour.prefix, sys.executable, "-c", LOOKUP, ROUTER, COPY]
    assert subprocess.run(lookup, capture_output=True, text=True, check=True).stdout.strip() == address


def test_ports_are_not_forwarded_where_the_guest_has_an_address_of_its_own(copy: Machine) -> None:
    done = copy.cli("set", "--port", "8080:80", check=False)
    assert "error: ports cannot be forwarded (vm.ports) on the network libvirt:gbt-net" in done.stderr


def test_network_of_libvirt_that_is_not_there_is_refused(machine: Machine) -> None:
    done = machine.host.cli("up", "gbt-net2", *machine.options[:-4], "--network", "libvirt:gbt-none")
    assert "error: libvirt has no network named gbt-none" in done.stderr
    assert "fix: virsh -c qemu:///system net-list --all shows those it has" in done.stderr
