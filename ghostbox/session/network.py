# SPDX-License-Identifier: MIT
"""Find the guest's address in its network, and write down what the guest may not reach.

In the network ``user``, QEMU makes the guest's connections, so they come from this host. The shim in QEMU refuses
connections to this host's own addresses and to the donors, which the VM's rules file names (``qemu/shim/outgoing.c``).
The default ports of donors are closed at every address; a donor at other ports is closed at the addresses that its name
resolves to. The file is written before the VM starts, and again when the VM's donors change.

On a bridge or a network of libvirt's, a libvirt filter has the same rules, where libvirt can filter. There the guest
has an address of its own, from DHCP. The address is found in libvirt's leases, on the guest's console (cloud-init
prints it at the end of the boot), or in this host's ARP table.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from ghostbox.config import NetworkChoice
from ghostbox.donors.client import CONTROL_PORT, parse_address
from ghostbox.errors import GhostboxError, Refused
from ghostbox.paths import VmPaths
from ghostbox.plan import domain_xml
from ghostbox.plan.plan import NetworkPlan
from ghostbox.session import liveness
from ghostbox.session.record import THIS_HOST, Book, Record, locked
from ghostbox.system import hypervisor, state_files

HOST = "127.0.0.1"
SSH_PORT = 22
_NBD_PORT = 10809
_ARP_TABLE = Path("/proc/net/arp")
_INTERFACES = Path("/sys/class/net")
_CONSOLE_BYTES = 256 << 10


def write_rules(record: Record, files: VmPaths) -> bool:
    """Write what the guest may not reach; return whether it changed. An unresolved name keeps its last addresses."""
    try:
        before = files.network_rules.read_text()
    except OSError:
        before = ""
    lines, unknown = _rules(record)
    kept = before.splitlines() if unknown else []
    text = "".join(f"{line}\n" for line in dict.fromkeys([*lines, *kept]))
    if text == before:
        return False
    state_files.replace(files.network_rules, text.encode(), mode=0o644)
    write_filter(record, files)
    return True


def _rules(record: Record) -> tuple[list[str], bool]:
    """Return the lines of the file, and whether a name could not be resolved."""
    lines, unknown = [f"* {_NBD_PORT}", f"* {CONTROL_PORT}"], False
    for host, port in sorted(_donor_ports(record)):
        addresses = _addresses(host)
        unknown = unknown or not addresses
        lines += [f"{address} {port}" for address in sorted(addresses)]
    return lines, unknown


def _donor_ports(record: Record) -> set[tuple[str, int]]:
    """Return host and port of each control API and NBD server of the VM's donors."""
    controls = {*record.donors, *(lease.donor for lease in record.leases if lease.donor != THIS_HOST)}
    found = {(address.host, address.port) for address in map(parse_address, controls)}
    for lease in record.leases:
        parts = urlsplit(lease.nbd_uri or "")
        if parts.hostname is not None and parts.port is not None:
            found.add((parts.hostname, parts.port))
    return found


def _addresses(host: str) -> set[str]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {str(address[0]).partition("%")[0] for *_, address in found}


def check(choice: NetworkChoice, uri: str) -> None:
    """Refuse a network that does not exist on this host.

    Raises:
        Refused: there is no such bridge, or libvirt's network does not exist or does not run.
    """
    if choice.kind == "bridge" and not (_INTERFACES / choice.name / "bridge").is_dir():
        raise Refused(
            f"there is no bridge named {choice.name} on this host",
            hint=f"the bridges are: {', '.join(_bridges()) or 'none'}; or: ip link add {choice.name} type bridge",
        )
    if choice.kind != "libvirt":
        return
    with hypervisor.connect(uri) as connection:
        runs = connection.network_runs(choice.name)
    if runs is None:
        raise Refused(
            f"libvirt has no network named {choice.name}", hint=f"virsh -c {uri} net-list --all shows those it has"
        )
    if not runs:
        raise Refused(f"libvirt's network {choice.name} does not run", hint=f"virsh -c {uri} net-start {choice.name}")


