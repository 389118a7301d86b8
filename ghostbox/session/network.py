# SPDX-License-Identifier: MIT
"""The guest's network: where it answers, and what it may not reach.

With the network ``user`` the guest's connections are made by QEMU, that is by this host. The shim in QEMU refuses those
to the host's own addresses and to what the VM's rules file names (``qemu/shim/outgoing.c``): the donors. The default
ports of donors are closed at every address; a donor at other ports is closed at the addresses that its name has. The
file is written before the VM starts, and again when its donors change.

On a bridge or a network of libvirt a filter of libvirt's has the same rules, where libvirt can filter. There the guest
has an address of its own, which DHCP gives it: libvirt knows it (its lease), or the guest says it on its console
(cloud-init does, at the end of its boot), or this host has spoken to it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from ghostbox import domain_xml, hypervisor
from ghostbox.config import NetworkChoice
from ghostbox.donor_client import CONTROL_PORT, parse_address
from ghostbox.errors import GhostboxError, Refused
from ghostbox.paths import VmPaths
from ghostbox.plan import NetworkPlan
from ghostbox.session import liveness
from ghostbox.session.record import THIS_HOST, Book, Record

HOST = "127.0.0.1"
SSH_PORT = 22
_NBD_PORT = 10809
_ARP_TABLE = Path("/proc/net/arp")
_INTERFACES = Path("/sys/class/net")
_CONSOLE_BYTES = 256 << 10


def write_rules(record: Record, files: VmPaths) -> bool:
    """Write what the guest may not reach; tell whether that changed. A name without an address keeps its last ones."""
    try:
        before = files.network_rules.read_text()
    except OSError:
        before = ""
    lines, unknown = _rules(record)
    kept = before.splitlines() if unknown else []
    text = "".join(f"{line}\n" for line in dict.fromkeys([*lines, *kept]))
    if text == before:
        return False
    draft = files.network_rules.with_suffix(".new")
    draft.write_text(text)
    draft.chmod(0o644)
    draft.replace(files.network_rules)
    write_filter(record, files)
    return True


def _rules(record: Record) -> tuple[list[str], bool]:
    """Return the lines of the file, and whether a name could not be looked up."""
    lines, unknown = [f"* {_NBD_PORT}", f"* {CONTROL_PORT}"], False
    for host, port in sorted(_donor_ports(record)):
        addresses = _addresses(host)
        unknown = unknown or not addresses
        lines += [f"{address} {port}" for address in sorted(addresses)]
    return lines, unknown


def _donor_ports(record: Record) -> set[tuple[str, int]]:
    """Return host and port of each control API and NBD server that the VM borrows from."""
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
    """Refuse a network that is not there.

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
    """Return what the user should know of the network before the VM starts."""
    if plan.choice.kind == "user":
        return ()
    if plan.filter is not None:
        return (f"note: on the network {plan.choice} the guest reaches this host, as any machine there does",)
    return (
        f"warning: on the network {plan.choice} the guest reaches this host and the donors, as any machine there does",
        "         a firewall on them keeps it out: TCP ports 10809 and 10810 of the donors",
    )


def write_filter(record: Record, files: VmPaths) -> None:
    """Make libvirt's filter of what `write_rules` wrote, for a VM that has one; where it runs, it counts at once.

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
    """Return where the guest's SSH server is reached; None while its address is not known."""
    if record.network == "user":
        return HOST, record.ssh_port
    return None if record.address is None else (record.address, SSH_PORT)


def refresh(book: Book) -> tuple[str, int] | None:
    """Look for the guest's address, note it, and return where its SSH server is reached."""
    record = book.record
    assert record is not None
    if record.network != "user":
        found = _find_address(record, book.files)
        if found is not None and found != record.address:
            book.save(replace(record, address=found))
    assert book.record is not None
    return endpoint(book.record)


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
    """Return the address in the last line of cloud-init's table of interfaces that has our MAC."""
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
