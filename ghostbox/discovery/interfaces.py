# SPDX-License-Identifier: MIT
"""List this machine's network interfaces, and say for each whether a search for donors uses it, or why not.

Kinds and links come from sysfs (Documentation/ABI/testing/sysfs-class-net of the kernel), addresses from getifaddrs(3).
Used are interfaces that lead out of this machine. A container has none with hardware behind it: there the ends of
cables to its machine (veth) are used.
"""

from __future__ import annotations

import array
import enum
import errno
import fcntl
import ipaddress
import re
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_SYSFS = Path("/sys/class/net")
_SIOCETHTOOL = 0x8946  # linux/sockios.h
_ETHTOOL_GDRVINFO = 0x03  # linux/ethtool.h
_DRVINFO_BYTES = 196
_IFF_UP, _IFF_MULTICAST = 0x1, 0x1000  # linux/if.h
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772  # linux/if_arp.h
_TUN_FLAG_TAP = 0x2  # linux/if_tun.h
_DOCKER = re.compile(r"docker\d+|docker_gwbridge|br-[0-9a-f]{12}|podman\d+|cni\d+")

Network = ipaddress.IPv4Interface | ipaddress.IPv6Interface


class Kind(enum.StrEnum):
    """Is what stands behind an interface."""

    ETHERNET = "ethernet"
    WIFI = "wifi"
    BOND = "bond"
    VLAN = "vlan"
    BRIDGE = "bridge"
    DOCKER = "docker"
    VETH = "veth"
    TAP = "tap"
    VPN = "vpn"
    DUMMY = "dummy"
    LOOPBACK = "loopback"
    OTHER = "other"


@dataclass(frozen=True)
class Interface:
    """Describes a network interface.

    ``addresses`` are as a program names them, a link-local one with its interface behind ``%``. ``networks`` are the
    same with the length of their prefix. ``speed_mbit`` is None where the link has no rate that means anything.
    ``outward``: there is hardware behind it, its own or that of an interface below it. ``master`` is the bridge or bond
    that it is a part of, or empty.
    """

    name: str
    index: int
    kind: Kind
    speed_mbit: int | None
    addresses: tuple[str, ...]
    networks: tuple[Network, ...]
    up: bool
    link: bool
    multicast: bool
    outward: bool
    master: str

    def holds(self, address: str) -> bool:
        """Tell whether ``address`` (IPv4 or IPv6, a zone does not count) is in one of this interface's networks."""
        found = ipaddress.ip_address(address.partition("%")[0])
        return any(found in network.network for network in self.networks)


def find() -> list[Interface]:
    """Return all interfaces of this network namespace, by their index."""
    indices = {name: index for index, name in socket.if_nameindex()}
    addresses: dict[str, list[str]] = {name: [] for name in indices}
    networks: dict[str, list[Network]] = {name: [] for name in indices}
    for label, entries in psutil.net_if_addrs().items():
        name = label if label in indices else label.partition(":")[0]  # IPv4 addresses may have labels: eth0:1
        for entry in entries:
            if name in indices and entry.family in (socket.AF_INET, socket.AF_INET6):
                addresses[name].append(entry.address)
                networks[name].append(_network(entry.address, entry.netmask))
    return [
        _describe(name, index, tuple(addresses[name]), tuple(networks[name]))
        for name, index in sorted(indices.items(), key=lambda each: each[1])
    ]


def why_skipped(interface: Interface, among: Iterable[Interface]) -> str:
    """Return why a search leaves an interface out, or nothing if it is used.

    Args:
        interface: one of ``among``.
        among: all interfaces of the machine.
    """
    if interface.kind is Kind.LOOPBACK:
        return "only this machine is on it"
    if interface.up and interface.master:
        return f"it is a part of {interface.master}"
    own = {
        Kind.DOCKER: "only containers of this machine are on it",
        Kind.BRIDGE: "only virtual machines and containers of this machine are on it",
        Kind.VETH: "it leads to a container of this machine",
        Kind.TAP: "it leads to a virtual machine of this machine",
        Kind.VPN: "a VPN rarely carries multicast",
        Kind.DUMMY: "it leads nowhere",
    }
    in_container = interface.kind is Kind.VETH and not any(each.outward for each in among)
    if interface.up and interface.kind in own and not interface.outward and not in_container:
        return own[interface.kind]
    return why_unusable(interface)