def _bridges() -> list[str]:
    return sorted(entry.parent.name for entry in _INTERFACES.glob("*/bridge"))


def notes(plan: NetworkPlan) -> tuple[str, ...]:
    """Return notes and warnings on the network, to be shown before the VM starts."""
    if plan.choice.kind == "user":
        return ()
    if plan.filter is not None:
        return (f"note: on the network {plan.choice} the guest reaches this host, as any machine there does",)
    return (
        f"warning: on the network {plan.choice} the guest reaches this host and the donors, as any machine there does",
        "         a firewall on them keeps it out: TCP ports 10809 and 10810 of the donors",
    )


def write_filter(record: Record, files: VmPaths) -> None:
    """Make a libvirt filter from the rules that `write_rules` wrote; libvirt applies it to a running VM at once.

    Raises:
        HypervisorError: libvirt refuses.
    """
    if record.filter is None:
        return
    lines = [line.split() for line in files.network_rules.read_text().splitlines()]
    rules = [(None if address == "*" else address, int(port)) for address, port in lines]
    with liveness.connect(record) as connection:
        connection.define_filter(domain_xml.build_filter(record.filter, record.uuid, rules))


def endpoint(record: Record) -> tuple[str, int] | None:
    """Return host and port of the guest's SSH server; None while the guest's address is not known."""
    if record.network == "user":
        return HOST, record.ssh_port
    return None if record.address is None else (record.address, SSH_PORT)


def refresh(book: Book) -> tuple[str, int] | None:
    """Look for the guest's address, record it, and return host and port of the guest's SSH server.

    The search takes time, and the caller holds no lock: another command may have changed the record meanwhile. So the
    address goes into the record as it is then. If a command is at work on the VM, the address is recorded next time.
    """
    record = book.record
    if record.network == "user":
        return endpoint(record)
    found = _find_address(record, book.files)
    if found is None or found == record.address:
        return endpoint(record)
    with suppress(Refused):
        _record_address(book, record, found)
    return found, SSH_PORT


def _record_address(book: Book, seen: Record, address: str) -> None:
    """Record the address of the VM whose record the caller has seen, if that VM still runs.

    Raises:
        Refused: another command holds the VM's lock.
    """
    if not book.files.record.exists():  # to take the lock would make the directory of a deleted VM anew
        return
    with locked(book.files):
        now = book.load()
        if now is not None and (now.uuid, now.started_at, now.state) == (seen.uuid, seen.started_at, seen.state):
            book.save(replace(now, address=address))


def _find_address(record: Record, files: VmPaths) -> str | None:
    kind, _, name = record.network.partition(":")
    leased = None
    if kind == "libvirt":
        try:
            with liveness.connect(record, start_daemon=False) as connection:
                leased = connection.leased_address(name, record.mac)
        except GhostboxError:
            leased = None
    return leased or _address_on_console(record.mac, files.console_log) or _address_in_arp(record.mac)


def _address_on_console(mac: str, log: Path) -> str | None:
    """Return the address in the last line with the VM's MAC in cloud-init's table of interfaces."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _CONSOLE_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return None
    lines = [line for line in text.splitlines() if "ci-info:" in line and mac.lower() in line.lower()]
    return _last_ipv4(lines)


def _address_in_arp(mac: str) -> str | None:
    try:
        lines = [line for line in _ARP_TABLE.read_text().splitlines() if mac.lower() in line.lower()]
    except OSError:
        return None
    return _last_ipv4(lines)


def _last_ipv4(lines: Iterable[str]) -> str | None:
    found = None
    for line in lines:
        for word in re.findall(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", line):
            address = ipaddress.ip_address(word)
            if not (address.is_unspecified or address.is_multicast or word.startswith("255.")):
                found = word
                break
    return found
