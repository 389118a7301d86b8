# SPDX-License-Identifier: MIT
"""Which interfaces a search uses, and why it leaves others out."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ghostbox.discovery import interfaces
from ghostbox.discovery.interfaces import Interface, Kind
from ghostbox.discovery.scan import choose
from ghostbox.errors import NotFound, Refused

ETHERNET = Interface(
    "eth0",
    2,
    Kind.ETHERNET,
    1000,
    ("192.0.2.5",),
    (ipaddress.ip_interface("192.0.2.5/24"),),
    True,
    True,
    True,
    True,
    "",
)


def like(name: str, kind: Kind, **changed: Any) -> Interface:
    return replace(ETHERNET, name=name, kind=kind, outward=False, **changed)


LOOPBACK = like("lo", Kind.LOOPBACK, multicast=False)


@pytest.mark.parametrize(
    ("interface", "why"),
    [
        (ETHERNET, ""),
        (replace(ETHERNET, name="wlan0", kind=Kind.WIFI), ""),
        (replace(ETHERNET, name="br0", kind=Kind.BRIDGE), ""),
        (replace(ETHERNET, name="eth0.5", kind=Kind.VLAN), ""),
        (LOOPBACK, "only this machine is on it"),
        (replace(ETHERNET, up=False), "it is down"),
        (replace(ETHERNET, link=False), "it has no link"),
        (replace(ETHERNET, addresses=()), "it has no address"),
        (replace(ETHERNET, multicast=False), "it carries no multicast"),
        (replace(ETHERNET, master="br0", addresses=()), "it is a part of br0"),
        (like("docker0", Kind.DOCKER), "only containers of this machine are on it"),
        (like("virbr0", Kind.BRIDGE), "only virtual machines and containers of this machine are on it"),
        (like("veth1", Kind.VETH), "it leads to a container of this machine"),
        (like("tap0", Kind.TAP), "it leads to a virtual machine of this machine"),
        (like("wg0", Kind.VPN, multicast=False), "a VPN rarely carries multicast"),
        (like("dummy0", Kind.DUMMY), "it leads nowhere"),
    ],
)
def test_interfaces_that_lead_outward_are_used_and_others_have_a_reason(interface: Interface, why: str) -> None:
    assert interfaces.why_skipped(interface, [LOOPBACK, replace(ETHERNET, name="eth9"), interface]) == why


def test_a_container_uses_its_end_of_the_cable_to_its_machine() -> None:
    cable = like("eth0", Kind.VETH)
    assert interfaces.why_skipped(cable, [LOOPBACK, cable]) == ""


def test_an_interface_that_was_named_is_used_whatever_is_behind_it() -> None:
    bridge = like("virbr0", Kind.BRIDGE)
    looked = choose(["virbr0"], [LOOPBACK, ETHERNET, bridge])
    assert [(each.interface.name, each.skipped) for each in looked] == [
        ("lo", "another was named"),
        ("eth0", "another was named"),
        ("virbr0", ""),
    ]


def test_an_interface_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(NotFound, match="this machine has no interface 'eth7'") as caught:
        choose(["eth7"], [LOOPBACK, ETHERNET])
    assert caught.value.hint == "it has: lo, eth0"


def test_an_interface_over_which_nothing_can_be_asked_is_refused() -> None:
    with pytest.raises(Refused, match="nothing can be asked on interface eth0: it is down"):
        choose(["eth0"], [replace(ETHERNET, up=False)])


def test_zeroconf_gets_an_address_for_ipv4_and_the_index_for_ipv6() -> None:
    both = replace(ETHERNET, addresses=("192.0.2.5", "192.0.2.6", "2001:db8::5", "fe80::5%eth0"))
    six = replace(ETHERNET, name="eth1", index=3, addresses=("fe80::6%eth1",))
    assert interfaces.endpoints([both, six]) == ["192.0.2.5", 2, 3]


@pytest.mark.parametrize(
    ("files", "name", "driver", "kind"),
    [
        ({"type": "772"}, "lo", "", Kind.LOOPBACK),
        ({"type": "1", "uevent": "DEVTYPE=wlan", "device/vendor": "x"}, "wlp3s0", "iwlwifi", Kind.WIFI),
        ({"type": "1", "phy80211/name": "phy0"}, "wlan0", "", Kind.WIFI),
        ({"type": "1", "device/vendor": "x"}, "eth0", "e1000e", Kind.ETHERNET),
        ({"type": "1", "uevent": "INTERFACE=br0\nDEVTYPE=bridge"}, "br0", "bridge", Kind.BRIDGE),
        ({"type": "1", "uevent": "DEVTYPE=bridge"}, "docker0", "bridge", Kind.DOCKER),
        ({"type": "1", "uevent": "DEVTYPE=bridge"}, "br-0a1b2c3d4e5f", "bridge", Kind.DOCKER),
        ({"type": "1", "uevent": "DEVTYPE=bridge"}, "br-guest", "bridge", Kind.BRIDGE),
        ({"type": "1", "uevent": "DEVTYPE=vlan"}, "eth0.5", "802.1Q VLAN Support", Kind.VLAN),
        ({"type": "1", "uevent": "DEVTYPE=bond"}, "bond0", "bonding", Kind.BOND),
        ({"type": "65534", "tun_flags": "0x1001"}, "tun0", "tun", Kind.VPN),
        ({"type": "1", "tun_flags": "0x1002"}, "vnet0", "tun", Kind.TAP),
        ({"type": "65534", "uevent": "DEVTYPE=wireguard"}, "wg0", "", Kind.VPN),
        ({"type": "512"}, "ppp0", "", Kind.VPN),
        ({"type": "1", "uevent": "DEVTYPE=vxlan"}, "flannel.1", "vxlan", Kind.VPN),
        ({"type": "1"}, "veth0", "veth", Kind.VETH),
        ({"type": "1"}, "dummy0", "dummy", Kind.DUMMY),
        ({"type": "1"}, "ifb0", "ifb", Kind.OTHER),
        ({}, "gone0", "", Kind.OTHER),
    ],
)
def test_the_kind_of_an_interface_follows_from_sysfs_and_its_driver(
    tmp_path: Path, files: dict[str, str], name: str, driver: str, kind: Kind
) -> None:
    """Wi-Fi, VPNs and hardware cannot be made here; their directories are as Linux 6.12 shows them."""
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text + "\n")
    assert interfaces.kind_of(tmp_path, name, driver) is kind


def test_the_loopback_interface_of_this_machine_is_found() -> None:
    found = {each.name: each for each in interfaces.find()}
    assert found["lo"].kind is Kind.LOOPBACK
    assert interfaces.driver_of("lo") == ""