def why_unusable(interface: Interface) -> str:
    """Return why nothing can be asked over an interface, even if the user names it; or nothing."""
    if not interface.up:
        return "it is down"
    if not interface.link:
        return "it has no link"
    if not interface.multicast:
        return "it carries no multicast"
    return "" if interface.addresses else "it has no address"


def endpoints(used: Sequence[Interface]) -> list[str | int]:
    """Return interfaces as zeroconf takes them: an IPv4 address for IPv4, the index for IPv6."""
    found: list[str | int] = []
    for interface in used:
        found += [each for each in interface.addresses if ":" not in each][:1]
        found += [interface.index] * any(":" in each for each in interface.addresses)
    return found


def _network(address: str, netmask: str | None) -> Network:
    host = address.partition("%")[0]
    longest = 128 if ":" in host else 32
    bits = longest if netmask is None else int(ipaddress.ip_address(netmask.partition("%")[0])).bit_count()
    return ipaddress.ip_interface(f"{host}/{bits}")


def _describe(name: str, index: int, addresses: tuple[str, ...], networks: tuple[Network, ...]) -> Interface:
    at = _SYSFS / name
    flags = int(_read(at / "flags") or "0", 16)
    kind = kind_of(at, name, driver_of(name))
    return Interface(
        name=name,
        index=index,
        kind=kind,
        speed_mbit=_speed(at) if kind in (Kind.ETHERNET, Kind.BOND, Kind.VLAN, Kind.BRIDGE) else None,
        addresses=addresses,
        networks=networks,
        up=bool(flags & _IFF_UP),
        link=_read(at / "carrier") == "1",
        multicast=bool(flags & _IFF_MULTICAST),
        outward=_is_outward(at),
        master=(at / "master").resolve().name if (at / "master").exists() else "",
    )


def kind_of(at: Path, name: str, driver: str) -> Kind:
    """Return the kind of an interface, from its directory in sysfs, its name and the name of its driver."""
    number = int(_read(at / "type") or "0")
    tun_flags = _read(at / "tun_flags")
    told = re.search(r"^DEVTYPE=(\w+)$", _read(at / "uevent"), re.MULTILINE)
    by_type = {"wlan": Kind.WIFI, "vlan": Kind.VLAN, "bond": Kind.BOND, "bridge": Kind.BRIDGE}
    by_driver = {"veth": Kind.VETH, "dummy": Kind.DUMMY, "bridge": Kind.BRIDGE, "bonding": Kind.BOND}
    kind = by_type.get(told[1]) if told else None
    if number == _ARPHRD_LOOPBACK:
        kind = Kind.LOOPBACK
    elif tun_flags:
        kind = Kind.TAP if int(tun_flags, 16) & _TUN_FLAG_TAP else Kind.VPN
    elif (at / "wireless").exists() or (at / "phy80211").exists():
        kind = Kind.WIFI
    elif number not in (0, _ARPHRD_ETHER) or (told and told[1] in ("wireguard", "vxlan", "geneve", "ppp")):
        kind = Kind.VPN
    if kind is None:
        kind = by_driver.get(driver, Kind.ETHERNET if (at / "device").exists() else Kind.OTHER)
    return Kind.DOCKER if kind is Kind.BRIDGE and _DOCKER.fullmatch(name) else kind


def driver_of(name: str) -> str:
    """Return the name of an interface's driver (ethtool's ETHTOOL_GDRVINFO), or nothing if it has none.

    Sysfs does not name the driver of an interface without hardware, such as a veth.
    """
    info = array.array("B", struct.pack("I", _ETHTOOL_GDRVINFO) + bytes(_DRVINFO_BYTES - 4))
    request = struct.pack("16sP", name.encode(), info.buffer_info()[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, _SIOCETHTOOL, request)
        except OSError as err:
            if err.errno in (errno.EOPNOTSUPP, errno.ENODEV, errno.EPERM):
                return ""
            raise
    return bytes(info[4:36]).partition(b"\0")[0].decode("ascii", "replace")


def _is_outward(at: Path, depth: int = 4) -> bool:
    """Tell whether there is hardware behind an interface, or behind one below it (a bridge's port, a VLAN's link)."""
    if (at / "device").exists():
        return True
    return depth > 0 and any(_is_outward(below.resolve(), depth - 1) for below in at.glob("lower_*"))


def _speed(at: Path) -> int | None:
    text = _read(at / "speed")
    return int(text) if text and int(text) > 0 else None


def _read(path: Path) -> str:
    """Return a file of sysfs; nothing if the interface has no such file, or no such fact now (EINVAL)."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
